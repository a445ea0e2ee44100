"""Cumulative energy over time: joules since the window opened, at nanoseconds of CLOCK_MONOTONIC.

A phase's energy is a difference of two points, so contiguous phases add up to the window exactly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from angelshare.energy.measures import Component, Gap, Power
from angelshare.energy.sidecar import Warning

Curve = Sequence[tuple[int, float]]
GAP_PERIODS = 2.5


@dataclass(kw_only=True)
class Measured:
    """A component, its cumulative curve over the window, and what a reader must know."""

    component: Component
    curve: Curve
    warnings: list[Warning] = field(default_factory=list)


def value_at(curve: Curve, t_ns: float) -> float:
    """The curve at ``t_ns``, linear between its points and constant beyond its ends."""
    place = bisect_right(curve, t_ns, key=lambda point: point[0])
    if place == 0:
        return curve[0][1] if curve else 0.0
    if place == len(curve):
        return curve[-1][1]
    (t0, e0), (t1, e1) = curve[place - 1], curve[place]
    return e0 + (e1 - e0) * (t_ns - t0) / (t1 - t0)


def between(curve: Curve, start_ns: float, end_ns: float) -> float:
    """Joules from ``start_ns`` to ``end_ns``."""
    return value_at(curve, end_ns) - value_at(curve, start_ns)


def held(points: Curve, start_ns: int, end_ns: int) -> list[tuple[int, float]]:
    """The running integral of watts over the exact bounds; each reading holds until the next one.

    ``points`` are (time, watts). Equal readings are kept; before the first reading its value holds.
    """
    inside = [point for point in points if start_ns < point[0] < end_ns]
    before = [watts for t_ns, watts in points if t_ns <= start_ns]
    if not points:
        return []
    first_w = before[-1] if before else points[0][1]
    steps = [(start_ns, first_w), *inside, (end_ns, 0.0)]
    energy_j, curve = 0.0, [(start_ns, 0.0)]
    for (t0, watts), (t1, _) in pairwise(steps):
        energy_j += watts * (t1 - t0) / 1e9
        curve.append((t1, energy_j))
    return curve


def clipped(curve: Curve, start_ns: int, end_ns: int) -> list[tuple[int, float]]:
    """The part within the bounds, starting at zero joules, with points at both bounds."""
    base_j = value_at(curve, start_ns)
    inside = [(t, energy - base_j) for t, energy in curve if start_ns < t < end_ns]
    return [(start_ns, 0.0), *inside, (end_ns, value_at(curve, end_ns) - base_j)]


def scaled(curve: Curve, total_j: float) -> list[tuple[int, float]]:
    """The curve stretched so that it ends at ``total_j``; a flat one grows evenly in time."""
    last_j = curve[-1][1]
    if last_j > 0:
        return [(t, energy * total_j / last_j) for t, energy in curve]
    start_ns, end_ns = curve[0][0], curve[-1][0]
    length = max(1, end_ns - start_ns)
    return [(t, total_j * (t - start_ns) / length) for t, _ in curve]


def sampling_of(
    times: list[int], bounds: tuple[int, int], period_s: float, curve: Curve, by_counter: bool
) -> Power:
    """How well the readings at ``times`` cover the window; a pause of 2.5 periods is a gap.

    A cumulative counter fills a gap exactly, held power fills it with what is listed.
    """
    start_ns, end_ns = bounds
    inside = [t_ns for t_ns in times if start_ns < t_ns < end_ns]
    edges = [start_ns, *inside, end_ns]
    spacings_ms = sorted((b - a) / 1e6 for a, b in pairwise(edges))
    gaps = [
        Gap(
            start_s=(a - start_ns) / 1e9,
            end_s=(b - start_ns) / 1e9,
            filled_by="counter" if by_counter else "hold",
            energy_j=between(curve, a, b),
        )
        for a, b in pairwise(edges)
        if b - a > GAP_PERIODS * period_s * 1e9
    ]
    duration_s = max(1e-9, (end_ns - start_ns) / 1e9)
    return Power(
        samples=len(inside),
        period_ms_target=period_s * 1e3,
        period_ms_p50=spacings_ms[len(spacings_ms) // 2],
        period_ms_p99=spacings_ms[int(len(spacings_ms) * 0.99)],
        period_ms_max=spacings_ms[-1],
        coverage=max(0.0, 1 - sum(gap.end_s - gap.start_s for gap in gaps) / duration_s),
        gaps=gaps,
    )
