"""Joint draws of what the settings of a study may truly cost and score.

Every probability about settings comes from these draws: repeat spread, meter errors, which are
common to all runs on a board, and the benchmarks' standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.uncertainty import VIEWS, Exposure, Exposures, Repeats


@dataclass(frozen=True, slots=True)
class Draws:
    """Plausible true energies and qualities of S settings, D times."""

    summary: pl.DataFrame
    """The S settings that have a quality, as rows of `summary`."""
    energy: dict[str, np.ndarray]
    """Per view [D, S], in joules."""
    quality: np.ndarray
    """[D, S]."""

    @staticmethod
    def of(
        runs: pl.DataFrame, summary: pl.DataFrame, exposed: Exposures, settings: AccountingSettings
    ) -> Draws:
        """Draw `settings.draws` times; equal inputs give equal draws."""
        summary = summary.filter(pl.col("quality").is_not_null())
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
        return Draws(summary, energy, quality)

    def means(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """The settings' mean energies and qualities, [S] each, as `summary` has them."""
        return self.summary[f"{view}_j"].to_numpy(), self.summary["quality"].to_numpy()

    def uncertain(self, view: str) -> np.ndarray:
        """Whether anything is known of a setting's uncertainty, [S].

        Where nothing is, its draws are all alike, and a probability of 1 would be a pretence.
        """
        if not self.summary.height:
            return np.zeros(0, dtype=bool)
        return (np.ptp(self.energy[view], axis=0) > 0) | (np.ptp(self.quality, axis=0) > 0)
