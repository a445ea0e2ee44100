"""What one GPU cost: its energy counter is the value, integrated power the check.

Without a counter, power is held from sample to sample over the exact bounds; the sensor's lag then
bounds the edges. The board's gain error (about 5 %, systematic) is part of every bound.
"""

from __future__ import annotations

from math import hypot
from typing import Any, Literal

from angelshare.energy.counters import (
    DEFAULT_TICK_S,
    Counted,
    Row,
    energy_between,
    unwrap,
)
from angelshare.energy.curves import Curve, Measured, clipped, held, sampling_of, scaled
from angelshare.energy.measures import (
    Component,
    CounterReading,
    Crosscheck,
    Device,
    Power,
    Uncertainty,
)
from angelshare.energy.probes.nvml import COLUMNS
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import Warning
from angelshare.energy.trace import Trace

MIG_SLICES = 7
AVERAGE_LAG_S = 1.0
PowerMethod = Literal["nvml_power_average", "nvml_power_instant"]


def rows_of(trace: Trace, uuid: str) -> list[Row]:
    """All readings of one GPU in which its energy or power could be read."""
    found = []
    for sample in trace.samples:
        values = sample.gpu.get(uuid)
        if values is None or values[0] is None or all(one is None for one in values[2:6]):
            continue
        found.append(Row(*values[: len(Row._fields)]))  # type: ignore[arg-type]
    return sorted(found)


def measure_gpu(
    trace: Trace, uuid: str, settings: EnergySettings, idle_w: float | None
) -> Measured:
    """What GPU ``uuid`` used within the window; ``idle_w`` is its measured idle power, if any."""
    device = trace.gpus[uuid]
    bounds = trace.start_ns, trace.end_ns
    rows = rows_of(trace, uuid)
    power, method = _power_points(rows)
    counted = unwrap(rows, power, trace.end_ns)
    if counted.ticks:
        measured = _by_counter(counted, rows, bounds, idle_w)
    else:
        measured = _by_power(power, method, bounds)
    component = measured.component
    component.id = f"gpu{device['index']}"
    component.device = _device(device)
    component.power = _power(measured, rows, power, bounds, settings.period_s)
    if component.energy_j is None:
        return measured
    if trace.broken_off and component.u is not None:
        unseen_j = (power[-1][1] if power else 0.0) * settings.period_s
        component.u.gap_j95 = (component.u.gap_j95 or 0.0) + unseen_j
    _attribute(measured, device, settings)
    _bound(component, settings.gain_rel95)
    if counted.ticks:
        _crosscheck(measured, power, method, settings, bounds)
    if idle_w is not None:
        component.idle_j = idle_w * (bounds[1] - bounds[0]) / 1e9 * (component.share or 1.0)
        component.above_idle_j = component.energy_j - component.idle_j
    measured.curve = scaled(measured.curve, component.energy_j)
    return measured


def _device(device: dict[str, Any]) -> Device:
    names = ("uuid", "model", "driver", "index", "power_limit_w", "power_scope")
    return Device(**{name: device[name] for name in names}, mig=",".join(device["mig"]) or None)


def _power_points(rows: list[Row]) -> tuple[list[tuple[int, float]], PowerMethod]:
    """(time, watts) from the steadiest sensor there is, and its method's name."""
    columns: tuple[tuple[str, PowerMethod], ...] = (
        ("average_mw", "nvml_power_average"),
        ("instant_mw", "nvml_power_instant"),
        ("usage_mw", "nvml_power_instant"),
    )
    for column, method in columns:
        values = [(row.t_ns, getattr(row, column)) for row in rows]
        points = [(t_ns, value / 1e3) for t_ns, value in values if value is not None]
        if points:
            return points, method
    return [], "nvml_power_instant"


def _by_counter(
    counted: Counted, rows: list[Row], bounds: tuple[int, int], idle_w: float | None
) -> Measured:
    edges = energy_between(counted, rows, bounds, idle_w)
    values = [row.counter_mj for row in rows if row.counter_mj is not None]
    component = Component(
        id="",
        kind="gpu",
        quality="measured",
        method="nvml_counter",
        energy_j=max(0.0, edges.energy_j),
        u95_j=None,
        u=Uncertainty(edge_j95=edges.u95_j, gap_j95=counted.held_j),
        counter=CounterReading(
            start=values[0],
            end=values[-1],
            unit="mJ",
            wraps=0,
            resets=counted.resets,
            ticks=sum(bounds[0] <= tick.t_ns <= bounds[1] for tick in counted.ticks),
            update_ms_p50=counted.tick_s * 1e3,
            pre_pad_s=edges.pre_pad_s,
            post_pad_s=edges.post_pad_s,
        ),
    )
    measured = Measured(component=component, curve=clipped(counted.curve, *bounds))
    if counted.held_j:
        what, code = "the device did not answer", "gpu_lost"
        if counted.resets:
            what, code = f"its counter was reset {counted.resets} times", "counter_reset"
        text = f"{what}: {counted.held_j:.1f} J are its last known power, held"
        measured.warnings.append(Warning(code=code, text=text))
    if edges.energy_j <= edges.u95_j:
        component.energy_j, component.quality = None, "missing"
        text = f"too short to resolve: {edges.energy_j:.2f} J, known to {edges.u95_j:.2f} J"
        measured.warnings.append(Warning(code="unresolved", text=text))
    return measured


def _by_power(power: Curve, method: PowerMethod, bounds: tuple[int, int]) -> Measured:
    """Held power where there is no counter."""
    component = Component(
        id="", kind="gpu", quality="missing", method="none", energy_j=None, u95_j=None
    )
    curve = held(power, *bounds)
    if not curve:
        text = "neither the energy counter nor power could be read"
        warning = Warning(code="gpu_unreadable", text=text)
        nothing = [(bounds[0], 0.0), (bounds[1], 0.0)]
        return Measured(component=component, curve=nothing, warnings=[warning])
    watts = [one for _, one in power]
    component.quality, component.method, component.energy_j = "measured", method, curve[-1][1]
    edge_j = 2 * _lag_s(method) * (max(watts) - min(watts))
    component.u = Uncertainty(edge_j95=edge_j, gap_j95=0.0)
    return Measured(component=component, curve=curve)


def _lag_s(method: PowerMethod) -> float:
    return AVERAGE_LAG_S if method == "nvml_power_average" else DEFAULT_TICK_S


def _power(
    measured: Measured, rows: list[Row], power: Curve, bounds: tuple[int, int], period_s: float
) -> Power:
    """Statistics of the samples; a gap that power alone filled enters the bound."""
    component = measured.component
    by_counter = component.method == "nvml_counter"
    times = [row.t_ns for row in rows if not by_counter or row.counter_mj is not None]
    found = sampling_of(times, bounds, period_s, measured.curve, by_counter)
    watts = [one for t_ns, one in power if bounds[0] <= t_ns <= bounds[1]]
    inside = [row for row in rows if bounds[0] <= row.t_ns <= bounds[1]]
    utils = [row.util_percent for row in inside if row.util_percent is not None]
    memory = [row.memory_bytes for row in inside if row.memory_bytes is not None]
    if component.energy_j is not None:
        found.avg_w = component.energy_j / max(1e-9, (bounds[1] - bounds[0]) / 1e9)
    found.min_w, found.max_w = min(watts, default=None), max(watts, default=None)
    found.distinct = len(set(watts))
    found.util_percent = sum(utils) / len(utils) if utils else None
    found.used_gb = max(memory) / 2**30 if memory else None
    if component.u is not None and not by_counter:
        component.u.gap_j95 = sum(gap.energy_j or 0.0 for gap in found.gaps or [])
    return found


def _attribute(measured: Measured, device: dict[str, Any], settings: EnergySettings) -> None:
    """Whole device, or by MIG compute slices where that was asked for; MIG is always said."""
    component = measured.component
    component.attribution, component.share = "whole_device", 1.0
    if device["mig"] and settings.mig == "slices" and device["slices"]:
        component.attribution, component.share = "mig_slices", device["slices"] / MIG_SLICES
        component.device_energy_j = component.energy_j
        component.energy_j = (component.energy_j or 0.0) * component.share
        text = f"MIG: charged {device['slices']} of {MIG_SLICES} slices of the whole GPU's energy"
        measured.warnings.append(Warning(code="mig_slices", text=text))
    elif device["mig"] or device["mig_enabled"]:
        text = "MIG has no energy of its own: the whole GPU's is charged"
        measured.warnings.append(Warning(code="mig_whole_device", text=text))


def _bound(component: Component, gain_rel95: float) -> None:
    assert component.u is not None
    assert component.energy_j is not None
    component.u.gain_rel95 = gain_rel95
    share = component.share or 1.0
    own_j = hypot(component.u.edge_j95 or 0.0, component.u.gap_j95 or 0.0) * share
    component.u95_j = hypot(gain_rel95 * component.energy_j, own_j)


def _crosscheck(
    measured: Measured,
    power: Curve,
    method: PowerMethod,
    settings: EnergySettings,
    bounds: tuple[int, int],
) -> None:
    """Compare with integrated power.

    A mean over the last second shows power half a second late: what the end still owes and the
    start already held is put right by their difference, and half of that widens the tolerance. A
    window shorter than two such lags is not compared.
    """
    component = measured.component
    curve = held(power, *bounds)
    whole_j = component.device_energy_j or component.energy_j
    covered = component.power is not None and (component.power.coverage or 0.0) >= 0.9
    too_short = bounds[1] - bounds[0] < 2e9 * _lag_s(method)
    if not curve or not whole_j or not covered or too_short:
        return
    inside = [watts for t_ns, watts in power if t_ns <= bounds[1]]
    before = [watts for t_ns, watts in power if t_ns <= bounds[0]] or inside[:1]
    late_j = _lag_s(method) / 2 * (inside[-1] - before[-1])
    swing_w = max(inside) - min(inside)
    slack = _lag_s(method) / 4 * swing_w / whole_j
    check_j = curve[-1][1] + late_j
    rel_diff = check_j / whole_j - 1
    component.crosscheck = Crosscheck(
        method=method,
        energy_j=check_j,
        rel_diff=rel_diff,
        tolerance=settings.crosscheck_warn + slack,
        ok=abs(rel_diff) <= settings.crosscheck_fail + slack,
    )
    if abs(rel_diff) > component.crosscheck.tolerance:
        text = f"{component.id}: integrated power differs from the counter by {rel_diff:+.1%}"
        measured.warnings.append(Warning(code="crosscheck", text=text))


assert COLUMNS[: len(Row._fields)] == Row._fields
