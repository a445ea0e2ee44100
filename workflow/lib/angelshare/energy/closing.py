"""From a trace to a record: the one way in which a window is closed, whoever closes it.

The job closes its own window; when it was killed its sampler does (``python -m``); when both are
dead the next reader of the folder does. All three call :func:`close_attempt`.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import angelshare
from angelshare.energy.carbon import carbon_of, cost_of
from angelshare.energy.constants import Estimator
from angelshare.energy.cpu import measure_cpu
from angelshare.energy.curves import Measured, between
from angelshare.energy.gpu import measure_gpu
from angelshare.energy.measures import Baseline, Component, Total
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import (
    Attempt,
    Carbon,
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
from angelshare.energy.totals import overlaps_of, per_token, phases_of, total_of, warnings_of
from angelshare.energy.trace import Trace, read_parquet, read_text, write_parquet
from angelshare.files import publish_json, sha256_file

Status = Literal["ok", "failed", "killed", "preempted", "running"]
PARTS = {"gpu": "gpu board", "cpu_package": "cpu package", "dram": "dram"}


def text_trace(attempt: Path) -> Path:
    """Where the trace of a running attempt is."""
    return attempt.with_suffix(".trace.jsonl")


def parquet_trace(attempt: Path) -> Path:
    """Where the trace of a closed attempt is."""
    return attempt.with_suffix(".trace.parquet")


def utc(ns: int) -> str:
    """Nanoseconds since the epoch as ISO 8601 with milliseconds."""
    moment = datetime.fromtimestamp(ns / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def close_attempt(
    attempt: Path,
    *,
    status: Status,
    closed_by: Literal["meter", "sweeper"],
    exit_code: int | None = None,
    signal: int | None = None,
    trace: Trace | None = None,
) -> Record:
    """Compute and publish the record of ``attempt`` from its trace; the trace becomes Parquet.

    ``trace`` replaces the one beside the record. Raises OSError or ValueError when there is none.
    """
    if trace is None:
        text = text_trace(attempt)
        trace = read_text(text) if text.exists() else read_parquet(parquet_trace(attempt))
    columns = write_parquet(trace, parquet_trace(attempt))
    record = compute(trace, status=status)
    record.record.closed_by = closed_by
    record.record.complete &= not trace.broken_off
    record.record.exit_code = exit_code
    record.record.signal = signal
    record.trace = TraceFile(
        path=parquet_trace(attempt).name,
        format="parquet",
        sha256=sha256_file(parquet_trace(attempt)),
        rows=len(trace.samples),
        columns=columns,
        torn_rows=trace.torn_rows,
    )
    publish_json(attempt, record.to_json())
    text_trace(attempt).unlink(missing_ok=True)
    Path(trace.plan["live"]).unlink(missing_ok=True)
    return record


def compute(trace: Trace, *, status: Status = "ok") -> Record:
    """The record that a trace gives; equal traces give equal joules."""
    plan = trace.plan
    settings = EnergySettings.model_validate(plan["settings"])
    baseline = Baseline.model_validate(plan["baseline"]) if plan["baseline"] else None
    idle_w = (baseline.idle_w if baseline else None) or {}
    load = Estimator(**plan["estimator"]) if plan["estimator"] else None
    parts = [
        measure_gpu(trace, uuid, settings, idle_w.get(uuid)) for uuid in trace.gpus
    ] or _absent_gpus(plan, trace)
    parts += measure_cpu(trace, settings, load, idle_w)
    components = [part.component for part in parts]
    total = total_of(components)
    time = _time(trace)
    work = _work(trace)
    if work is not None and work.tokens is not None:
        work.j_per_token = per_token(total, work.tokens)
    found = warnings_of(trace, parts)
    if plan["gpus"] and len(trace.gpus) > plan["gpus"]:
        text = f"{len(trace.gpus)} GPUs are visible and charged, the job was given {plan['gpus']}"
        found.append(Warning(code="more_gpus_than_given", text=text))
    return Record(
        record=Attempt(**{**plan["record"], "status": status, "complete": not total.missing}),
        run=Run.model_validate(plan["run"]),
        time=time,
        env=_env(trace),
        scope=_scope(components, overlaps_of(trace)),
        components=components,
        total=total,
        baseline=baseline,
        phases=phases_of(trace, parts) or None,
        work=work,
        carbon=_carbon(trace, parts, total) if plan["carbon"] else None,
        cost=cost_of(plan["carbon"], total.energy_j) if plan["carbon"] else None,
        io=_lineage(trace),
        trace=TraceFile(path="", sha256="", rows=len(trace.samples)),
        meter=_meter(trace, settings),
        warnings=found or None,
    )


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


def _carbon(trace: Trace, parts: list[Measured], total: Total) -> Carbon:
    start_s = _start_utc_ns(trace) / 1e9
    bounds_s = start_s, start_s + (trace.end_ns - trace.start_ns) / 1e9

    def joules(from_s: float, to_s: float) -> float:
        low, high = (trace.start_ns + (at_s - start_s) * 1e9 for at_s in (from_s, to_s))
        known = [part for part in parts if part.component.energy_j is not None]
        return sum(between(part.curve, low, high) for part in known)

    return carbon_of(trace.plan["carbon"], total.energy_j, bounds_s, joules)


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


def _meter(trace: Trace, settings: EnergySettings) -> Meter:
    end = trace.end or {}
    return Meter(
        name="angelshare",
        version=angelshare.__version__,
        cpu_s=end.get("cpu_s"),
        max_rss_bytes=end.get("max_rss_bytes"),
        period_s=settings.period_s,
    )


def main() -> None:
    """Close the record of a job that died; run by its sampler with the record's path."""
    from angelshare.energy.attempts import read_record, settle

    attempt = Path(sys.argv[1])
    if read_record(attempt).record.status == "running":
        close_attempt(attempt, status="killed", closed_by="meter")
        settle(attempt)


if __name__ == "__main__":
    os.umask(0o022)
    main()
