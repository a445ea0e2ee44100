"""Joules of CPU packages and memory: RAPL where it is readable, codecarbon's load model elsewhere.

RAPL measures the package; the job is charged its share of the machine's CPU time, interval by
interval. The load model charges ``TDP x CPU seconds of the process tree / threads``, codecarbon's
own process mode, and for memory ``power x resident / installed``. An estimate is never called
better than its stated band, and idle power of shared devices is nobody's.
"""

from __future__ import annotations

from itertools import pairwise
from math import hypot
from typing import Any, Literal

from angelshare.energy.constants import Estimator
from angelshare.energy.curves import Measured, clipped, held, sampling_of
from angelshare.energy.measures import Component, CounterReading, Device, Power, Uncertainty
from angelshare.energy.probes.process_tree import TICK_S
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import Warning
from angelshare.energy.trace import Trace

IMPLAUSIBLE_W = 5000.0


def measure_cpu(
    trace: Trace, settings: EnergySettings, load: Estimator | None, idle_w: dict[str, float]
) -> list[Measured]:
    """CPU packages and memory of the window, one component each; missing ones are listed."""
    if not trace.samples:
        return [_missing(trace, "cpu0", "cpu_package"), _missing(trace, "dram", "dram")]
    kinds: dict[str, list[Measured]] = {"cpu_package": [], "dram": []}
    for zone in trace.zones.values():
        kinds[zone["kind"]].append(_rapl(trace, zone, settings, idle_w.get(zone["id"])))
    if settings.cpu in ("none", "estimate"):
        kinds["cpu_package"] = []
    if not kinds["cpu_package"]:
        estimate = settings.cpu in ("auto", "estimate") and load is not None
        kinds["cpu_package"] = [
            _load(trace, load, settings)
            if estimate and load is not None
            else _missing(trace, "cpu0", "cpu_package")
        ]
    if settings.dram == "none":
        kinds["dram"] = []
    if not kinds["dram"]:
        estimate = settings.dram == "auto" and load is not None
        kinds["dram"] = [
            _memory(trace, load, settings)
            if estimate and load is not None
            else _missing(trace, "dram", "dram")
        ]
    found = kinds["cpu_package"] + kinds["dram"]
    for part in found:
        if part.component.energy_j == 0.0 and part.component.kind == "cpu_package":
            part.component.energy_j = part.component.u95_j = None
            text = f"{part.component.id}: too short to resolve, the counter did not move"
            part.warnings.append(Warning(code="unresolved", text=text))
        if part.component.energy_j is not None:
            part.component.power = _sampling(trace, part, settings.period_s)
    return found


def _sampling(trace: Trace, part: Measured, period_s: float) -> Power:
    """How well the part's readings cover the window; resident memory alone is no counter."""
    component = part.component
    times = [
        sample.t_ns
        for sample in trace.samples
        if component.method != "rapl" or sample.rapl.get(component.id) is not None
    ]
    by_counter = component.method == "rapl" or component.kind == "cpu_package"
    bounds = trace.start_ns, trace.end_ns
    power = sampling_of(times, bounds, period_s, part.curve, by_counter)
    power.avg_w = (component.energy_j or 0.0) / max(1e-9, (bounds[1] - bounds[0]) / 1e9)
    return power


def _missing(trace: Trace, identity: str, kind: Literal["cpu_package", "dram"]) -> Measured:
    component = Component(
        id=identity, kind=kind, quality="missing", method="none", energy_j=None, u95_j=None
    )
    return Measured(component=component, curve=[(trace.start_ns, 0.0), (trace.end_ns, 0.0)])


def job_cpu(trace: Trace) -> list[tuple[int, float]]:
    """Cumulative CPU seconds of the job: its control group's where recorded, else its processes'.

    A sampler that was replaced starts its sum over the processes again.
    """
    total_s, points = 0.0, [(trace.samples[0].t_ns, 0.0)]
    for before, sample in pairwise(trace.samples):
        if sample.cgroup_s is not None and before.cgroup_s is not None:
            step_s = sample.cgroup_s - before.cgroup_s
        else:
            step_s = sample.cpu_s - before.cpu_s
        total_s += max(0.0, step_s)
        points.append((sample.t_ns, total_s))
    return points


def _until(
    points: list[tuple[int, float]], end_ns: int, period_s: float
) -> list[tuple[int, float]]:
    """The points up to the end. What the sample just after it saw was used before it: children
    that were waited for at the last moment are not cut in two."""
    inside = [point for point in points if point[0] < end_ns]
    late = points[len(inside) :][:1]
    if late and late[0][0] - end_ns <= period_s * 1e9:
        late = [(end_ns, late[0][1])]
    return inside + late


def _attribution(trace: Trace) -> Literal["cgroup", "cpu_time_share"]:
    return "cgroup" if trace.samples[0].cgroup_s is not None else "cpu_time_share"


def _load(trace: Trace, load: Estimator, settings: EnergySettings) -> Measured:
    watts = load.cpu_tdp_w / load.threads
    seen = _until(job_cpu(trace), trace.end_ns, settings.period_s)
    curve = clipped([(t, seconds * watts) for t, seconds in seen], trace.start_ns, trace.end_ns)
    duration_s = (trace.end_ns - trace.start_ns) / 1e9
    energy_j = curve[-1][1]
    full_j = load.cpu_tdp_w * duration_s
    component = Component(
        id="cpu0",
        kind="cpu_package",
        device=Device(model=load.cpu_model, power_limit_w=load.cpu_tdp_w, power_scope="package"),
        quality="estimated",
        method="load_model",
        attribution=_attribution(trace),
        share=energy_j / full_j if full_j else 0.0,
        energy_j=energy_j,
        u95_j=hypot(settings.model_rel95 * energy_j, TICK_S * watts),
        u=Uncertainty(model_rel95=settings.model_rel95, edge_j95=TICK_S * watts),
    )
    component.device.source = load.cpu_source  # type: ignore[union-attr]
    return Measured(component=component, curve=curve)


def _memory(trace: Trace, load: Estimator, settings: EnergySettings) -> Measured:
    watts_per_byte = load.dram_w / load.dram_bytes
    points = [(sample.t_ns, sample.rss_bytes * watts_per_byte) for sample in trace.samples]
    curve = held(points, trace.start_ns, trace.end_ns)
    energy_j = curve[-1][1]
    full_j = load.dram_w * (trace.end_ns - trace.start_ns) / 1e9
    component = Component(
        id="dram",
        kind="dram",
        device=Device(power_limit_w=load.dram_w),
        quality="estimated",
        method="load_model",
        attribution="declared_share",
        share=energy_j / full_j if full_j else 0.0,
        energy_j=energy_j,
        u95_j=settings.model_rel95 * energy_j,
        u=Uncertainty(model_rel95=settings.model_rel95),
    )
    component.device.source = load.source  # type: ignore[union-attr]
    return Measured(component=component, curve=curve)


def _rapl(
    trace: Trace, zone: dict[str, Any], settings: EnergySettings, idle_w: float | None
) -> Measured:
    whole, wraps, lost_j = _unwrap(trace, zone["id"], zone["range_uj"])
    start_ns, end_ns = trace.start_ns, trace.end_ns
    if len(whole) < 2:
        return _missing(trace, zone["id"], zone["kind"])
    device_j = clipped(whole, start_ns, end_ns)[-1][1]
    shared = settings.cpu_attribution != "whole_device"
    curve = clipped(_shared(trace, whole) if shared else whole, start_ns, end_ns)
    energy_j = curve[-1][1]
    share = energy_j / device_j if device_j else 0.0
    tail_j = device_j * max(0.0, end_ns - whole[-1][0]) / max(1, whole[-1][0] - start_ns)
    attribution = 0.5 * (1 - min(1.0, share)) if shared else 0.0
    unseen_j = device_j * settings.period_s * 1e9 / max(1, end_ns - start_ns)
    own_j = (lost_j + tail_j + (unseen_j if trace.broken_off else 0.0)) * share
    readings = [sample.rapl.get(zone["id"]) for sample in trace.samples]
    values = [value for value in readings if value is not None]
    component = Component(
        id=zone["id"],
        kind=zone["kind"],
        device=Device(model=zone["name"], power_scope="package"),
        quality="measured",
        method="rapl",
        attribution=_attribution(trace) if shared else "whole_device",
        share=share,
        energy_j=energy_j,
        device_energy_j=device_j if shared else None,
        u95_j=hypot(settings.rapl_rel95 * energy_j, attribution * energy_j, own_j),
        u=Uncertainty(gain_rel95=settings.rapl_rel95, attribution_rel95=attribution, gap_j95=own_j),
        counter=CounterReading(
            start=values[0], end=values[-1], unit="uJ", wraps=wraps, resets=0 if not lost_j else 1
        ),
    )
    if idle_w is not None:
        component.idle_j = idle_w * (end_ns - start_ns) / 1e9 * share
        component.above_idle_j = energy_j - component.idle_j
    warnings = []
    if lost_j:
        text = f"{component.id}: the counter was reset; {lost_j:.0f} J are held power"
        warnings.append(Warning(code="counter_reset", text=text))
    return Measured(component=component, curve=curve, warnings=warnings)


def _unwrap(trace: Trace, zone: str, range_uj: int) -> tuple[list[tuple[int, float]], int, float]:
    """Joules of the zone since the first sample, its wraps, and joules that are only held power."""
    readings = [
        (sample.t_ns, value)
        for sample in trace.samples
        if (value := sample.rapl.get(zone)) is not None
    ]
    energy_j, wraps, lost_j, watts = 0.0, 0, 0.0, 0.0
    curve = [(readings[0][0], 0.0)] if readings else []
    for (t0, before), (t1, now) in pairwise(readings):
        seconds = (t1 - t0) / 1e9
        step_j = (now - before) / 1e6
        if step_j < 0:
            step_j += range_uj / 1e6
            wraps += 1
            if step_j < 0 or step_j / seconds > IMPLAUSIBLE_W:
                step_j, wraps = watts * seconds, wraps - 1
                lost_j += step_j
        watts = step_j / seconds
        energy_j += step_j
        curve.append((t1, energy_j))
    return curve, wraps, lost_j


def _shared(trace: Trace, whole: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The job's part of the package: its share of busy CPU time in each interval."""
    times = {sample.t_ns: sample for sample in trace.samples}
    job_s = dict(job_cpu(trace))
    energy_j, curve = 0.0, [(whole[0][0], 0.0)]
    for (t0, before_j), (t1, now_j) in pairwise(whole):
        busy_s = times[t1].busy_s - times[t0].busy_s
        own_s = job_s[t1] - job_s[t0]
        share = own_s / max(busy_s, own_s) if own_s > 0 else 0.0
        energy_j += (now_j - before_j) * share
        curve.append((t1, energy_j))
    return curve
