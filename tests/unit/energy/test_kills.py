"""Whatever is killed and whenever: a record every time, no orphan, and no joule off the bill.

The oracle is a played-back GPU at constant power. ``ANGELSHARE_KILLS`` sets the number of kills.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet  # noqa: F401  (so that forked jobs need not import it)
import pytest
from standins import Nvml

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import read_attempts, validate_sidecar

JobMaker = Callable[..., Job]
WATTS = 300.0
PERIOD_S = 0.1
GPUS = EnergySettings(period_s=PERIOD_S, cpu="none", dram="none")
KILLS = int(os.environ.get("ANGELSHARE_KILLS", "7"))
WAYS = ("job", "both", "sampler", "terminate", "stop job", "stop sampler", "exit")


def body(job: Job, opened: Path, seconds: float, leave: bool) -> None:
    """A job that says when its window is open."""
    with window(job, GPUS):
        opened.touch()
        time.sleep(seconds)
        if leave:
            os._exit(3)


def ours(script: Path) -> Iterator[int]:
    """Every other living process that sees the played-back GPUs."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if str(script).encode() in (entry / "environ").read_bytes():
                yield int(entry.name)
        except OSError:
            continue


def orphans(script: Path) -> list[int]:
    """What of it has not ended after some seconds."""
    until = time.monotonic() + 10
    while (found := list(ours(script))) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def child_of(pid: int) -> int:
    """The sampler of a job: its only child."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                return int(entry.name)
    raise AssertionError("no sampler")


def await_file(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.002)


def strike(way: str, process: BaseProcess) -> None:
    """Do to a job, its sampler or both what ``way`` says."""
    assert process.pid is not None
    sampler = child_of(process.pid)
    if way == "both":
        os.kill(sampler, signal.SIGKILL)
    if way in ("job", "both"):
        os.kill(process.pid, signal.SIGKILL)
    elif way == "sampler":
        os.kill(sampler, signal.SIGKILL)
    elif way == "terminate":
        os.kill(process.pid, signal.SIGTERM)
    elif way == "stop job":
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    elif way == "stop sampler":
        os.kill(sampler, signal.SIGSTOP)
        time.sleep(0.35)
        os.kill(sampler, signal.SIGCONT)


def test_kills_at_random_moments(nvml: Nvml, job: JobMaker, tmp_path: Path) -> None:
    nvml.play("gpu GPU-0 H100", f"seg 1 {WATTS} {WATTS}")
    rng = random.Random(7)
    fork = multiprocessing.get_context("fork")
    one = job()
    deaths: list[tuple[str, int, int]] = []
    for number in range(KILLS):
        way = WAYS[number % len(WAYS)]
        opened = tmp_path / f"opened-{number}"
        lives = way in ("sampler", "stop sampler", "exit")
        seconds = 0.7 if lives else 60.0
        process = fork.Process(target=body, args=(one, opened, seconds, way == "exit"))
        process.start()
        await_file(opened)
        time.sleep(rng.uniform(0.0, 0.4))
        before_ns = time.monotonic_ns()
        strike(way, process)
        process.join()
        deaths.append((way, before_ns, time.monotonic_ns()))
    with window(one, GPUS):
        time.sleep(0.2)
    final = validate_sidecar(one.sidecar)
    records = read_attempts(one.attempts)
    assert len(records) == KILLS + 1
    slack_j = WATTS * (PERIOD_S + 0.4)
    for (way, before_ns, after_ns), record in zip(deaths, records[:-1], strict=True):
        completed = way in ("sampler", "stop sampler")
        assert record.record.status == ("ok" if completed else "killed"), way
        energy_j = record.total.energy_j.value
        start_ns = record.time.start_mono_ns
        assert energy_j <= WATTS * (after_ns - start_ns) / 1e9 + slack_j, way
        if not completed:
            assert energy_j >= WATTS * (before_ns - start_ns) / 1e9 - slack_j, way
    assert final.bill is not None
    assert final.bill.attempts == KILLS + 1
    joules = [record.total.energy_j.value for record in records]
    assert final.bill.energy_j == pytest.approx(sum(joules))
    wasted = sum(j for j, r in zip(joules, records, strict=True) if r.record.status != "ok")
    assert final.bill.wasted_j == pytest.approx(wasted)
    assert orphans(nvml.script) == []


def test_a_stopped_sampler_neither_stops_the_job_nor_loses_energy(
    nvml: Nvml, job: JobMaker
) -> None:
    nvml.play("gpu GPU-0 H100", f"seg 1 {WATTS} {WATTS}")
    one = job()
    with window(one, GPUS) as opened:
        assert opened.sampler is not None
        os.kill(opened.sampler.process.pid, signal.SIGSTOP)
        for _ in range(3000):
            opened.read("x" * 40, "0" * 64)
        time.sleep(0.5)
        os.kill(opened.sampler.process.pid, signal.SIGCONT)
    record = validate_sidecar(one.sidecar)
    part = record.components[0]
    assert part.energy_j == pytest.approx(WATTS * record.time.duration_s, abs=15.0)
    assert part.power is not None
    gaps = part.power.gaps or []
    assert gaps, "half a second without samples"
    assert {gap.filled_by for gap in gaps} == {"counter"}
    assert record.io is not None
    assert len(record.io.inputs or []) == 3000


def forks(job: Job, opened: Path) -> None:
    """A job that forks a child which inherits everything and lives on."""
    with window(job, GPUS):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        partial = opened.with_suffix(".part")
        partial.write_text(str(child))
        partial.rename(opened)
        time.sleep(60)


def test_a_forked_child_does_not_keep_the_sampler(
    nvml: Nvml, job: JobMaker, tmp_path: Path
) -> None:
    nvml.play("gpu GPU-0 H100", f"seg 1 {WATTS} {WATTS}")
    one, opened = job(), tmp_path / "opened"
    process = multiprocessing.get_context("fork").Process(target=forks, args=(one, opened))
    process.start()
    await_file(opened)
    process.kill()
    process.join()
    (record,) = read_attempts(one.attempts)
    assert record.record.status == "killed"
    os.kill(int(opened.read_text()), signal.SIGKILL)
    assert orphans(nvml.script) == []
