"""What befalls a running job and must not change its joules: holds, stops, clock steps, deaths.

The interpreter lock is held for 2 s and processes are stopped for 1 s; with ``ANGELSHARE_LONG=1``
for 8 s and 5 s.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from standins import Nvml, build

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.computing import compute
from angelshare.energy.sidecar import Record
from angelshare.energy.trace import read_parquet

JobMaker = Callable[..., Job]
LONG = os.environ.get("ANGELSHARE_LONG") == "1"
HOLD_S = 8 if LONG else 2
STOP_S = 5.0 if LONG else 1.0
PERIOD_S = 0.1
TICK_J = 60.0
"""What the stand-in uses within one tick of 0.1 s at its peak of 600 W."""
GPUS = EnergySettings(period_s=PERIOD_S, cpu="none", dram="none")
WAVE = ("gpu GPU-0 H100", "seg 0.3 600 600", "seg 0.3 100 100", "loop")


def check_gpu(record: Record, nvml: Nvml, folder: Path) -> None:
    """The GPU's joules are the oracle's, and the Parquet trace gives the same record again."""
    part = record.components[0]
    oracle_j = nvml.oracle_j(0, record.time.start_mono_ns, record.time.end_mono_ns)
    assert part.energy_j == pytest.approx(oracle_j, abs=TICK_J)
    assert part.u95_j is not None
    assert abs(part.energy_j - oracle_j) <= part.u95_j
    again = compute(read_parquet(folder / record.trace.path))
    for name in ("components", "total", "phases", "time"):
        assert getattr(again, name) == getattr(record, name), name


def check_sampled_on(record: Record, seconds: float) -> None:
    """Samples go on through so many seconds; a busy machine may delay a few of them."""
    power = record.components[0].power
    assert power is not None
    assert power.samples is not None
    assert power.samples >= 0.6 * seconds / PERIOD_S
    gaps = [gap.end_s - gap.start_s for gap in power.gaps or []]
    assert max(gaps, default=0.0) < 0.5 * seconds
    assert (power.coverage or 0.0) > 0.5


def test_a_held_interpreter_lock_loses_no_sample(nvml: Nvml, job: JobMaker) -> None:
    nvml.play(*WAVE)
    one = job()
    with window(one, GPUS):
        # A foreign call that keeps the lock: no thread of this process runs meanwhile.
        ctypes.PyDLL(None).sleep(HOLD_S)
    record = validate_sidecar(one.sidecar)
    check_gpu(record, nvml, one.sidecar.parent)
    check_sampled_on(record, HOLD_S)
    assert record.time.duration_s >= HOLD_S


def after(seconds: float, number: int, pid: int) -> threading.Timer:
    """Send a signal later."""
    timer = threading.Timer(seconds, os.kill, (pid, number))
    timer.start()
    return timer


def test_a_stopped_sampler_loses_no_energy(nvml: Nvml, job: JobMaker) -> None:
    nvml.play(*WAVE)
    one = job()
    with window(one, GPUS) as opened:
        time.sleep(0.3)
        assert opened.sampler is not None
        pid = opened.sampler.process.pid
        os.kill(pid, signal.SIGSTOP)
        resumed = after(STOP_S, signal.SIGCONT, pid)
        resumed.join()
        time.sleep(0.3)
    record = validate_sidecar(one.sidecar)
    check_gpu(record, nvml, one.sidecar.parent)
    power = record.components[0].power
    assert power is not None
    # A busy machine may make a short gap of its own; the stop is the long one.
    gap = max(power.gaps or [], key=lambda gap: gap.end_s - gap.start_s)
    assert gap.filled_by == "counter"
    assert STOP_S - 2.5 * PERIOD_S <= gap.end_s - gap.start_s < STOP_S + 2.0
    assert (power.coverage or 0.0) < 1 - 0.9 * STOP_S / record.time.duration_s


JOB = """
import json, os, subprocess, sys, time
from pathlib import Path
from angelshare.energy import EnergySettings, Job, window
root, settings = Path(sys.argv[1]), EnergySettings(**json.loads(sys.argv[2]))
job = Job(rule="train", stage="student_train", role="student", sidecar=root / "energy.json",
          attempts=root / "attempts", wildcards={"run": "a"})
with window(job, settings) as opened:
    print("open", flush=True)
"""


def start(
    root: Path, body: str, settings: EnergySettings, **environment: str
) -> subprocess.Popen[bytes]:
    """A job in a process of its own whose window is open and whose body is these lines."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    changed = json.dumps(settings.model_dump(mode="json", exclude_unset=True))
    process = subprocess.Popen(
        [sys.executable, "-c", JOB + lines, str(root), changed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def end(process: subprocess.Popen[bytes], root: Path) -> Record:
    """Let the body read the end of its input; the record of a job that succeeded."""
    process.communicate(timeout=60)
    assert process.returncode == 0
    return validate_sidecar(root / "energy.json")


def test_a_stopped_job_is_sampled_on(nvml: Nvml, tmp_path: Path) -> None:
    nvml.play(*WAVE)
    process = start(tmp_path, "sys.stdin.read()", GPUS)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(STOP_S)
    os.kill(process.pid, signal.SIGCONT)
    record = end(process, tmp_path)
    check_gpu(record, nvml, tmp_path)
    check_sampled_on(record, STOP_S)
    assert record.time.duration_s >= STOP_S


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that steps the wall clock."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build the stand-in for the clock")
    return build(tmp_path_factory.mktemp("clock"), "clock.c", "libclock.so")


@pytest.mark.parametrize("step_s", [-3600, 7200])
def test_a_stepped_wall_clock_moves_no_joule(
    nvml: Nvml, tmp_path: Path, clock: Path, step_s: int
) -> None:
    """Job and sampler see the wall clock jump; lengths come from the clock that never does."""
    nvml.play(*WAVE)
    step = tmp_path / "step"
    body = (
        "with opened.phase('load'):\n"
        "    wall_s = time.time()\n"
        "    print('load', flush=True)\n"
        "    sys.stdin.read()\n"
        "    print(time.time() - wall_s, flush=True)\n"
    )
    began_s = time.monotonic()
    process = start(tmp_path, body, GPUS, LD_PRELOAD=str(clock), STANDIN_CLOCK=str(step))
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    step.write_text(str(step_s))
    time.sleep(0.5)
    seen, _ = process.communicate(timeout=60)
    lived_s = time.monotonic() - began_s
    assert float(seen) == pytest.approx(step_s + 1.0, abs=2.0), "the clock was not stepped"
    record = validate_sidecar(tmp_path / "energy.json")
    assert record.time.clock_step_s == pytest.approx(step_s, abs=0.05)
    assert 1.0 <= record.time.duration_s <= lived_s
    assert record.time.duration_s == pytest.approx(
        (record.time.end_mono_ns - record.time.start_mono_ns) / 1e9
    )
    (phase,) = record.phases or []
    assert 1.0 <= phase.end_s - phase.start_s <= record.time.duration_s
    check_gpu(record, nvml, tmp_path)
    check_sampled_on(record, 1.0)


TREE = """
import os, subprocess, sys, time
spin = "import time\\nwhile time.process_time() < 0.3: pass\\ntime.sleep(%s)"
run = lambda then: subprocess.Popen([sys.executable, "-I", "-S", "-c", spin % then])
for child in [run(0), run(0)]:
    child.wait()
orphan = run(60)
print(orphan.pid, flush=True)
sys.stdin.read()
"""


def test_the_dead_of_a_process_tree_are_charged(tmp_path: Path) -> None:
    """Two grandchildren end, their parent is killed, the orphan is killed later: all count."""
    watts = 16.0
    settings = EnergySettings(period_s=0.05, cpu="estimate", cpu_tdp_w=watts, dram="none")
    body = (
        f"tree = subprocess.Popen([sys.executable, '-I', '-S', '-c', {TREE!r}],\n"
        "                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "orphan = int(tree.stdout.readline())\n"
        "time.sleep(1.5)\n"
        "tree.kill()\n"
        "tree.wait()\n"
        "time.sleep(0.3)\n"
        "os.kill(orphan, 9)\n"
        "time.sleep(0.2)"
    )
    record = end(start(tmp_path, body, settings), tmp_path)
    part = next(one for one in record.components if one.id == "cpu0")
    assert part.energy_j is not None
    cpu_s = part.energy_j / watts * (os.cpu_count() or 1)
    assert 3 * 0.3 - 0.04 <= cpu_s < 3 * 0.3 + 1.0
