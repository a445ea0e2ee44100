"""The meter on a GPU: tick, counter against power, idle power, what metering costs a training.

    python benchmarks/gpu_meter.py [--seconds 30] [--pairs 20] [--pair-seconds 10] [--out JSON]

Needs an NVIDIA GPU that nothing else uses, and torch with CUDA; takes about ten minutes.

* idle: watts of each device without and with an open CUDA context, and the counter's tick
* loads: idle, a matrix product and a training, each in a window of `--seconds`: the counter's
  joules, integrated power beside them, their difference, and how long reading the counter takes
* overhead: the same number of training steps with and without a window around them, in pairs whose
  order alternates; the mean relative difference in time with its 95 % t-interval. The window opens
  before and closes after what is timed: its start and stop are figures of `benchmarks/meter.py`
* sampler: its share of a core and its own memory while the training runs

`--device cpu` puts the loads on the processor: for trying the script on a stand-in for NVML.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from angelshare.accounting.uncertainty import t_interval
from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.machine import env_of
from angelshare.energy.prerun import idle_baseline
from angelshare.energy.trace import read_parquet
from angelshare.files import publish_json

SETTINGS = EnergySettings(cpu="none", dram="none")
OVERHEAD_LIMIT = 0.002
MATRIX = {"cuda": 8192, "cpu": 128}
WIDTH = {"cuda": 1024, "cpu": 32}
BATCH = {"cuda": (16, 512), "cpu": (2, 16)}

Load = Callable[[], None]


def synchronise(device: str) -> None:
    """Wait for all work that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_product(device: str) -> Load:
    """Twenty products of square bfloat16 matrices, waited for."""
    matrix = torch.randn(MATRIX[device], MATRIX[device], device=device, dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(20):
            matrix @ matrix
        synchronise(device)

    return multiply


def training_step(device: str) -> Load:
    """One optimiser step of a four-layer transformer on random data; it is queued, not awaited."""
    width = WIDTH[device]
    layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = torch.randn(*BATCH[device], width, device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(batch).square().mean()
        loss.backward()
        optimiser.step()

    return step


def for_seconds(load: Load, seconds: float, device: str) -> None:
    """Repeat a load for so long; the queue is kept short, so that the end is sharp."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        load()
        synchronise(device)


def measured(body: Load) -> dict[str, Any]:
    """A window around the body: the first GPU's joules by counter and by power, and the reads."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with window(job_in(root), SETTINGS):
            body()
        record = validate_sidecar(root / "energy.json")
        trace = read_parquet(root / record.trace.path)
    part = next(one for one in record.components if one.kind == "gpu")
    uuid = next(iter(trace.gpus))
    reads_ms = [row[1] / 1e6 for one in trace.samples if (row := one.gpu[uuid])[1] is not None]
    check, power = part.crosscheck, part.power
    return {
        "method": part.method,
        "seconds": record.time.duration_s,
        "counter_j": part.energy_j,
        "u95_j": part.u95_j,
        "power_j": check.energy_j if check else None,
        "power_over_counter_rel": check.rel_diff if check else None,
        "crosscheck_ok": check.ok if check else None,
        "mean_w": power.avg_w if power else None,
        "coverage": power.coverage if power else None,
        "counter_read_ms_p50": statistics.median(reads_ms),
        "counter_read_ms_max": max(reads_ms),
        "warnings": sorted({one.code for one in record.warnings or []}),
    }


def job_in(root: Path) -> Job:
    """A job that leaves everything in a folder."""
    return Job(
        rule="benchmark",
        stage="prerun",
        role="other",
        sidecar=root / "energy.json",
        attempts=root / "attempts",
    )


@contextmanager
def metered(on: bool, seen: list[dict[str, float]]) -> Iterator[None]:
    """A window around the body, or none; what the sampling process used is added to ``seen``."""
    if not on:
        yield
        return
    with tempfile.TemporaryDirectory() as folder, window(job_in(Path(folder)), SETTINGS) as opened:
        assert opened.sampler is not None
        pid = opened.sampler.process.pid
        ran_s, began_s = _ran_s(pid), time.monotonic()
        yield
        seen.append(
            {
                "cpu": (_ran_s(pid) - ran_s) / (time.monotonic() - began_s),
                "private_bytes": _private_bytes(pid),
            }
        )


def _ran_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def overhead(step: Load, seconds: float, pairs: int, device: str) -> dict[str, Any]:
    """Time of the same steps with a meter over without, less one; and what the sampler used."""
    steps = _steps_in(step, seconds, device)
    ratios: list[float] = []
    seen: list[dict[str, Any]] = []
    rates: list[float] = []
    for pair in range(pairs):
        took: dict[bool, float] = {}
        for on in (pair % 2 == 0, pair % 2 == 1):
            with metered(on, seen):
                synchronise(device)
                began_s = time.perf_counter()
                for _ in range(steps):
                    step()
                synchronise(device)
                took[on] = time.perf_counter() - began_s
        ratios.append(math.log(took[True] / took[False]))
        rates.append(steps / took[False])
    mean = statistics.fmean(ratios)
    _, low, high = t_interval(ratios)
    return {
        "pairs": pairs,
        "steps": steps,
        "steps_per_s": statistics.median(rates),
        "slowdown": mean,
        "slowdown_low": low,
        "slowdown_high": high,
        "limit": OVERHEAD_LIMIT,
        "below_limit": high is not None and high < OVERHEAD_LIMIT,
        "sampler_cpu": statistics.median(one["cpu"] for one in seen),
        "sampler_private_bytes": statistics.median(one["private_bytes"] for one in seen),
    }


def _steps_in(step: Load, seconds: float, device: str) -> int:
    """How many steps fill so many seconds, once the device is warm."""
    for_seconds(step, min(5.0, seconds), device)
    began_s, steps = time.perf_counter(), 0
    while time.perf_counter() - began_s < min(2.0, seconds):
        step()
        synchronise(device)
        steps += 1
    return max(1, round(steps / (time.perf_counter() - began_s) * seconds))


def measure(device: str, seconds: float, pairs: int, pair_seconds: float) -> dict[str, Any]:
    """All figures; idle ones first, while this process has no context on the device."""
    idle = {"no_context": idle_baseline(seconds, SETTINGS)["devices"]}
    loads = {"idle": measured(lambda: time.sleep(seconds))}
    if device == "cuda":
        idle["context_open"] = idle_baseline(seconds, SETTINGS, "context_open")["devices"]
    product = matrix_product(device)
    product()
    loads["matrix_product"] = measured(lambda: for_seconds(product, seconds, device))
    step = training_step(device)
    for_seconds(step, min(5.0, seconds), device)
    loads["training"] = measured(lambda: for_seconds(step, seconds, device))
    return {
        "idle": idle,
        "loads": loads,
        "overhead": overhead(step, pair_seconds, pairs, device),
        "settings": SETTINGS.model_dump(mode="json"),
    }


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown."""
    lines = [
        "| GPU, idle | state | power | tick | power against counter |",
        "|---|---|---|---|---|",
    ]
    for state, devices in found["idle"].items():
        for row in (one for one in devices if one["component"].startswith("gpu")):
            cells = (row["idle_w"], "W"), (row["tick_ms"], "ms")
            texts = ["" if value is None else f"{value:.1f} {unit}" for value, unit in cells]
            agreement = row["agreement_rel"]
            texts.append("" if agreement is None else f"{agreement:+.2%}")
            lines.append(f"| {row['device']} | {state} | {' | '.join(texts)} |")
    lines += ["", "| load | counter | power against counter | read |", "|---|---|---|---|"]
    for name, row in found["loads"].items():
        joules = "unresolved" if row["counter_j"] is None else f"{row['counter_j']:.0f} J"
        differ = row["power_over_counter_rel"]
        said = "" if differ is None else f"{differ:+.2%}"
        lines.append(f"| {name} | {joules} | {said} | {row['counter_read_ms_p50']:.2f} ms |")
    cost = found["overhead"]
    bounds = f"{cost['slowdown_low']:+.3%} to {cost['slowdown_high']:+.3%}"
    return [
        *lines,
        "",
        f"Training with the meter takes {cost['slowdown']:+.3%} longer (95 %: {bounds}, "
        f"{cost['pairs']} pairs of {cost['steps']} steps). The sampling process used "
        f"{cost['sampler_cpu']:.3%} of a core and {cost['sampler_private_bytes'] / 2**20:.1f} MiB.",
    ]


def main() -> None:
    """Measure, print tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--pair-seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_meter.json"))
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error("--pairs must be 2 or more: an interval needs repeats")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch sees no CUDA device; run this on a machine with an NVIDIA GPU.")
    load = os.getloadavg()[0]
    found = measure(arguments.device, arguments.seconds, arguments.pairs, arguments.pair_seconds)
    found["run"] = {
        "device": arguments.device,
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "cuda": torch.version.cuda,
        "seconds": arguments.seconds,
        "machine": {**env_of().model_dump(mode="json"), "load_before": load},
    }
    print("\n".join(table(found)))
    publish_json(arguments.out, found)
    print(json.dumps({"out": str(arguments.out)}))


if __name__ == "__main__":
    main()
