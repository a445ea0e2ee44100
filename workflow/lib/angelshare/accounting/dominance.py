"""Which setting dominates which, as probabilities: for every ordered pair, under each view.

A dominates B when it costs no more, is no worse, and is better in one of the two; of two equal
settings neither dominates. The probability is the share of the joint draws (`draws`) in which it
does, so errors that both settings have in common, like the gain of one board's meter, cancel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.draws import Draws
from angelshare.accounting.uncertainty import VIEWS, interval

LISTED_FROM = 0.05
"""Pairs that dominate in a smaller share of the draws, and not in the means, are not listed."""
SURE = 0.95
"""What is so in this share of the draws is said without reserve: that one setting dominates
another, and that one is, or is not, on a frontier."""
_BLOCK = 256
"""Draws that are compared at once: few enough for a processor's cache."""

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("view", "setting", "dominated"), pl.String),
    "probability": pl.Float64,
    "in_means": pl.Boolean,
    **dict.fromkeys(("saved_j", "quality_gain"), pl.Float64),
}
"""Columns of `dominance.parquet`: `setting` dominates `dominated` with this `probability` (null
where nothing is known of the uncertainty of one of them) and, or not, in the means; `saved_j` and
`quality_gain` are how much less it costs and how much better it is in the means."""

SURE_SCHEMA: dict[str, Any] = {
    "sure_dominator": pl.String,
    **dict.fromkeys(("sure_probability", "wasted_j", "wasted_low_j", "wasted_high_j"), pl.Float64),
}
"""Columns of `frontier.parquet` that `sure_dominators` adds."""


def dominance(energy_DS: np.ndarray, quality_DS: np.ndarray) -> np.ndarray:
    """The share of D draws in which setting A dominates setting B, [S, S] by A and B."""
    count, settings = energy_DS.shape
    times_SS = np.zeros((settings, settings), dtype=np.int64)
    for first in range(0, count, _BLOCK):
        block = slice(first, first + _BLOCK)
        energy_SB = np.ascontiguousarray(energy_DS[block].T)
        quality_SB = np.ascontiguousarray(quality_DS[block].T)
        for one, (energy_B, quality_B) in enumerate(zip(energy_SB, quality_SB, strict=True)):
            beats_SB = (energy_B <= energy_SB) & (quality_B >= quality_SB)
            beats_SB &= (energy_B != energy_SB) | (quality_B != quality_SB)
            times_SS[one] += np.count_nonzero(beats_SB, axis=1)
    return times_SS / max(1, count)


def dominance_table(draws: Draws) -> pl.DataFrame:
    """`dominance.parquet`: per view every pair with a probability of at least `LISTED_FROM`, and
    those that dominate in the means. Of each dominated setting the surest dominator comes first."""
    names = draws.summary["setting"].to_numpy()
    frames = [pl.DataFrame(schema=SCHEMA)]
    for view in VIEWS if len(names) else ():
        energy_S, quality_S = draws.means(view)
        in_means = dominance(energy_S[None], quality_S[None]) > 0
        chances = dominance(draws.energy[view], draws.quality)
        uncertain = draws.uncertain(view)
        known = uncertain[:, None] & uncertain
        one, other = np.nonzero(in_means | (known & (chances >= LISTED_FROM)))
        found = pl.DataFrame(
            {
                "view": [view] * len(one),
                "setting": names[one],
                "dominated": names[other],
                "probability": np.where(known, chances, np.nan)[one, other],
                "in_means": in_means[one, other],
                "saved_j": energy_S[other] - energy_S[one],
                "quality_gain": quality_S[one] - quality_S[other],
            },
            schema=SCHEMA,
        ).with_columns(pl.col("probability").fill_nan(None))
        order = ["dominated", "probability", "saved_j", "setting"]
        frames.append(found.sort(order, descending=[False, True, True, False], nulls_last=True))
    return pl.concat(frames)


def sure_dominators(frontier: pl.DataFrame, pairs: pl.DataFrame, draws: Draws) -> pl.DataFrame:
    """`frontier` with the columns of `SURE_SCHEMA`: of the settings that dominate a row's in
    `SURE` of the draws the one that saves the most, and the energy that is wasted beside it
    with its 95 % interval. Where no probability is known, the cheapest that dominates in the means.
    """
    sure = pairs.filter(pl.col("probability").fill_null(1.0) >= SURE)
    most = sure.sort(
        pl.col("probability").is_null(), "saved_j", "setting", descending=[False, True, False]
    ).unique(["view", "dominated"], keep="first", maintain_order=True)
    column = {name: index for index, name in enumerate(draws.summary["setting"])}
    rows = []
    for row in most.rows(named=True):
        energy_DS = draws.energy[row["view"]]
        wasted_D = energy_DS[:, column[row["dominated"]]] - energy_DS[:, column[row["setting"]]]
        low_j, high_j = (None, None) if row["probability"] is None else interval(wasted_D)
        rows.append(
            {
                "view": row["view"],
                "setting": row["dominated"],
                "sure_dominator": row["setting"],
                "sure_probability": row["probability"],
                "wasted_j": row["saved_j"],
                "wasted_low_j": low_j,
                "wasted_high_j": high_j,
            }
        )
    found = pl.DataFrame(rows, schema={"view": pl.String, "setting": pl.String, **SURE_SCHEMA})
    return frontier.join(found, on=["view", "setting"], how="left", maintain_order="left")
