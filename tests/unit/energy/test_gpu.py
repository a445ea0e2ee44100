"""GPU energy against exact integrals: value, bound, cross-check, and what goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from simulated import IDLE_W, UUID, Gpu, bursts, constant, ramp, square, trace_of

from angelshare.energy.curves import Measured, between
from angelshare.energy.gpu import measure_gpu
from angelshare.energy.settings import EnergySettings

SETTINGS = EnergySettings(cpu="none", dram="none")
PEAK_W = 600.0
LOADS: dict[str, Callable[[float], Callable[[float], float]]] = {
    "constant": lambda length: constant(500.0),
    "square": lambda length: square(PEAK_W, 100.0, 0.7),
    "ramp": lambda length: ramp(100.0, PEAK_W, length),
    "bursts": lambda length: bursts(PEAK_W, 150.0, 0.033, 0.11),
}


def measured(gpu: Gpu, lead_s: float = 0.004, idle_w: float | None = None) -> Measured:
    """The window that opens ``lead_s`` before the load and closes as much after it."""
    trace = trace_of(gpu, -lead_s, gpu.length_s + lead_s)
    return measure_gpu(trace, UUID, SETTINGS, idle_w)


def truth(gpu: Gpu, lead_s: float = 0.004) -> float:
    return gpu.truth(gpu.length_s + lead_s) - gpu.truth(-lead_s)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("length_s", [0.2, 1.0, 5.0, 60.0])
def test_within_a_tick_and_within_the_bound(load: str, length_s: float) -> None:
    """200 random phases: within one tick of the truth always, within edge + gap in 95 %."""
    rng = random.Random(f"{load} {length_s}")
    covered = 0
    for _ in range(200):
        gpu = Gpu(LOADS[load](length_s), length_s, phase_s=rng.random() * 0.1)
        component = measured(gpu).component
        assert component.energy_j is not None
        assert component.u is not None
        error_j = abs(component.energy_j - truth(gpu))
        assert error_j <= gpu.tick_s * PEAK_W + 0.001 * truth(gpu)
        assert component.u95_j is not None
        assert error_j <= component.u95_j
        covered += error_j <= (component.u.edge_j95 or 0.0) + (component.u.gap_j95 or 0.0)
    assert covered >= 190


def test_gain_is_covered_and_cancels_in_ratios() -> None:
    long, short = (Gpu(constant(500.0), s, gain=1.05) for s in (20.0, 10.0))
    first, second = measured(long).component, measured(short).component
    assert first.energy_j is not None
    assert second.energy_j is not None
    assert first.u95_j is not None
    assert first.energy_j == pytest.approx(1.05 * truth(long), rel=0.002)
    assert abs(first.energy_j - truth(long)) <= first.u95_j
    assert first.energy_j / second.energy_j == pytest.approx(truth(long) / truth(short), rel=0.002)


def test_crosscheck_agrees_on_a_long_load() -> None:
    gpu = Gpu(square(500.0, 300.0, 1.3), 60.0)
    check = measured(gpu).component.crosscheck
    assert check is not None
    assert check.ok
    assert abs(check.rel_diff) < check.tolerance < 0.03


def test_crosscheck_trips_on_a_part_time_counter() -> None:
    """Bursts locked to the tick: a counter that sees 25 ms of 100 is up to 43 % wrong."""
    gpu = Gpu(bursts(600.0, 200.0, 0.03, 0.1), 30.0, part_s=0.025, phase_s=0.0)
    found = measured(gpu)
    check = found.component.crosscheck
    assert check is not None
    assert not check.ok
    assert "crosscheck" in {warning.code for warning in found.warnings}


def test_a_reset_is_held_listed_and_bounded() -> None:
    gpu = Gpu(constant(500.0), 20.0, reset_s=7.3)
    found = measured(gpu)
    component = found.component
    assert component.energy_j is not None
    assert component.u95_j is not None
    assert component.u is not None
    assert component.counter is not None
    assert component.counter.resets == 1
    assert (component.u.gap_j95 or 0) > 0
    assert abs(component.energy_j - truth(gpu)) <= component.u95_j
    assert {warning.code for warning in found.warnings} == {"counter_reset"}


def test_two_lost_seconds_are_filled_by_the_counter() -> None:
    gpu = Gpu(square(500.0, 100.0, 1.0), 20.0, lost=(5.1, 7.1))
    component = measured(gpu).component
    assert component.energy_j == pytest.approx(truth(gpu), rel=0.005)
    assert component.power is not None
    (gap,) = component.power.gaps or []
    assert gap.filled_by == "counter"
    assert gap.end_s - gap.start_s >= 2.0
    assert component.power.coverage == pytest.approx(1 - (gap.end_s - gap.start_s) / 20.008)


def test_a_gpu_that_stays_lost_is_held_and_said() -> None:
    gpu = Gpu(constant(500.0), 20.0, lost=(10.0, 99.0))
    found = measured(gpu)
    assert found.component.energy_j == pytest.approx(truth(gpu), rel=0.02)
    assert found.component.u is not None
    assert found.component.u.gap_j95 == pytest.approx(500.0 * 10.0, rel=0.1)
    assert found.warnings


def test_without_a_counter_equal_power_is_no_zero() -> None:
    gpu = Gpu(constant(IDLE_W), 10.0, counter=False)
    component = measured(gpu).component
    assert component.method == "nvml_power_average"
    assert component.energy_j == pytest.approx(IDLE_W * 10.008, rel=1e-4)


def test_without_a_counter_a_gap_is_held_listed_and_bounded() -> None:
    gpu = Gpu(constant(500.0), 20.0, counter=False, lost=(5.1, 9.1))
    component = measured(gpu).component
    assert component.u is not None
    assert component.power is not None
    (gap,) = component.power.gaps or []
    assert gap.filled_by == "hold"
    assert component.u.gap_j95 == gap.energy_j
    assert (gap.energy_j or 0.0) > 4 * 450.0


def test_an_unresolved_window_is_null_never_zero() -> None:
    gpu = Gpu(constant(500.0), 0.001)
    found = measured(gpu, lead_s=0.0005)
    assert found.component.energy_j is None
    assert found.component.u95_j is None
    assert [warning.code for warning in found.warnings] == ["unresolved"]


def test_idle_is_subtracted() -> None:
    gpu = Gpu(constant(500.0), 10.0)
    component = measured(gpu, idle_w=IDLE_W).component
    assert component.idle_j == pytest.approx(IDLE_W * 10.008)
    assert component.above_idle_j == pytest.approx(430.0 * 10, rel=0.003)


def test_mig_is_said_or_shared() -> None:
    gpu = Gpu(constant(500.0), 10.0)
    trace = trace_of(gpu, -0.004, 10.004)
    trace.gpus[UUID].update(mig=["MIG-a"], mig_enabled=True, slices=2)
    whole = measure_gpu(trace, UUID, SETTINGS, None)
    assert whole.component.attribution == "whole_device"
    assert [warning.code for warning in whole.warnings] == ["mig_whole_device"]
    slices = SETTINGS.model_copy(update={"mig": "slices"})
    part = measure_gpu(trace, UUID, slices, None)
    assert part.component.attribution == "mig_slices"
    assert part.component.energy_j == pytest.approx((whole.component.energy_j or 0) * 2 / 7)
    assert part.component.device_energy_j == whole.component.energy_j
    assert part.component.crosscheck is not None
    assert part.component.crosscheck.ok


@effort(deadline=None)
@given(
    cuts=st.lists(st.floats(0.0, 1.0), max_size=5),
    phase_s=st.floats(0.0, 0.1),
    length_s=st.floats(0.5, 6.0),
)
def test_contiguous_stretches_add_up(cuts: list[float], phase_s: float, length_s: float) -> None:
    gpu = Gpu(square(500.0, 100.0, 0.7), length_s, phase_s=phase_s)
    found = measured(gpu)
    first, last = found.curve[0][0], found.curve[-1][0]
    marks = sorted([first, *(first + cut * (last - first) for cut in cuts), last])
    parts = [between(found.curve, a, b) for a, b in pairwise(marks)]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(found.component.energy_j)


def test_a_trace_that_breaks_off_says_what_it_did_not_see() -> None:
    trace = trace_of(Gpu(constant(500.0), 20.0), -0.004, 20.004)
    trace.events = [event for event in trace.events if event["e"] == "open"]
    trace.samples = [sample for sample in trace.samples if sample.t_ns < 10 * 10**9]
    assert trace.broken_off
    component = measure_gpu(trace, UUID, SETTINGS, None).component
    assert component.u is not None
    assert (component.u.gap_j95 or 0.0) >= 0.5 * 500.0 * 0.99


def test_a_window_too_short_to_compare_is_not_compared() -> None:
    assert measured(Gpu(constant(500.0), 1.0)).component.crosscheck is None
