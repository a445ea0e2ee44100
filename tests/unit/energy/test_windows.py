"""A window leaves a valid record whatever becomes of its job, and the bill sums all attempts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from angelshare.energy import CarbonSettings, EnergySettings, Job, window
from angelshare.energy.attempts import STALE_S, close_dead, read_attempts, validate_sidecar
from angelshare.energy.computing import compute
from angelshare.energy.probes.process_tree import start_ticks
from angelshare.energy.sidecar import Record, json_schema
from angelshare.energy.trace import read_parquet
from angelshare.errors import AngelshareError
from angelshare.files import sha256_file

GRID = CarbonSettings(grid_g_per_kwh=360.0, grid_source="a test", pue=1.5)
JobMaker = Callable[..., Job]


def burn(cpu_s: float) -> None:
    """Use this much CPU time of this process."""
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


def failing(job: Job, settings: EnergySettings) -> None:
    """An attempt that uses some energy and then raises ZeroDivisionError."""
    with window(job, settings):
        burn(0.05)
        _ = 1 / 0


def cpu_of(record: Record) -> float:
    return next(part.energy_j or 0.0 for part in record.components if part.id == "cpu0")


def test_a_successful_window(job: JobMaker, settings: EnergySettings) -> None:
    one = job(seed=3, repeat=1, workflow_id="w")
    with window(one, settings, GRID) as opened:
        with opened.phase("load"):
            burn(0.2)
        with opened.phase("train"):
            burn(0.1)
        opened.count(trained=100, steps=2)
        opened.count(trained=20)
        opened.read("in.parquet", "ab" * 32, producer="teacher")
        opened.made("out.bin", "cd" * 32, 7)
    content = json.loads(one.sidecar.read_text())
    jsonschema.validate(content, json_schema())
    record = validate_sidecar(one.sidecar)
    assert record.record.status == "ok"
    assert record.record.closed_by == "meter"
    assert (record.record.seed, record.record.attempt) == (3, 1)
    threads = os.cpu_count() or 1
    cpu_s = cpu_of(record) * threads / 16.0
    assert 0.28 <= cpu_s < 0.6, "0.3 s were burnt, and the kernel counts in 10 ms"
    assert record.work is not None
    assert record.work.tokens is not None
    assert (record.work.tokens.trained, record.work.steps) == (120, 2)
    assert record.work.j_per_token is not None
    assert record.work.j_per_token.value.value == pytest.approx(record.total.energy_j.value / 120)
    assert record.io is not None
    assert record.io.inputs is not None
    assert record.io.inputs[0].producer == "teacher"
    assert record.scope.exclusive is False
    phases = {phase.name: phase for phase in record.phases or []}
    assert phases["load"].energy_j > phases["train"].energy_j > 0
    assert record.bill is not None
    assert record.bill.energy_j == record.total.energy_j.value
    assert record.bill.wasted_j == 0


def test_estimates_are_labelled(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with window(one, settings):
        burn(0.05)
    record = validate_sidecar(one.sidecar)
    for part in record.components:
        assert part.quality == "estimated"
        assert part.method == "load_model"
        assert part.energy_j is not None
        assert part.u95_j == pytest.approx(0.5 * part.energy_j, abs=0.01 * 16.0)
    assert record.total.measured_j == 0
    assert record.total.estimated_j == pytest.approx(record.total.energy_j.value)


def test_carbon_is_applied_once(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with window(one, settings, GRID):
        burn(0.05)
    record = validate_sidecar(one.sidecar)
    assert record.carbon is not None
    assert record.carbon.co2e_g is not None
    # 360 g/kWh are 0.0001 g/J; times a PUE of 1.5.
    joules = sum(part.energy_j or 0.0 for part in record.components)
    assert record.total.energy_j.value == pytest.approx(joules)
    assert record.carbon.co2e_g.value == pytest.approx(joules * 1.5e-4)


def test_children_are_charged(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    program = "import time\nwhile time.process_time() < 0.4: pass"
    with window(one, settings):
        subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
    record = validate_sidecar(one.sidecar)
    cpu_s = cpu_of(record) * (os.cpu_count() or 1) / 16.0
    assert cpu_s >= 0.38


def test_a_failure_is_recorded_and_raised(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with pytest.raises(ZeroDivisionError):
        failing(one, settings)
    assert not one.sidecar.exists()
    (record,) = read_attempts(one.attempts)
    assert (record.record.status, record.record.exit_code) == ("failed", 1)
    assert record.total.energy_j.value > 0


def test_the_bill_sums_all_attempts(job: JobMaker, settings: EnergySettings) -> None:
    one, other = job(), job(wildcards={"run": "b"}, sidecar=job().attempts.parent / "b.json")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing(one, settings)
    with window(other, settings):
        burn(0.05)
    with window(one, settings):
        burn(0.05)
    record = validate_sidecar(one.sidecar)
    attempts = read_attempts(one.attempts, "train", {"run": "a"})
    assert [attempt.record.attempt for attempt in attempts] == [1, 2, 3]
    assert record.bill is not None
    assert record.bill.attempts == 3
    joules = [attempt.total.energy_j.value for attempt in attempts]
    assert record.bill.energy_j == pytest.approx(sum(joules))
    assert record.bill.wasted_j == pytest.approx(sum(joules[:2]))
    assert len(read_attempts(one.attempts)) == 4


def test_the_trace_is_enough(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with window(one, settings, GRID) as opened:
        with opened.phase("load"):
            burn(0.1)
        opened.count(generated=5)
    record = validate_sidecar(one.sidecar)
    path = one.sidecar.parent / record.trace.path
    assert sha256_file(path) == record.trace.sha256
    again = compute(read_parquet(path))
    for name in ("components", "total", "phases", "work", "carbon", "time"):
        assert getattr(again, name) == getattr(record, name), name


def test_running_is_recorded_from_the_first_moment(job: JobMaker, settings: EnergySettings) -> None:
    one = job()
    with window(one, settings):
        (path,) = one.attempts.glob("*.json")
        content = json.loads(path.read_text())
        jsonschema.validate(content, json_schema())
        assert content["record"]["status"] == "running"
        assert read_attempts(one.attempts)[0].record.status == "running", "its process lives"
    assert [entry.suffix for entry in sorted(one.attempts.iterdir())] == [".json", ".parquet"]


def test_unknown_work_is_refused(job: JobMaker, settings: EnergySettings) -> None:
    with pytest.raises(TypeError, match="tokens"), window(job(), settings) as opened:
        opened.count(tokens=1)


JOB = """
import os, signal, sys, time
from pathlib import Path
from angelshare.energy import EnergySettings, Job, window
root = Path(sys.argv[1])
job = Job(rule="train", stage="student_train", role="student", sidecar=root / "energy.json",
          attempts=root / "attempts", wildcards={"run": "a"})
with window(job, EnergySettings(period_s=0.05, cpu="estimate", cpu_tdp_w=16.0)) as opened:
    opened.count(trained=11)
    with opened.phase("burn"):
        print("open", flush=True)
        while True:
            pass
"""


def started(root: Path) -> subprocess.Popen[Any]:
    """A job that burns a core within its window, already open."""
    process = subprocess.Popen([sys.executable, "-c", JOB, str(root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def sampler_of(process: subprocess.Popen[Any]) -> int:
    """The process id of a job's sampler."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid:
            return int(entry.name)
    raise AssertionError("the job has no sampler")


def kill_both(process: subprocess.Popen[Any]) -> None:
    """Kill a job and its sampler so that neither can do anything about the other's end."""
    sampler = sampler_of(process)
    os.kill(sampler, signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(sampler, signal.SIGKILL)


def settled(folder: Path, limit_s: float = 20.0) -> Record:
    """The only attempt, once it is closed."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        (record,) = read_attempts(folder)
        if record.record.status != "running":
            return record
        time.sleep(0.02)
    raise AssertionError("nobody closed the record")


@pytest.mark.parametrize("victims", ["job", "both", "term"])
def test_a_killed_job_leaves_its_joules(tmp_path: Path, victims: str) -> None:
    process = started(tmp_path)
    sampler = sampler_of(process)
    time.sleep(0.4)
    if victims == "both":
        kill_both(process)
    else:
        os.kill(process.pid, signal.SIGTERM if victims == "term" else signal.SIGKILL)
        process.wait()
    record = settled(tmp_path / "attempts")
    assert record.record.status == "killed"
    assert record.record.closed_by == ("sweeper" if victims == "both" else "meter")
    assert record.record.signal == (signal.SIGTERM if victims == "term" else None)
    assert record.time.duration_s > 0.3
    assert record.record.complete is (victims != "both")
    assert cpu_of(record) > 0
    assert [phase.name for phase in record.phases or []] == ["burn"]
    assert not (tmp_path / "energy.json").exists()
    until = time.monotonic() + 10
    while start_ticks(sampler) is not None and time.monotonic() < until:
        time.sleep(0.02)
    assert start_ticks(sampler) is None, "the sampler outlived its job"


def test_a_killed_sampler_is_replaced(tmp_path: Path) -> None:
    process = started(tmp_path)
    first = sampler_of(process)
    os.kill(first, signal.SIGKILL)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if sampler_of(process) != first:
                break
        except AssertionError:
            pass
        time.sleep(0.02)
    time.sleep(0.3)
    process.terminate()
    process.wait()
    record = settled(tmp_path / "attempts")
    assert record.record.status == "killed"
    assert "sampler_replaced" in {warning.code for warning in record.warnings or []}
    assert cpu_of(record) > 0


def test_the_retry_pays_for_the_killed_attempt(
    tmp_path: Path, job: JobMaker, settings: EnergySettings
) -> None:
    process = started(tmp_path)
    time.sleep(0.2)
    process.kill()
    process.wait()
    with window(job(), settings):
        burn(0.05)
    record = validate_sidecar(tmp_path / "energy.json")
    killed, _ = read_attempts(tmp_path / "attempts")
    assert record.record.attempt == 2
    assert record.bill is not None
    assert record.bill.wasted_j == killed.total.energy_j.value > 0
    assert record.bill.energy_j == pytest.approx(
        killed.total.energy_j.value + record.total.energy_j.value
    )


def test_a_broken_sidecar_names_file_and_field(tmp_path: Path, job: JobMaker) -> None:
    path = tmp_path / "energy.json"
    with window(job(), EnergySettings(cpu="none", dram="none")):
        pass
    content = json.loads(path.read_text())
    del content["total"]["missing"]
    path.write_text(json.dumps(content))
    with pytest.raises(AngelshareError, match=r"energy\.json.*total\.missing"):
        validate_sidecar(path)
    path.write_text("{")
    with pytest.raises(AngelshareError, match=r"energy\.json"):
        validate_sidecar(path)


def test_what_is_not_measured_is_missing_not_zero(job: JobMaker) -> None:
    one = job()
    with window(one, EnergySettings(cpu="none", dram="none")):
        burn(0.02)
    record = validate_sidecar(one.sidecar)
    assert record.total.missing == ["cpu0", "dram"]
    assert record.record.complete is False
    assert all(part.energy_j is None for part in record.components)


def test_an_attempt_without_a_trace_is_said_to_be_unknown(tmp_path: Path) -> None:
    process = started(tmp_path)
    kill_both(process)
    for trace in (tmp_path / "attempts").glob("*.jsonl"):
        trace.unlink()
    (record,) = read_attempts(tmp_path / "attempts")
    assert (record.record.status, record.record.complete) == ("killed", False)
    assert [warning.code for warning in record.warnings or []] == ["no_trace"]


def test_a_lost_node_is_closed_by_the_next_reader(tmp_path: Path) -> None:
    """Whether a process of another host lives cannot be told: its trace stopped growing."""
    process = started(tmp_path)
    time.sleep(0.3)
    kill_both(process)
    (path,) = (tmp_path / "attempts").glob("*.json")
    (trace,) = (tmp_path / "attempts").glob("*.trace.jsonl")
    text = trace.read_text()
    host = json.loads(path.read_text())["run"]["host"]
    for file in (path, trace):
        file.write_text(file.read_text().replace(f'"host": "{host}"', '"host": "a-lost-node"'))
    assert text != trace.read_text()
    (record,) = read_attempts(tmp_path / "attempts")
    assert record.record.status == "running", "it wrote a moment ago"
    for file in (path, trace):
        os.utime(file, (time.time() - STALE_S - 1,) * 2)
    close_dead(tmp_path / "attempts")
    record = Record.model_validate(json.loads(path.read_text()))
    assert (record.record.status, record.record.closed_by) == ("killed", "sweeper")
    assert cpu_of(record) > 0
    assert record.run.host == "a-lost-node"
