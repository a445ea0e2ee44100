"""Which GPU a job takes, where several run beside each other on one machine."""

import multiprocessing
import os
import signal
import time

import pytest

from angelshare import devices
from angelshare.devices import claimed_gpus


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Four GPUs, no Slurm."""
    monkeypatch.setattr(devices, "POLL_S", 0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def hold(folder, count, queue, seconds):
    with claimed_gpus(count, folder) as chosen:
        queue.put((chosen, os.environ["CUDA_VISIBLE_DEVICES"]))
        time.sleep(seconds)


def start(folder, count, queue, seconds=30.0):
    process = multiprocessing.get_context("fork").Process(
        target=hold, args=(folder, count, queue, seconds)
    )
    process.start()
    return process


def test_jobs_beside_each_other_take_different_gpus_and_a_killed_one_lets_go(tmp_path):
    queue = multiprocessing.get_context("fork").Queue()
    jobs = [start(tmp_path, 2, queue) for _ in range(2)]
    taken = [queue.get(timeout=20) for _ in jobs]
    assert sorted(name for chosen, _ in taken for name in chosen) == ["0", "1", "2", "3"]
    assert all(",".join(chosen) == visible for chosen, visible in taken)
    waiting = start(tmp_path, 1, queue, 0.0)
    time.sleep(0.3)
    assert queue.empty()
    os.kill(jobs[0].pid, signal.SIGKILL)
    chosen, _ = queue.get(timeout=20)
    assert len(chosen) == 1
    jobs[1].kill()
    for job in (*jobs, waiting):
        job.join(20)


def test_the_surroundings_are_as_before_afterwards(tmp_path, monkeypatch):
    with claimed_gpus(1, tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize("count", [0, 4, 5])
def test_nothing_is_claimed_where_there_is_nothing_to_choose(tmp_path, count):
    with claimed_gpus(count, tmp_path) as chosen:
        assert chosen == ["0", "1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


def test_slurm_has_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with claimed_gpus(1, tmp_path) as chosen:
        assert len(chosen) == 4
