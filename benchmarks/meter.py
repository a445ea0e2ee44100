"""What measuring costs: start, stop, CPU share and memory of our meter beside others, in one run.

    python benchmarks/meter.py [--seconds 20] [--repeats 3] [--starts 20] [--gpus 1]
                               [--zeus PYTHON] [--out RESULTS.json]

Each meter runs in fresh processes around a sleep. `bare` is a thread that reads psutil and NVML
every 0.5 s, `nothing` the sleep alone. zeus needs other versions of what this project uses, so it
may live in an environment of its own: `--zeus` names that environment's python. A meter that does
not run here is left out, and the table says so. Times are medians; the CPU share is what the
kernel's CPU clocks (nanoseconds, ended threads included) counted for the process and all its
children while the job slept; memory is the tree's resident size above `nothing`.

Our sampling process is also looked at alone: from before its start to its first sample (median and
largest of `--starts`), its CPU share by the scheduler's own count (schedstat), and its memory that
no other process shares (private pages). The GPUs are the tests' stand-in for NVML; with `--gpus 0`
those of the machine, if any.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from angelshare.energy import EnergySettings
from angelshare.energy.child import SamplerProcess
from angelshare.energy.machine import env_of

FRAME = """
import json, os, sys, time
import psutil
seconds, folder = float(sys.argv[1]), sys.argv[2]
os.chdir(folder)
def ran_s(pid):
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
def tree():
    me = psutil.Process()
    found = [me, *me.children(recursive=True)]
    return sum(ran_s(one.pid) for one in found), sum(one.memory_info().rss for one in found)
t0 = time.perf_counter()
{start}
t1 = time.perf_counter()
cpu0, _ = tree()
time.sleep(seconds)
cpu1, rss = tree()
t2 = time.perf_counter()
{stop}
t3 = time.perf_counter()
print(json.dumps({{"start_s": t1 - t0, "stop_s": t3 - t2, "cpu": (cpu1 - cpu0) / seconds,
                   "rss_bytes": rss}}))
"""
ANGELSHARE = """
from pathlib import Path
from angelshare.energy import EnergySettings, Job, window
job = Job(rule="bench", stage="prerun", role="other", sidecar=Path("energy.json"),
          attempts=Path("attempts"))
opened = window(job, EnergySettings(period_s=0.5))
opened.__enter__()
"""
CODECARBON = """
import logging
logging.getLogger("codecarbon").disabled = True
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="FRA", measure_power_secs=0.5,
                                  tracking_mode="process", save_to_file=False)
tracker.start()
"""
ZEUS = """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor()
monitor.begin_window("bench", sync_execution=False)
"""
BARE = """
import threading
import pynvml
pynvml.nvmlInit()
gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
ended = threading.Event()
trace = open("trace.jsonl", "w")
def sample():
    me = psutil.Process()
    while not ended.wait(0.5):
        joules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) for gpu in gpus]
        row = [time.time(), me.cpu_times()[:2], me.memory_info().rss, joules]
        trace.write(json.dumps(row) + "\\n")
        trace.flush()
thread = threading.Thread(target=sample)
thread.start()
"""
FACTORS = {"cpu_j": 1.0, "dram_w": 1e-9}
METERS = {
    "nothing": ("", ""),
    "bare": (BARE, "ended.set(); thread.join()"),
    "angelshare": (ANGELSHARE, "opened.__exit__(None, None, None)"),
    "codecarbon": (CODECARBON, "tracker.stop()"),
    "zeus": (ZEUS, 'monitor.end_window("bench", sync_execution=False)'),
}


def stand_in(folder: Path, gpus: int) -> None:
    """Let this process and its children see GPUs of the tests' stand-in under a square wave."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit" / "energy"))
    from standins import Nvml, build

    machine = Nvml(build(folder), folder / "play.txt")
    wave = ("seg 0.3 600 600", "seg 0.3 100 100", "loop")
    machine.play(*(line for i in range(gpus) for line in (f"gpu GPU-{i} H100", *wave)))
    os.environ.update(machine.environment)


def run(name: str, python: str, seconds: float) -> dict[str, float] | str:
    """One fresh process around a sleep; why not, where the meter does not work here."""
    start, stop = METERS[name]
    program = FRAME.format(start=start, stop=stop)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", program, str(seconds), folder],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(pythons: dict[str, str], seconds: float, repeats: int) -> dict[str, Any]:
    """Medians by meter (seconds, share of a core, bytes), and why others are left out."""
    runs: dict[str, list[dict[str, float]]] = {}
    left_out: dict[str, str] = {}
    for _ in range(repeats):
        for name in METERS:
            found = run(name, pythons.get(name, sys.executable), seconds)
            if isinstance(found, str):
                left_out[name] = found
            else:
                runs.setdefault(name, []).append(found)
    meters = {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for name, each in runs.items()
    }
    return {"meters": meters, "left_out": left_out}


def our_sampler(folder: Path, seconds: float, repeats: int, starts: int) -> dict[str, Any]:
    """Our sampling process alone: seconds to its first sample, share of a core, bytes."""
    first_s, runs = [], []
    for number in range(starts):
        sampler, began_ns, trace = _started(folder / f"start-{number}.jsonl")
        first_s.append((_first_sample_ns(trace) - began_ns) / 1e9)
        sampler.close({"k": "e", "e": "close", "t": time.monotonic_ns()})
    for number in range(repeats):
        sampler, _, _ = _started(folder / f"run-{number}.jsonl")
        pid = sampler.process.pid
        time.sleep(1.0)
        ran_s, began_s = _ran_s(pid), time.monotonic()
        time.sleep(seconds)
        cpu = (_ran_s(pid) - ran_s) / (time.monotonic() - began_s)
        runs.append({"cpu": cpu, **_memory(pid)})
        sampler.close({"k": "e", "e": "close", "t": time.monotonic_ns()})
    return {
        "starts": starts,
        "first_sample_s": statistics.median(first_s),
        "first_sample_max_s": max(first_s),
        **{key: statistics.median(one[key] for one in runs) for key in runs[0]},
    }


def _started(trace: Path) -> tuple[SamplerProcess, int, Path]:
    trace.touch()
    live = {"path": f"{trace}.prom", "labels": {"rule": "bench"}, "factors": FACTORS}
    began_ns = time.monotonic_ns()
    return SamplerProcess(trace, trace, EnergySettings(), gpu=True, live=live), began_ns, trace


def _first_sample_ns(trace: Path) -> int:
    lines = (json.loads(line) for line in trace.read_text().splitlines())
    return int(next(line["t"] for line in lines if line["k"] == "s"))


def _ran_s(pid: int) -> float:
    """Seconds a process was on a CPU, by the scheduler."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _memory(pid: int) -> dict[str, int]:
    """Bytes: pages of no other process, and all that is resident."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"private_bytes": private, "rss_bytes": sizes["Rss"]}


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines of a Markdown table."""
    nothing = found["meters"]["nothing"]["rss_bytes"]
    lines = ["| meter | start | stop | CPU, of a core | memory |", "|---|---|---|---|---|"]
    for name, row in found["meters"].items():
        lines.append(
            f"| {name} | {row['start_s'] * 1e3:.0f} ms | {row['stop_s'] * 1e3:.0f} ms "
            f"| {row['cpu']:.3%} | {(row['rss_bytes'] - nothing) / 2**20:.0f} MiB |"
        )
    lines += [f"| {name} | left out: {why} ||||" for name, why in found["left_out"].items()]
    alone = found["sampler"]
    first_ms, worst_ms = alone["first_sample_s"] * 1e3, alone["first_sample_max_s"] * 1e3
    return [
        *lines,
        "",
        f"Our sampling process alone: first sample after {first_ms:.0f} ms "
        f"(median of {alone['starts']}, largest {worst_ms:.0f} ms), {alone['cpu']:.3%} of a core, "
        f"{alone['private_bytes'] / 2**20:.1f} MiB private of "
        f"{alone['rss_bytes'] / 2**20:.1f} MiB resident.",
    ]


def main() -> None:
    """Run all meters in turn, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--gpus", type=int, default=1, help="of the stand-in; 0: real ones")
    parser.add_argument("--zeus", default=sys.executable, help="a python that has zeus and psutil")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.gpus:
            stand_in(Path(folder), arguments.gpus)
        found = measure({"zeus": arguments.zeus}, arguments.seconds, arguments.repeats)
        found["sampler"] = our_sampler(
            Path(folder), arguments.seconds, arguments.repeats, arguments.starts
        )
    print("\n".join(table(found)))
    if arguments.out is not None:
        found["run"] = {
            "seconds": arguments.seconds,
            "repeats": arguments.repeats,
            "stand_in_gpus": arguments.gpus,
            "machine": {**env_of().model_dump(mode="json"), "load_before": load},
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
