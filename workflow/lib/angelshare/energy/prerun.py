"""Before the first job: what this machine is, what it draws when idle, and whether to trust it.

Idle power (watts) is measured by an ordinary window over a sleep, whole devices charged, so the
figures come from the meter that will measure the jobs. What is only estimated has no idle power.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.machine import env_of, run_of
from angelshare.energy.measures import Baseline, Component
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import Record
from angelshare.energy.windows import Job, window

TICK_WATCH_S = 1.0
TICK_PERIOD_S = 0.02
CONTEXT = """
import sys, torch
held = [torch.zeros(1, device=f"cuda:{i}") for i in range(torch.cuda.device_count())]
print("open", flush=True)
sys.stdin.read()
"""


def machine_snapshot() -> dict[str, Any]:
    """Host, boot, container, cgroup, Slurm, software, CPU and memory, as plain values."""
    return {
        "run": run_of("", None).model_dump(mode="json"),
        "env": env_of().model_dump(mode="json"),
    }


def idle_baseline(
    seconds: float,
    settings: EnergySettings,
    state: Literal["no_context", "context_open"] = "no_context",
) -> dict[str, Any]:
    """Watch the idle machine for ``seconds``: ``baseline`` (see the sidecar), ``devices`` (rows).

    Each row has component, device, meter, quality, idle_w (None for estimates), tick_ms (the GPU
    counter's update interval) and agreement_rel (integrated power against the counter).
    ``context_open`` holds a CUDA context on every visible GPU meanwhile, through torch.
    """
    whole = settings.model_copy(update={"cpu_attribution": "whole_device"})
    with _context(state):
        record = _watch(seconds, whole)
        quick = None
        if any(part.kind == "gpu" for part in record.components):
            quick = _watch(TICK_WATCH_S, whole.model_copy(update={"period_s": TICK_PERIOD_S}))
    ticks_ms = {
        part.id: part.counter.update_ms_p50
        for part in (quick.components if quick else [])
        if part.counter is not None
    }
    duration_s = record.time.duration_s
    devices = [_row(part, duration_s, ticks_ms.get(part.id)) for part in record.components]
    return {
        "baseline": _baseline(record, state).model_dump(mode="json"),
        "devices": devices,
        "verdict": verdict(devices),
    }


def _watch(seconds: float, settings: EnergySettings) -> Record:
    """The record of a window in which nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            rule="idle",
            stage="prerun",
            role="prerun",
            sidecar=Path(folder) / "energy.json",
            attempts=Path(folder) / "attempts",
        )
        with window(job, settings):
            time.sleep(seconds)
        return validate_sidecar(job.sidecar)


def verdict(devices: list[dict[str, Any]]) -> list[str]:
    """One line a device: whether its figures are measured, and how far they can be trusted."""
    lines = []
    for row in devices:
        name = f"{row['component']} ({row['device'] or 'unknown model'})"
        if row["quality"] == "missing":
            lines.append(f"{name}: MISSING, nothing can be read; totals will leave it out")
        elif row["quality"] == "estimated":
            lines.append(f"{name}: ESTIMATED by {row['meter']}, good to no better than 50 %")
        elif row["idle_w"] is None:
            lines.append(f"{name}: {row['meter']} did not move; its figures are unresolved")
        elif row["agreement_ok"] is False:
            lines.append(
                f"{name}: measured by {row['meter']}, but integrated power differs by "
                f"{row['agreement_rel']:+.1%}: do not publish its figures"
            )
        else:
            lines.append(f"{name}: measured by {row['meter']}, idle {row['idle_w']:.1f} W")
    return lines


def _row(component: Component, duration_s: float, tick_ms: float | None) -> dict[str, Any]:
    measured = component.quality == "measured" and component.energy_j is not None
    check = component.crosscheck
    return {
        "component": component.id,
        "device": component.device.model if component.device else None,
        "uuid": component.device.uuid if component.device else None,
        "meter": component.method,
        "quality": component.quality,
        "idle_w": (component.energy_j or 0.0) / duration_s if measured else None,
        "tick_ms": tick_ms,
        "agreement_rel": check.rel_diff if check else None,
        "agreement_ok": check.ok if check else None,
    }


def _baseline(record: Record, state: Literal["no_context", "context_open"]) -> Baseline:
    """Idle watts by GPU uuid or component id."""
    idle_w = {
        (part.device.uuid if part.device and part.device.uuid else part.id): (part.energy_j or 0.0)
        / record.time.duration_s
        for part in record.components
        if part.quality == "measured" and part.energy_j is not None
    }
    return Baseline(
        idle_w=idle_w,
        seconds=record.time.duration_s,
        measured_utc=record.time.start_utc,
        state=state,
        source="before",
    )


@contextmanager
def _context(state: str) -> Iterator[None]:
    """Hold a CUDA context in another process while the body runs, if ``state`` asks for it."""
    if state == "no_context":
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-c", CONTEXT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
