"""Ranks end to end: real processes, each with a meter of its own, on played-back GPUs.

A second machine is a process that believes in another host name, boot and wall clock; the GPU that
it sees has the same UUID on purpose: on another machine it is another device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from standins import Nvml

from angelshare.energy import CarbonSettings, EnergySettings, Job, attempts, window
from angelshare.energy.attempts import merge_folders, read_attempts, validate_sidecar
from angelshare.energy.launch import Launch, launch_of
from angelshare.energy.measures import Component
from angelshare.energy.sidecar import Record
from angelshare.errors import AngelshareError
from angelshare.files import read_json

JobMaker = Callable[..., Job]
WATTS = 300.0
SLACK_J = 45.0
"""What the GPU uses in one tick of the counter and some."""
CPU_W = 16.0
SPIN_S = 0.2
SETTINGS = EnergySettings(period_s=0.1, cpu="estimate", cpu_tdp_w=CPU_W, dram="none")
CONSTANT = ("gpu GPU-0 H100", f"seg 1 {WATTS} {WATTS}")
CLI = [sys.executable, "-c", "from angelshare.cli import main; main()"]
ELSEWHERE = """
import socket, sys, time
from angelshare.energy import machine
ahead_ns, read, now_ns = 2_000_000_000, machine._read, time.time_ns
def other_boot(path):
    return "another-boot" if path.endswith("boot_id") else read(path)
def elsewhere():
    socket.gethostname, machine._read = lambda: "n2", other_boot
    time.time_ns = lambda: now_ns() + ahead_ns
"""
WORK = f"""
import os, time
while time.process_time() < {SPIN_S}: pass
time.sleep(float(os.environ["SECONDS"]))
raise SystemExit(int(os.environ["FATE"]))
"""
METERED = """
import sys
from pathlib import Path
from angelshare.energy import EnergySettings
from angelshare.energy.command import join, meter
import json, os
if os.environ.get("ELSEWHERE"):
    elsewhere()
how, out, settings, *command = sys.argv[1:]
if how == "join":
    join(command)
else:
    meter(command, Path(out), EnergySettings(**json.loads(settings)))
"""


def start(
    how: str, out: Path, seconds: float, fate: int = 0, **environment: str
) -> subprocess.Popen[bytes]:
    """A process that measures a command: on its own account, or as part of the window around."""
    changed = json.dumps(SETTINGS.model_dump(mode="json", exclude_unset=True))
    program = ELSEWHERE + METERED
    work = [sys.executable, "-I", "-S", "-c", WORK]
    return subprocess.Popen(
        [sys.executable, "-c", program, how, str(out), changed, *work],
        env={**os.environ, "SECONDS": str(seconds), "FATE": str(fate), **environment},
    )


def gpus(record: Record) -> list[Component]:
    return [part for part in record.components if part.kind == "gpu"]


def cpus(record: Record) -> list[Component]:
    return [part for part in record.components if part.kind == "cpu_package"]


def union_j(nvml: Nvml, records: list[Record]) -> float:
    """The oracle from the first opening to the last closing on this machine."""
    times = [record.time for record in records]
    first = min(time.start_mono_ns for time in times)
    return nvml.oracle_j(0, first, max(time.end_mono_ns for time in times))


def test_launchers_say_who_is_who() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "x"}
    step = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
    assert launch_of(torchrun) == Launch(3, 8, "TORCHELASTIC_RUN_ID=x")
    assert launch_of(step) == Launch(1, 2, "SLURM_JOB_ID=7")
    both = launch_of({**torchrun, **step})
    assert both is not None
    assert (both.rank, both.world) == (3, 8), "the innermost launcher counts"
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
    assert launch_of(batch_script) is None
    assert launch_of({"RANK": "8", "WORLD_SIZE": "8"}) is None
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    assert launch_of(mpi) == Launch(0, 2, "")


def ranks(out: Path, *, fails: bool) -> None:
    """Ranks 0 and 1 on this machine with overlapping windows, rank 2 elsewhere; one may fail."""
    processes = [
        start("meter", out, 0.3 + 0.2 * rank, int(fails and rank == 1), **environment)
        for rank in range(3)
        for environment in [
            {"RANK": str(rank), "WORLD_SIZE": "3", "ELSEWHERE": "1" if rank == 2 else ""}
        ]
    ]
    codes = [process.wait(60) for process in processes]
    assert codes == [0, int(fails), 0]


def test_ranks_on_two_machines_pay_for_each_gpu_once(nvml: Nvml, tmp_path: Path) -> None:
    nvml.play(*CONSTANT)
    out = tmp_path / "energy.json"
    ranks(out, fails=True)
    ranks(out, fails=False)
    folder = tmp_path / "energy.ranks"
    assert sorted(path.name for path in folder.glob("*.json")) == [
        f"{i:05d}.json" for i in range(3)
    ]
    done = subprocess.run(
        [*CLI, "meter", "--merge", str(folder), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    merged = validate_sidecar(out)
    assert merged == merge_folders([folder]), "merging again gives the same"
    each = [read_attempts(folder / f"{rank:05d}.attempts") for rank in range(3)]
    last = [attempts[1] for attempts in each]
    assert (merged.run.world, merged.record.attempt, merged.record.status) == (3, 2, "ok")
    assert {(rank.id, rank.rank, rank.host) for rank in merged.ranks or []} == {
        (one.record.id, one.run.rank, one.run.host) for one in last
    }
    # One GPU on each machine, over the union of that machine's windows.
    here, there = gpus(merged)
    assert there.id == "n2:gpu0"
    assert here.energy_j == pytest.approx(union_j(nvml, last[:2]), abs=SLACK_J)
    assert there.energy_j == pytest.approx(union_j(nvml, last[2:]), abs=SLACK_J)
    # Each rank's own CPU time is added.
    cpu_j = [part.energy_j or 0.0 for part in cpus(merged)]
    assert len(cpu_j) == 3
    assert min(cpu_j) >= 0.9 * SPIN_S * CPU_W / (os.cpu_count() or 1)
    assert sum(cpu_j) == pytest.approx(sum(part.energy_j or 0.0 for o in last for part in cpus(o)))
    parts = [part.energy_j or 0.0 for part in merged.components]
    assert merged.total.energy_j.value == pytest.approx(sum(parts))
    said = {warning.code for warning in merged.warnings or []}
    assert "ranks_overlap" in said
    assert "overlap" not in said, "a rank is no stranger"
    assert len({part.id for part in merged.components}) == len(merged.components)
    # The times span all ranks; the other machine's clock is two seconds ahead.
    assert merged.time.duration_s == pytest.approx(last[2].time.duration_s + 2.0, abs=1.0)
    # The bill: both attempts, each GPU once in each, and the failed one is wasted.
    bill = merged.bill
    assert bill is not None
    assert bill.attempts == 2
    first = [attempts[0] for attempts in each]
    assert bill.energy_j == pytest.approx(bill.wasted_j + merged.total.energy_j.value)
    wasted_j = union_j(nvml, first[:2]) + union_j(nvml, first[2:])
    wasted_j += sum(part.energy_j or 0.0 for one in first for part in cpus(one))
    assert bill.wasted_j == pytest.approx(wasted_j, abs=2 * SLACK_J)


def test_a_rank_without_a_record_is_missed(nvml: Nvml, tmp_path: Path) -> None:
    nvml.play(*CONSTANT)
    assert start("meter", tmp_path / "e.json", 0.1, RANK="0", WORLD_SIZE="2").wait(60) == 0
    merged = merge_folders([tmp_path / "e.ranks"])
    assert merged.record.complete is False
    (said,) = [one for one in merged.warnings or [] if one.code == "ranks_missing"]
    assert "rank 1 of 2" in said.text


def test_what_cannot_be_merged_is_refused(nvml: Nvml, tmp_path: Path) -> None:
    with pytest.raises(AngelshareError, match="no record to merge"):
        merge_folders([tmp_path])
    nvml.play(*CONSTANT)
    out = tmp_path / "energy.json"
    process = start("meter", out, 30.0, RANK="1", WORLD_SIZE="2")
    folder = tmp_path / "energy.ranks" / "00001.attempts"
    until = time.monotonic() + 20
    while not list(folder.glob("*.json")) and time.monotonic() < until:
        time.sleep(0.02)
    with pytest.raises(AngelshareError, match=r"1 ranks in .* still run, the first of them rank 1"):
        merge_folders([tmp_path / "energy.ranks"])
    process.terminate()
    assert process.wait(60) != 0
    assert merge_folders([tmp_path / "energy.ranks"]).record.status == "killed"


def test_a_jobs_record_includes_what_it_started(nvml: Nvml, job: JobMaker) -> None:
    """The window of a job, a child on its own machine, and one on another machine."""
    nvml.play(*CONSTANT)
    one = job()
    grid = CarbonSettings(grid_g_per_kwh=360.0, grid_source="a test")
    with window(one, SETTINGS, grid) as opened:
        time.sleep(0.2)
        with opened.phase("train"):
            processes = [
                start("join", Path(), 0.4, RANK=str(rank), WORLD_SIZE="2", ELSEWHERE=elsewhere)
                for rank, elsewhere in enumerate(("", "1"))
            ]
            assert [process.wait(60) for process in processes] == [0, 0]
    record = validate_sidecar(one.sidecar)
    (attempt,) = read_attempts(one.attempts)
    assert attempt == record.model_copy(update={"trace": attempt.trace})
    within = {rank.rank: rank for rank in record.ranks or []}
    assert set(within) == {None, 0, 1}
    here, there = gpus(record)
    assert there.id == "n2:gpu0"
    times = record.time
    other = read_json(next(one.attempts.glob("*.ranks/n2-00001.json")))["time"]
    other_j = nvml.oracle_j(0, other["start_mono_ns"], other["end_mono_ns"])
    assert there.energy_j == pytest.approx(other_j, abs=SLACK_J)
    own_j = (here.energy_j or 0.0) / WATTS
    assert 0.6 < own_j < times.duration_s + 0.2, "this machine's GPU, once, over the job's window"
    # The child here is in the job's process tree and is not charged again; the other one is.
    assert len(cpus(record)) == 2
    assert record.run.host != "n2"
    (phase,) = record.phases or []
    assert phase.energy_j > 0.9 * other_j
    assert record.carbon is not None
    assert record.carbon.co2e_g is not None
    assert record.carbon.co2e_g.value == pytest.approx(record.total.energy_j.value * 1e-4)
    assert record.bill is not None
    assert record.bill.energy_j == pytest.approx(record.total.energy_j.value)
    assert {"nested", "overlap"} & {one.code for one in record.warnings or []} == set()
    assert record.scope.exclusive


def test_a_rank_that_ends_after_its_job_is_included(
    nvml: Nvml, job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.play(*CONSTANT)
    one = job()
    monkeypatch.setattr(attempts, "CLOSING_LIMIT_S", 0.0)

    def leaves_a_rank_behind() -> subprocess.Popen[bytes]:
        with window(one, SETTINGS) as opened:
            process = start("join", Path(), 1.0, ELSEWHERE="1")
            folder = opened.attempt.with_suffix(".ranks")
            until = time.monotonic() + 20
            while not list(folder.glob("*.attempts/*.json")) and time.monotonic() < until:
                time.sleep(0.02)
        return process

    process = leaves_a_rank_behind()
    early = validate_sidecar(one.sidecar)
    assert "ranks_open" in {warning.code for warning in early.warnings or []}
    assert early.record.complete is False
    assert process.wait(60) == 0
    with window(one, SETTINGS):
        pass
    late, _ = read_attempts(one.attempts)
    assert [part.id for part in gpus(late)][1] == "n2:gpu0"
    assert late.total.energy_j.value > early.total.energy_j.value + 0.9 * WATTS
    (again, last) = read_attempts(one.attempts)
    assert again == late, "once included, it stays as it is"
    bill = validate_sidecar(one.sidecar).bill
    assert bill is not None
    assert bill.energy_j == pytest.approx(late.total.energy_j.value + last.total.energy_j.value)


def test_a_window_within_another_says_so(job: JobMaker, settings: EnergySettings) -> None:
    outer, inner = job(), job(rule="inner", sidecar=job().sidecar.with_name("inner.json"))
    with window(outer, settings), window(inner, settings):
        pass
    said = {warning.code for warning in validate_sidecar(inner.sidecar).warnings or []}
    assert "nested" in said
    assert "ANGELSHARE_WINDOW" not in os.environ


def test_joining_needs_a_window(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "meter", "--join", "--", "true"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "No window is open around this process" in done.stderr
    done = subprocess.run([*CLI, "meter"], capture_output=True, text=True, cwd=tmp_path)
    assert "either a command after -- or --merge" in done.stderr


def test_a_restarted_worker_is_charged_for_both_its_windows(nvml: Nvml, job: JobMaker) -> None:
    nvml.play(*CONSTANT)
    one = job()
    with window(one, SETTINGS) as opened:
        for _ in range(2):
            process = start("join", Path(), 0.1, RANK="0", WORLD_SIZE="1", ELSEWHERE="1")
            assert process.wait(60) == 0
    record = validate_sidecar(one.sidecar)
    assert [part.id for part in gpus(record)[1:]] == ["n2:gpu0", "n2:gpu0:2"]
    folder = opened.attempt.with_suffix(".ranks") / "n2-00000.attempts"
    windows_s = sum(rank.time.duration_s for rank in read_attempts(folder))
    there_j = sum(part.energy_j or 0.0 for part in gpus(record)[1:])
    assert there_j == pytest.approx(WATTS * windows_s, abs=2 * SLACK_J)
