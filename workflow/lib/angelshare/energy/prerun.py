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
    """Watch the idle machine for ``seconds``: ``baseline`` (see the sidecar), ``devices`` (rows),
    ``table`` (:func:`trust_table`) and ``verdict`` (the same as lines of text).

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
        "table": trust_table(devices),
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


def look_at_machine(seconds: float, settings: EnergySettings) -> dict[str, Any]:
    """What :func:`idle_baseline` finds, and on a machine with GPUs ``with_context`` beside it.

    ``table`` and ``verdict`` then tell both idle powers.
    """
    found = idle_baseline(seconds, settings)
    if any(device["component"].startswith("gpu") for device in found["devices"]):
        # A CUDA context alone draws power: jobs are compared with the idle state they sit in.
        context = idle_baseline(seconds, settings, "context_open")
        found["with_context"] = context
        found["table"] = trust_table(found["devices"], context["devices"])
        found["verdict"] = verdict(found["devices"], context["devices"])
    return found


def trust_table(
    devices: list[dict[str, Any]], in_context: list[dict[str, Any]] | None = None
) -> list[dict[str, str]]:
    """One row a device, ready to print: may its figures be published, as what, and why.

    ``trust`` is ``measured``, ``estimate`` or ``no``; ``idle``, ``tick`` and ``agreement`` are
    texts with their units, empty where there is nothing to say. ``in_context`` are the devices'
    rows while CUDA contexts are open, for the column ``with context``.
    """
    contexts = {found["component"]: found["idle_w"] for found in in_context or []}
    rows = []
    for found in devices:
        trust, why = _judged(found)
        idle_w, tick_ms = found.get("idle_w"), found.get("tick_ms")
        agreement = found.get("agreement_rel")
        rows.append(
            {
                "component": found["component"],
                "device": found["device"] or "unknown model",
                "meter": found["meter"],
                "trust": trust,
                "idle": _watts(idle_w),
                **({"with context": _watts(contexts.get(found["component"]))} if contexts else {}),
                "tick": "" if tick_ms is None else f"{tick_ms:.0f} ms",
                "agreement": "" if agreement is None else f"{agreement:+.1%}",
                "why": why,
            }
        )
    return rows


def _watts(power_w: float | None) -> str:
    return "" if power_w is None else f"{power_w:.1f} W"


def _judged(row: dict[str, Any]) -> tuple[str, str]:
    """``trust`` of a device and the reason in words."""
    if row["quality"] == "missing":
        return "no", "nothing can be read; totals will leave it out"
    if row["quality"] == "estimated":
        return "estimate", "computed from its load, good to no better than 50 %"
    if row["idle_w"] is None:
        return "no", "the counter did not move; its figures are unresolved"
    if row["agreement_ok"] is False:
        differ = f"integrated power differs by {row['agreement_rel']:+.1%}"
        return "no", f"{differ}: do not publish its figures"
    if row["agreement_ok"] is None:
        return "measured", "not compared with integrated power"
    return "measured", "counter and integrated power agree"


def verdict(
    devices: list[dict[str, Any]], in_context: list[dict[str, Any]] | None = None
) -> list[str]:
    """The table of :func:`trust_table` as aligned lines of text, the names of its columns first."""
    rows = trust_table(devices, in_context)
    if not rows:
        return ["no device can be read here; energies will be missing"]
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


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
