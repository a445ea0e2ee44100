"""What measuring costs: start, stop, CPU share and memory of our meter beside others, in one run.

    python benchmarks/meter.py [--seconds 20] [--repeats 3] [--out benchmarks/results/meter.json]

Each meter runs in fresh processes around a sleep. `bare` is a thread that reads psutil every 0.5 s,
`nothing` the sleep alone. A meter that is not installed is left out. Times are medians; the CPU
share counts the process and all its children; memory is the tree's resident size above `nothing`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FRAME = """
import json, os, sys, time
import psutil
seconds, folder = float(sys.argv[1]), sys.argv[2]
os.chdir(folder)
def tree():
    me = psutil.Process()
    found = [me, *me.children(recursive=True)]
    cpu = sum(sum(one.cpu_times()[:2]) for one in found)
    return cpu, sum(one.memory_info().rss for one in found)
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
monitor.begin_window("bench")
"""
BARE = """
import threading
ended = threading.Event()
trace = open("trace.jsonl", "w")
def sample():
    me = psutil.Process()
    while not ended.wait(0.5):
        trace.write(json.dumps([time.time(), me.cpu_times()[:2], me.memory_info().rss]) + "\\n")
        trace.flush()
thread = threading.Thread(target=sample)
thread.start()
"""
METERS = {
    "nothing": ("", ""),
    "bare": (BARE, "ended.set(); thread.join()"),
    "angelshare": (ANGELSHARE, "opened.__exit__(None, None, None)"),
    "codecarbon": (CODECARBON, "tracker.stop()"),
    "zeus": (ZEUS, 'monitor.end_window("bench")'),
}


def run(name: str, seconds: float) -> dict[str, float] | None:
    """One fresh process around a sleep; None where the meter does not work here."""
    start, stop = METERS[name]
    program = FRAME.format(start=start, stop=stop)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(seconds), folder],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    """Run all meters in turn, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in METERS:
        runs = [run(name, arguments.seconds) for _ in range(arguments.repeats)]
        good = [one for one in runs if one is not None]
        if good:
            results[name] = {key: statistics.median(one[key] for one in good) for key in good[0]}
    nothing = results["nothing"]["rss_bytes"]
    print(f"{'meter':12} {'start':>9} {'stop':>9} {'CPU':>9} {'memory':>10}")
    for name, found in results.items():
        print(
            f"{name:12} {found['start_s'] * 1e3:6.0f} ms {found['stop_s'] * 1e3:6.0f} ms "
            f"{found['cpu']:8.2%} {(found['rss_bytes'] - nothing) / 2**20:6.0f} MiB"
        )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
