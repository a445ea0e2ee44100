"""A window under RAPL, Slurm, control groups, clock steps and a job that changes its folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import read_attempts, validate_sidecar
from angelshare.energy.computing import compute
from angelshare.energy.trace import read_parquet

JobMaker = Callable[..., Job]


def test_a_powercap_tree_is_followed_through_wraps(tmp_path: Path, job: JobMaker) -> None:
    """A package that wraps several times within one window, rewritten by another thread."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    limit_uj = 40_000_000
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(str(limit_uj))
    began_ns = time.monotonic_ns()

    def counter(t_ns: int) -> int:
        """200 W."""
        return int((t_ns - began_ns) / 1e9 * 200e6)

    def publish() -> None:
        temporary = zone / "next"
        temporary.write_text(str(counter(time.monotonic_ns()) % limit_uj))
        temporary.rename(zone / "energy_uj")

    publish()
    ended = threading.Event()

    def play() -> None:
        while not ended.wait(0.005):
            publish()

    player = threading.Thread(target=play)
    player.start()
    one = job()
    settings = EnergySettings(
        period_s=0.05,
        dram="none",
        cpu_attribution="whole_device",
        powercap=zone.parent,
    )
    with window(one, settings):
        time.sleep(1.0)
    ended.set()
    player.join()
    record = validate_sidecar(one.sidecar)
    package = record.components[0]
    truth_j = (counter(record.time.end_mono_ns) - counter(record.time.start_mono_ns)) / 1e6
    assert package.method == "rapl"
    assert package.energy_j == pytest.approx(truth_j, abs=60.0)
    assert package.counter is not None
    assert (package.counter.wraps or 0) >= 4
    assert record.total.missing == ["dram"]


def test_an_unreadable_powercap_falls_back_and_says_so(tmp_path: Path, job: JobMaker) -> None:
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    one = job()
    with window(one, EnergySettings(powercap=zone.parent, cpu_tdp_w=16.0)):
        pass
    record = validate_sidecar(one.sidecar)
    assert record.components[0].quality == "estimated"
    assert any("is not readable" in warning.text for warning in record.warnings or [])
    with window(one, EnergySettings(cpu="rapl", dram="none", powercap=zone.parent)):
        pass
    assert validate_sidecar(one.sidecar).total.missing == ["cpu0", "dram"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("JobId=7 JobState=RUNNING PreemptTime=2026-01-01T00:00:00", "preempted"),
        ("JobId=7 JobState=RUNNING PreemptTime=None", "killed"),
    ],
)
def test_slurm_says_who_took_the_machine(
    tmp_path: Path,
    job: JobMaker,
    settings: EnergySettings,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    status: str,
) -> None:
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    one = job()
    with pytest.raises(SystemExit) as ended, window(one, settings):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    (record,) = read_attempts(one.attempts)
    assert (record.record.status, record.record.signal) == (status, signal.SIGTERM)
    assert record.run.slurm is not None
    assert record.run.slurm["job_id"] == "7"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_clock_step_and_a_suspend_are_said_and_change_nothing(
    job: JobMaker, settings: EnergySettings
) -> None:
    one = job()
    with window(one, settings):
        time.sleep(0.2)
    record = validate_sidecar(one.sidecar)
    trace = read_parquet(one.sidecar.parent / record.trace.path)
    for sample in trace.samples[2:]:
        sample.utc_ns -= 3_600_000_000_000
        sample.utc_ns += 5_000_000_000
        sample.boot_ns += 5_000_000_000
    again = compute(trace)
    assert record.time.clock_step_s == pytest.approx(0.0, abs=0.05)
    assert again.time.clock_step_s == pytest.approx(-3600.0, abs=0.05)
    assert again.time.suspended_s == pytest.approx(5.0, abs=0.05)
    assert again.components == record.components


def test_a_job_may_change_its_folder(
    tmp_path: Path, settings: EnergySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    plain = Job(
        rule="r", stage="s", role="other", sidecar=Path("e.json"), attempts=Path("attempts")
    )
    with window(plain, settings):
        os.chdir(away)
    assert validate_sidecar(tmp_path / "e.json").trace.path.startswith("attempts")
    assert list(away.iterdir()) == []


def test_a_group_that_is_not_there_is_said(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with window(one, settings.model_copy(update={"cpu_attribution": "cgroup"})):
        time.sleep(0.1)
    record = validate_sidecar(one.sidecar)
    cpu = record.components[0]
    said = {warning.code for warning in record.warnings or []}
    assert (cpu.attribution == "cgroup") is ("no_cgroup" not in said)
    assert cpu.energy_j is not None
