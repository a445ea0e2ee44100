"""Joules between two moments from a counter that ticks, falls, vanishes and comes back.

The sampler reads quickly at both edges of a window until the counter ticks. With e the counter's
exact integral at the ticks A before and B after the window and p the power in the two pads,

    energy = e_B - e_A - p_A (start - t_A) - p_B (t_B - end),

good to the time within which a tick is known (about 10 ms), not to a whole tick (20 to 100 ms). A
counter that falls was reset: the stretch is filled with held power, listed, and its whole energy is
part of the bound. A device that does not come back is held until the end in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot
from statistics import median
from typing import NamedTuple

from angelshare.energy.curves import Curve, value_at

DEFAULT_TICK_S = 0.1
SHARP_S = 0.02


class Row(NamedTuple):
    """One reading of one GPU; fields that could not be read are None."""

    t_ns: int
    read_ns: int
    counter_mj: int | None
    average_mw: int | None
    instant_mw: int | None
    usage_mw: int | None
    util_percent: int | None
    memory_bytes: int | None


class Tick(NamedTuple):
    """A change of the counter: first seen at ``t_ns``, not yet there at ``before_ns``."""

    before_ns: int
    t_ns: int
    energy_j: float

    @property
    def at_ns(self) -> float:
        return (self.before_ns + self.t_ns) / 2

    @property
    def half_s(self) -> float:
        return (self.t_ns - self.before_ns) / 2e9


@dataclass(kw_only=True)
class Counted:
    """The counter as a running sum from its first reading."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    resets: int = 0
    held_j: float = 0.0
    """Joules that are held power, not counted."""

    @property
    def tick_s(self) -> float:
        """The counter's update interval, from ticks seen sharply one after the other."""
        spacings = [
            (b.at_ns - a.at_ns) / 1e9
            for a, b in pairwise(self.ticks)
            if a.half_s < SHARP_S and b.half_s < SHARP_S and b.at_ns - a.at_ns < 0.5e9
        ]
        return median(spacings) if spacings else DEFAULT_TICK_S


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Energy within exact bounds, what was padded (seconds, None where no tick was seen)."""

    energy_j: float
    u95_j: float
    pre_pad_s: float | None
    post_pad_s: float | None


def unwrap(rows: list[Row], power: Curve, end_ns: int) -> Counted:
    """The running sum of all readings that have a counter; resets and a lost tail are held."""
    counted = Counted()
    known = [(row, row.counter_mj) for row in rows if row.counter_mj is not None]
    if not known:
        return counted
    energy_j = 0.0
    counted.curve.append((known[0][0].t_ns, 0.0))
    for (before, was_mj), (row, now_mj) in pairwise(known):
        step_j = (now_mj - was_mj) / 1e3
        if step_j < 0:
            step_j = _held_w(power, row.t_ns) * (row.t_ns - before.t_ns) / 1e9
            counted.resets += 1
            counted.held_j += step_j
        energy_j += step_j
        counted.curve.append((row.t_ns, energy_j))
        if now_mj != was_mj:
            slack_ns = (before.read_ns + row.read_ns) // 2
            counted.ticks.append(Tick(before.t_ns - slack_ns, row.t_ns, energy_j))
    last_ns = counted.curve[-1][0]
    if last_ns < end_ns:
        tail_j = _held_w(power, end_ns) * (end_ns - last_ns) / 1e9
        counted.held_j += tail_j
        counted.curve.append((end_ns, energy_j + tail_j))
    return counted


def _held_w(power: Curve, t_ns: int) -> float:
    known = [watts for at_ns, watts in power if at_ns <= t_ns]
    return known[-1] if known else 0.0


def energy_between(
    counted: Counted, rows: list[Row], bounds: tuple[int, int], idle_w: float | None
) -> Edges:
    """Joules within the bounds. Pads are taken at the power read in them, else at ``idle_w``.

    The two edges' bounds add linearly: sampling and ticking may keep step, so they err together.
    """
    start_ns, end_ns = bounds
    first = [tick for tick in counted.ticks if tick.t_ns <= start_ns]
    last = [tick for tick in counted.ticks if tick.t_ns >= end_ns]
    pre = min(reversed(first), key=lambda tick: tick.half_s, default=None)
    post = min(last, key=lambda tick: tick.half_s, default=None)
    early = [watts for row in rows if row.t_ns <= start_ns and (watts := _watts(row)) is not None]
    before_w = sum(early) / len(early) if early else idle_w or 0.0
    expected_w = before_w if idle_w is None else idle_w
    swing_w = _swing(rows)
    from_j, pre_pad_s, u_pre = value_at(counted.curve, start_ns), None, counted.tick_s * swing_w
    if pre is not None:
        pre_pad_s = max(0.0, (start_ns - pre.at_ns) / 1e9)
        from_j = pre.energy_j + before_w * pre_pad_s
        u_pre = hypot(pre.half_s * before_w, pre_pad_s * abs(before_w - expected_w))
    to_j, post_pad_s, u_post = value_at(counted.curve, end_ns), None, counted.tick_s * swing_w
    if post is not None:
        post_pad_s = max(0.0, (post.at_ns - end_ns) / 1e9)
        after_w = _instant_at(rows, post.t_ns, expected_w)
        to_j = post.energy_j - after_w * post_pad_s
        u_post = hypot(post.half_s * after_w, post_pad_s * abs(after_w - expected_w))
    return Edges(
        energy_j=to_j - from_j,
        u95_j=u_pre + u_post,
        pre_pad_s=pre_pad_s,
        post_pad_s=post_pad_s,
    )


def _watts(row: Row) -> float | None:
    """The quickest power sensor's reading."""
    values = (row.instant_mw, row.usage_mw, row.average_mw)
    return next((one / 1e3 for one in values if one is not None), None)


def _instant_at(rows: list[Row], t_ns: int, otherwise_w: float) -> float:
    found = [row.instant_mw for row in rows if row.t_ns == t_ns and row.instant_mw is not None]
    return found[0] / 1e3 if found else otherwise_w


def _swing(rows: list[Row]) -> float:
    watts = [one for row in rows if (one := _watts(row)) is not None]
    return max(watts) - min(watts) if watts else 0.0
