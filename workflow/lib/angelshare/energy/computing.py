"""From traces to a record, as a pure function: equal traces give equal joules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import angelshare
from angelshare.energy.carbon import EnergyBetween, carbon_of, cost_of
from angelshare.energy.constants import Estimator
from angelshare.energy.cpu import measure_cpu
from angelshare.energy.curves import Measured, between
from angelshare.energy.gpu import measure_gpu
from angelshare.energy.measures import Baseline, Component, Total
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import (
    Attempt,
    Carbon,
    Cost,
    Env,
    Input,
    Lineage,
    Meter,
    Output,
    Record,
    Run,
    Scope,
    Time,
    Tokens,
    TraceFile,
    Warning,
    Work,
)
from angelshare.energy.totals import overlaps_of, per_token, phases_of, said_of, total_of
from angelshare.energy.trace import Trace

Status = Literal["ok", "failed", "killed", "preempted", "running"]
PARTS = {"gpu": "gpu board", "cpu_package": "cpu package", "dram": "dram"}


def utc(ns: int) -> str:
    """Nanoseconds since the epoch as ISO 8601 with milliseconds."""
    moment = datetime.fromtimestamp(ns / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def compute(trace: Trace, *, status: Status = "ok") -> Record:
    """The record of one window that its trace gives."""
    parts = parts_of(trace)
    said = [*said_of(trace), *_gpus_beyond(trace)]
    return record_of(trace, parts, said, status=status)


def parts_of(trace: Trace) -> list[Measured]:
    """Every component of a window: its GPUs, CPU packages and memory."""
    plan = trace.plan
    settings = EnergySettings.model_validate(plan["settings"])
    baseline = Baseline.model_validate(plan["baseline"]) if plan["baseline"] else None
    idle_w = (baseline.idle_w if baseline else None) or {}
    load = Estimator(**plan["estimator"]) if plan["estimator"] else None
    parts = [measure_gpu(trace, uuid, settings, idle_w.get(uuid)) for uuid in trace.gpus]
    return [*(parts or _absent_gpus(plan, trace)), *measure_cpu(trace, settings, load, idle_w)]


def record_of(
    trace: Trace, parts: Sequence[Measured], said: Sequence[Warning], *, status: Status
) -> Record:
    """The record with these components; all else (times, work, carbon, phases) is the trace's.

    ``said`` are the warnings about the window; each component's own are added.
    """
    plan = trace.plan
    components = [part.component for part in parts]
    total = total_of(components)
    work = _work(trace)
    if work is not None and work.tokens is not None:
        work.j_per_token = per_token(total, work.tokens)
    warnings = [*said, *(warning for part in parts for warning in part.warnings)]
    return Record(
        record=Attempt(**{**plan["record"], "status": status, "complete": not total.missing}),
        run=Run.model_validate(plan["run"]),
        time=_time(trace),
        env=_env(trace),
        scope=_scope(components, overlaps_of(trace)),
        components=components,
        total=total,
        baseline=Baseline.model_validate(plan["baseline"]) if plan["baseline"] else None,
        phases=phases_of(trace, parts),
        work=work,
        carbon=_carbon(trace, parts, total) if plan["carbon"] else None,
        cost=_cost(trace, parts, total) if plan["carbon"] else None,
        io=_lineage(trace),
        trace=TraceFile(path="", sha256="", rows=len(trace.samples)),
        meter=_meter(trace),
        warnings=warnings or None,
    )


def _gpus_beyond(trace: Trace) -> list[Warning]:
    given = trace.plan["gpus"]
    if not given or len(trace.gpus) <= given:
        return []
    text = f"{len(trace.gpus)} GPUs are visible and charged, the job was given {given}"
    return [Warning(code="more_gpus_than_given", text=text)]


def _absent_gpus(plan: dict[str, Any], trace: Trace) -> list[Measured]:
    """A job that was promised GPUs and none of them could be read misses a component."""
    if not plan["gpus"]:
        return []
    component = Component(
        id="gpu", kind="gpu", quality="missing", method="none", energy_j=None, u95_j=None
    )
    text = f"the job has {plan['gpus']} GPUs, none can be read"
    return [
        Measured(
            component=component,
            curve=[(trace.start_ns, 0.0), (trace.end_ns, 0.0)],
            warnings=[Warning(code="gpu_unreadable", text=text)],
        )
    ]


def _time(trace: Trace) -> Time:
    start_ns, end_ns = trace.start_ns, trace.end_ns
    samples = trace.samples
    step_s = suspended_s = 0.0
    if samples:
        first, last = samples[0], samples[-1]
        step_s = ((last.utc_ns - first.utc_ns) - (last.boot_ns - first.boot_ns)) / 1e9
        suspended_s = max(0.0, ((last.boot_ns - first.boot_ns) - (last.t_ns - first.t_ns)) / 1e9)
    start_utc_ns = _start_utc_ns(trace)
    return Time(
        start_utc=utc(start_utc_ns),
        end_utc=utc(start_utc_ns + end_ns - start_ns),
        duration_s=max(0.0, (end_ns - start_ns) / 1e9),
        start_mono_ns=start_ns,
        end_mono_ns=end_ns,
        clock_step_s=round(step_s, 3),
        suspended_s=round(suspended_s, 3),
    )


def _start_utc_ns(trace: Trace) -> int:
    """When the window opened, by the wall clock of that moment."""
    return int(trace.plan["start_utc_ns"]) + trace.start_ns - int(trace.plan["start_ns"])


def _used(trace: Trace, parts: Sequence[Measured]) -> tuple[tuple[float, float], EnergyBetween]:
    """The window's bounds in seconds since the epoch, and its joules between two such moments."""
    start_s = _start_utc_ns(trace) / 1e9

    def joules(from_s: float, to_s: float) -> float:
        low, high = (trace.start_ns + (at_s - start_s) * 1e9 for at_s in (from_s, to_s))
        known = [part for part in parts if part.component.energy_j is not None]
        return sum(between(part.curve, low, high) for part in known)

    return (start_s, start_s + (trace.end_ns - trace.start_ns) / 1e9), joules


def _carbon(trace: Trace, parts: Sequence[Measured], total: Total) -> Carbon:
    return carbon_of(trace.plan["carbon"], total.energy_j, *_used(trace, parts))


def _cost(trace: Trace, parts: Sequence[Measured], total: Total) -> Cost | None:
    return cost_of(trace.plan["carbon"], total.energy_j, *_used(trace, parts))


def _env(trace: Trace) -> Env:
    env = Env.model_validate(trace.plan["env"])
    gpus = list(trace.gpus.values())
    if gpus:
        env.gpu_model, env.gpu_count, env.driver = gpus[0]["model"], len(gpus), gpus[0]["driver"]
    return env


def _scope(components: list[Component], overlaps: list[str]) -> Scope:
    """`exclusive`: what is charged whole was this job's alone, and something is."""
    known = [one for one in components if one.energy_j is not None]
    kinds = [text for kind, text in PARTS.items() if any(one.kind == kind for one in known)]
    excluded = ["fans", "psu loss", "nic", "storage"]
    if any(one.attribution in ("cpu_time_share", "cgroup", "declared_share") for one in known):
        excluded.append("idle power of shared cpu and memory")
    return Scope(
        boundary=" + ".join(kinds) or "nothing",
        exclusive=not overlaps and any(one.attribution == "whole_device" for one in known),
        excluded=excluded,
    )


def _work(trace: Trace) -> Work | None:
    counted = [event["work"] for event in trace.events if event["e"] == "work"]
    if not counted:
        return None
    last = counted[-1]
    tokens = {name: last[name] for name in Tokens.model_fields if last.get(name)}
    return Work(
        tokens=Tokens(**tokens) if tokens else None,
        samples=last.get("samples"),
        steps=last.get("steps"),
    )


def _lineage(trace: Trace) -> Lineage | None:
    inputs = [Input(**event["file"]) for event in trace.events if event["e"] == "read"]
    outputs = [Output(**event["file"]) for event in trace.events if event["e"] == "made"]
    if not inputs and not outputs:
        return None
    return Lineage(inputs=inputs or None, outputs=outputs or None)


def _meter(trace: Trace) -> Meter:
    end = trace.end or {}
    return Meter(
        name="angelshare",
        version=angelshare.__version__,
        cpu_s=end.get("cpu_s"),
        max_rss_bytes=end.get("max_rss_bytes"),
        period_s=trace.plan["settings"]["period_s"],
    )
