"""The energy-quality frontier: settings that no other beats on both, and how sure that is.

Lower energy and higher quality are better. A dominates B when it is at least as good in both and
better in one; equal points leave each other alone. Probabilities are shares of the joint draws of
`draws`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.dominance import dominance
from angelshare.accounting.draws import Draws
from angelshare.accounting.uncertainty import VIEWS, interval


def non_dominated(energy: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Which points [.., S] no other point of the last axis dominates; in O(S log S).

    Going up in energy (and, at equal energy, down in quality), a point is on the frontier when
    its quality exceeds that of everything cheaper, or when it equals the point before it.
    """
    order = np.lexsort((-quality, energy), axis=-1)
    sorted_quality = np.take_along_axis(quality, order, -1)
    sorted_energy = np.take_along_axis(energy, order, -1)
    best = np.maximum.accumulate(sorted_quality, axis=-1)
    cheaper_best = np.concatenate([np.full_like(best[..., :1], -np.inf), best[..., :-1]], axis=-1)
    on = sorted_quality > cheaper_best
    for rank in range(1, on.shape[-1]):
        same = (sorted_energy[..., rank] == sorted_energy[..., rank - 1]) & (
            sorted_quality[..., rank] == sorted_quality[..., rank - 1]
        )
        on[..., rank] |= same & on[..., rank - 1]
    result = np.empty_like(on)
    np.put_along_axis(result, order, on, -1)
    return result


def frontier_table(draws: Draws) -> pl.DataFrame:
    """`frontier.parquet`: per view and setting with a quality: `on_frontier`, `dominated_by` (the
    cheapest setting that beats it), `dominated_probability` (that this one does), and
    `membership_probability`. `dominance.sure_dominators` adds whose energy it wastes."""
    scored = draws.summary
    rows: list[dict[str, Any]] = []
    for view in VIEWS:
        energy, quality = draws.means(view)
        on = non_dominated(energy, quality)
        members = non_dominated(draws.energy[view], draws.quality)
        uncertain = draws.uncertain(view)
        for index, row in enumerate(scored.rows(named=True)):
            by = None if on[index] else _dominator(index, energy, quality)
            low_j, high_j = interval(draws.energy[view][:, index])
            low, high = interval(draws.quality[:, index])
            rows.append(
                {
                    "view": view,
                    **{name: row[name] for name in ("pipeline", "student", "setting", "n", "note")},
                    "energy_j": energy[index],
                    "energy_low_j": None if low_j is None else max(0.0, low_j),
                    "energy_high_j": high_j,
                    "quality": quality[index],
                    "quality_low": low,
                    "quality_high": high,
                    "on_frontier": bool(on[index]),
                    "dominated_by": None if by is None else scored["setting"][by],
                    "dominated_probability": None
                    if by is None or not (uncertain[by] and uncertain[index])
                    else _chance(draws, view, by, index),
                    "membership_probability": float(members[:, index].mean())
                    if uncertain[index]
                    else None,
                }
            )
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA = {
    **dict.fromkeys(("view", "pipeline", "student", "setting"), pl.String),
    **dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j"), pl.Float64),
    **dict.fromkeys(("quality", "quality_low", "quality_high"), pl.Float64),
    "on_frontier": pl.Boolean,
    "dominated_by": pl.String,
    "dominated_probability": pl.Float64,
    "membership_probability": pl.Float64,
    "n": pl.Int64,
    "note": pl.String,
}


def _dominator(index: int, energy: np.ndarray, quality: np.ndarray) -> int:
    """The cheapest setting that dominates this one."""
    beats = (energy <= energy[index]) & (quality >= quality[index])
    beats &= (energy < energy[index]) | (quality > quality[index])
    return int(min(np.flatnonzero(beats), key=lambda other: (energy[other], other)))


def _chance(draws: Draws, view: str, one: int, other: int) -> float:
    """How often one setting dominates another."""
    pair = [one, other]
    return float(dominance(draws.energy[view][:, pair], draws.quality[:, pair])[0, 1])
