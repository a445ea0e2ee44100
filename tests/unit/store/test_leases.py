import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from angelshare.recipes import make_recipe, recipe_key
from angelshare.store import leases
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.leases import Holder, single_flight

KEY = recipe_key("corpus", make_recipe("corpus", inputs={}, decoding={}))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    monkeypatch.setattr(leases, "BEAT_S", 0.05)


def make_part(root: Path, log: Path, hold_s: float = 0.2, part: int = 0) -> None:
    """What a job does: ask, else make and commit; a line of ``log`` for each time it made it."""
    artifact = ArtifactStore(root).artifact("corpus", KEY)
    with single_flight(artifact, part) as adopted:
        if adopted is None:
            with log.open("a") as stream:
                stream.write("made\n")
            time.sleep(hold_s)
            source = log.with_suffix(f".{os.getpid()}")
            source.write_text("answers")
            artifact.commit(part, {"data.parquet": source}, inputs={})


def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=make_part, args=arguments)
    process.start()
    return process


def test_of_eight_jobs_one_works_and_all_end(tmp_path):
    log = tmp_path / "log"
    jobs = [start(tmp_path / "store", log) for _ in range(8)]
    for job in jobs:
        job.join(30)
        assert job.exitcode == 0
    assert log.read_text() == "made\n"
    assert list((tmp_path / "store").glob("*/*/leases/*")) == []


def test_parts_do_not_wait_for_each_other(tmp_path):
    log = tmp_path / "log"
    first = start(tmp_path / "store", log, 30.0, 0)
    make_part(tmp_path / "store", log, 0.0, 1)
    first.kill()
    first.join()


def test_a_killed_holder_is_replaced_at_once(tmp_path):
    log = tmp_path / "log"
    first = start(tmp_path / "store", log, 60.0)
    while not log.exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    make_part(tmp_path / "store", log)
    assert log.read_text() == "made\n" * 2


def test_a_silent_holder_of_another_host_is_replaced_and_a_living_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 0.5)
    store = ArtifactStore(tmp_path / "store")
    artifact = store.artifact("corpus", KEY)
    elsewhere = Holder.this_process().model_copy(update={"host": "n042", "slurm_job": "9"})
    path = artifact.folder / "leases" / "00000.json"
    assert leases._acquire(path, elsewhere)
    said = []

    began = time.monotonic()
    with leases._beating(path):
        time.sleep(1.0)  # it beats, so a waiter that looked now would go on waiting
        watched = leases._Watched.again(path, None, "it", said.append)
        time.sleep(0.6)
        assert not leases._Watched.again(path, watched, "it", said.append).dead()
    with single_flight(artifact, 0, said.append) as adopted:
        assert adopted is None
    assert time.monotonic() - began > 0.5
    assert "waiting for process" in said[0]
    assert "on n042 (Slurm job 9)" in said[0]
    assert "took over" in said[-1]


def test_a_late_remover_does_not_take_its_successors_lease(tmp_path):
    path = tmp_path / "leases" / "00000.json"
    old, new = Holder.this_process(), Holder.this_process()
    assert leases._acquire(path, new)
    leases._remove(path, old)
    assert leases._read(path) == new


def test_the_first_commit_stands(tmp_path):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", KEY)
    receipts = []
    for text in ("first", "second"):
        source = tmp_path / text
        source.write_text(text)
        receipts.append(artifact.commit(0, {"data.parquet": source}, inputs={}))
    assert receipts[0] == receipts[1]


def test_a_failing_holder_lets_go(tmp_path):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", KEY)
    with pytest.raises(RuntimeError), single_flight(artifact, 0):
        raise RuntimeError
    with single_flight(artifact, 0) as adopted:
        assert adopted is None
