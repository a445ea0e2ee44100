"""Sums, bounds, phases and bills against closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from angelshare.energy.attempts import bill_of
from angelshare.energy.curves import Measured, held, scaled
from angelshare.energy.measures import Component, Interval, Total, Uncertainty
from angelshare.energy.sidecar import (
    Attempt,
    Meter,
    Record,
    Run,
    Scope,
    Time,
    Tokens,
    TraceFile,
)
from angelshare.energy.totals import per_token, phases_of, total_of
from angelshare.energy.trace import Trace

SECOND = 10**9


def component(identity: str, joules: float | None, u95_j: float, quality: str) -> Component:
    return Component.model_validate(
        {
            "id": identity,
            "kind": "gpu" if identity.startswith("gpu") else "cpu_package",
            "quality": quality,
            "method": "nvml_counter",
            "energy_j": joules,
            "u95_j": None if joules is None else u95_j,
        }
    )


def test_independent_bounds_in_quadrature_estimates_linearly() -> None:
    parts = [
        component("gpu0", 100.0, 3.0, "measured"),
        component("gpu1", 100.0, 4.0, "measured"),
        component("cpu0", 20.0, 10.0, "estimated"),
        component("dram", 4.0, 2.0, "estimated"),
    ]
    total = total_of(parts)
    assert total.energy_j.value == 224.0
    # sqrt(3^2 + 4^2 + (10 + 2)^2) = 13
    assert (total.energy_j.low, total.energy_j.high) == (211.0, 237.0)
    assert (total.measured_j, total.estimated_j) == (200.0, 24.0)
    assert total.missing == []


def test_missing_is_listed_and_widens_nothing() -> None:
    parts = [
        component("gpu0", 100.0, 5.0, "measured"),
        component("cpu0", None, 0.0, "missing"),
    ]
    total = total_of(parts)
    assert total.missing == ["cpu0"]
    assert (total.energy_j.low, total.energy_j.high) == (95.0, 105.0)


def window_of(*events: tuple[str, str, float]) -> Trace:
    """A 10 s window with phase events at the given seconds."""
    marks = [{"e": kind, "name": name, "t": round(at * SECOND)} for kind, name, at in events]
    edges = [{"e": "open", "t": 0}, *marks, {"e": "close", "t": 10 * SECOND}]
    return Trace(plan={"start_ns": 0}, events=edges)


def stepped() -> Measured:
    """100 W for 4 s, then 300 W for 6 s: 2200 J."""
    curve = [(0, 0.0), (4 * SECOND, 400.0), (10 * SECOND, 2200.0)]
    return Measured(component=component("gpu0", 2200.0, 1.0, "measured"), curve=curve)


def test_phases_and_their_shift_in_closed_form() -> None:
    trace = window_of(("begin", "b", 2.0), ("end", "b", 6.0), ("begin", "c", 6.0))
    first, second = phases_of(trace, [stepped()])
    # 2 s at 100 W and 2 s at 300 W; 5 % of 4 s are 0.2 s: each shift trades 100 W for 300 W.
    assert (first.name, first.start_s, first.end_s) == ("b", 2.0, 6.0)
    assert first.energy_j == pytest.approx(800.0)
    assert first.shift_plus5pct_j == pytest.approx(0.2 * 300 - 0.2 * 100)
    assert first.shift_minus5pct_j == pytest.approx(0.2 * 100 - 0.2 * 300)
    # The unfinished phase lasts until the window's end and cannot move beyond it.
    assert (second.name, second.end_s) == ("c", 10.0)
    assert second.energy_j == pytest.approx(1200.0)
    assert second.shift_plus5pct_j == pytest.approx(-0.2 * 300)
    assert second.shift_minus5pct_j == pytest.approx(0.0)


def test_nested_phases() -> None:
    trace = window_of(
        ("begin", "outer", 0.0), ("begin", "inner", 1.0), ("end", "inner", 2.0), ("end", "outer", 4)
    )
    joules = {phase.name: phase.energy_j for phase in phases_of(trace, [stepped()])}
    assert joules == pytest.approx({"outer": 400.0, "inner": 100.0})


def test_joules_per_token_names_its_parts() -> None:
    total = total_of([component("gpu0", 100.0, 10.0, "measured")])
    ratio = per_token(total, Tokens(prompt=1000, generated=50))
    assert ratio is not None
    assert ratio.denominator == "work.tokens.generated"
    assert (ratio.value.value, ratio.value.low) == (2.0, 1.8)
    assert per_token(total, Tokens()) is None


@effort(deadline=None)
@given(
    watts=st.lists(st.floats(0, 1000), min_size=1, max_size=20),
    spacing=st.lists(st.integers(1, 10**9), min_size=20, max_size=20),
)
def test_held_power_is_the_sum_of_its_steps(watts: list[float], spacing: list[int]) -> None:
    times = [sum(spacing[:i]) for i in range(len(watts) + 1)]
    points = list(zip(times, watts, strict=False))
    curve = held(points, 0, times[-1])
    steps = zip(watts, spacing, strict=False)
    assert curve[-1][1] == pytest.approx(sum(w * s / 1e9 for w, s in steps), abs=1e-9)
    assert scaled(curve, 7.0)[-1][1] == pytest.approx(7.0)


def record(status: str, joules: float, gain: float, edge_j: float) -> Record:
    bound = (gain**2 + edge_j**2) ** 0.5
    part = component("gpu0", joules, bound, "measured")
    part.u = Uncertainty(edge_j95=edge_j)
    attempt = {"id": status, "rule": "r", "stage": "s", "attempt": 1, "status": status}
    return Record(
        record=Attempt.model_validate({**attempt, "complete": True}),
        run=Run(workflow_id="", host="h"),
        time=Time(start_utc="a", end_utc="b", duration_s=1, start_mono_ns=0, end_mono_ns=1),
        scope=Scope(boundary="", exclusive=True),
        components=[part],
        total=Total(
            energy_j=Interval(value=joules, low=joules - bound, high=joules + bound),
            measured_j=joules,
            estimated_j=0.0,
            missing=[],
        ),
        trace=TraceFile(path="", sha256="", rows=0),
        meter=Meter(name="m", version="1"),
    )


def test_the_bill_adds_gain_linearly_and_edges_in_quadrature() -> None:
    records = [
        record("killed", 100.0, gain=5.0, edge_j=3.0),
        record("running", 0.0, gain=0.0, edge_j=0.0),
        record("ok", 200.0, gain=10.0, edge_j=4.0),
    ]
    bill = bill_of(records)
    assert (bill.attempts, bill.energy_j, bill.wasted_j) == (3, 300.0, 100.0)
    # sqrt((5 + 10)^2 + 3^2 + 4^2)
    assert bill.u95_j == pytest.approx((15.0**2 + 25.0) ** 0.5)


@effort(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ok", "failed", "killed"]), st.floats(0, 1e6))))
def test_a_bill_loses_nothing(attempts: list[tuple[str, float]]) -> None:
    bill = bill_of([record(status, joules, 0.0, 0.0) for status, joules in attempts])
    assert bill.energy_j == pytest.approx(sum(joules for _, joules in attempts))
    useful = sum(joules for status, joules in attempts if status == "ok")
    assert bill.wasted_j + useful == pytest.approx(bill.energy_j)


def test_a_phase_of_every_batch_is_one() -> None:
    trace = window_of(
        *(("begin", "p", 0.0), ("end", "p", 1.0), ("begin", "d", 1.0), ("end", "d", 3.0)),
        *(("begin", "p", 3.0), ("end", "p", 5.0), ("begin", "d", 5.0), ("end", "d", 6.0)),
    )
    prefill, decode = phases_of(trace, [stepped()])
    # 100 W until 4 s, 300 W after.
    assert (prefill.name, prefill.times, prefill.start_s, prefill.end_s) == ("p", 2, 0.0, 5.0)
    assert (prefill.energy_j, decode.energy_j) == pytest.approx((500.0, 500.0))
