"""The energy-quality frontier: settings that no other beats on both, and how sure that is.

Lower energy and higher quality are better. A dominates B when it is at least as good in both and
better in one; equal points leave each other alone. Probabilities are shares of joint draws of
repeat spread, board-correlated measurement errors, and the benchmarks' standard errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.uncertainty import VIEWS, Exposure, Exposures, Repeats, interval


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


def frontier_table(
    runs: pl.DataFrame, summary: pl.DataFrame, exposed: Exposures, settings: AccountingSettings
) -> pl.DataFrame:
    """`frontier.parquet`: per view and setting with a quality: `on_frontier`, `dominated_by` (the
    cheapest setting that beats it), `dominated_probability` (that this one does), and
    `membership_probability`."""
    scored = summary.filter(pl.col("quality").is_not_null())
    draws = _Draws.of(runs, scored, exposed, settings)
    rows: list[dict[str, Any]] = []
    for view in VIEWS:
        energy, quality = scored[f"{view}_j"].to_numpy(), scored["quality"].to_numpy()
        on = non_dominated(energy, quality)
        members = non_dominated(draws.energy[view], draws.quality)
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
                    **draws.probabilities(view, index, by, members[:, index]),
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


class _Draws:
    """Plausible true energies per view and qualities of all settings, [draws, settings]."""

    def __init__(self, energy: dict[str, np.ndarray], quality: np.ndarray) -> None:
        self.energy = energy
        self.quality = quality

    @staticmethod
    def of(
        runs: pl.DataFrame, summary: pl.DataFrame, exposed: Exposures, settings: AccountingSettings
    ) -> _Draws:
        generator = np.random.default_rng(settings.seed)
        count = settings.draws
        shared = exposed.shared_draws(count, generator)
        weights = np.zeros((summary.height, len(exposed.runs)))
        energy = {view: np.empty((count, summary.height)) for view in VIEWS}
        quality = np.empty((count, summary.height))
        repeated = np.zeros(summary.height, dtype=bool)
        for index, setting in enumerate(summary["setting"]):
            group = runs.filter((pl.col("setting") == setting) & pl.col("quality").is_not_null())
            weights[index, [exposed.runs.index(run) for run in group["run"]]] = 1.0 / group.height
            values = group.select(*(f"{view}_j" for view in VIEWS), "quality").to_numpy()
            repeats = Repeats.of(values, group["dataset"].to_list())
            repeated[index] = repeats.df > 0
            drawn = repeats.draw(count, generator)
            for column, view in enumerate(VIEWS):
                energy[view][:, index] = drawn[:, column]
            stderr = float(group["quality_stderr"].fill_null(0.0).to_numpy().mean())
            quality[:, index] = drawn[:, -1] + stderr * generator.standard_normal(count)
        own = generator.standard_normal((count, summary.height)) * ~repeated
        for view in VIEWS:
            exposure: Exposure = exposed.views[view].combine(weights)
            energy[view] += exposure.draw(shared, own)
        return _Draws(energy, quality)

    def probabilities(
        self, view: str, index: int, dominator: int | None, member_D: np.ndarray
    ) -> dict[str, float]:
        """How often the setting is on the frontier, and how often its dominator dominates it.

        Nothing where nothing is known of the setting's uncertainty: a 1 would be a pretence.
        """
        energy_D, quality_D = self.energy[view][:, index], self.quality[:, index]
        if np.ptp(energy_D) == 0 and np.ptp(quality_D) == 0:
            return {}
        found = {"membership_probability": float(member_D.mean())}
        if dominator is not None:
            cheaper = self.energy[view][:, dominator] <= energy_D
            better = self.quality[:, dominator] >= quality_D
            found["dominated_probability"] = float((cheaper & better).mean())
        return found


def _dominator(index: int, energy: np.ndarray, quality: np.ndarray) -> int:
    """The cheapest setting that dominates this one."""
    beats = (energy <= energy[index]) & (quality >= quality[index])
    beats &= (energy < energy[index]) | (quality > quality[index])
    return int(min(np.flatnonzero(beats), key=lambda other: (energy[other], other)))
