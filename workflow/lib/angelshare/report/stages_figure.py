"""Energy by stage, a bar per setting: the teacher charged whole, and as the share of its users."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from angelshare.accounting.names import pretty, stage_name
from angelshare.accounting.order import ordered_settings
from angelshare.accounting.tables import Tables
from angelshare.accounting.units import Unit, energy_unit, number
from angelshare.report.axes import PLAIN
from angelshare.report.style import INK, VIEW_TITLES, stage_color, stage_order

_MOST_BARS = 60
"""A figure for paper shows no more settings than this; the HTML report shows them all."""


def stages_figure(tables: Tables) -> Figure | None:
    """Two panels, one-off and amortised, on one scale."""
    means = stage_means(tables)
    if means.is_empty():
        return None
    settings = ordered_settings(tables)[:_MOST_BARS]
    totals = means.group_by("view", "setting").agg(pl.col("energy_j").sum())
    unit = energy_unit(totals["energy_j"])
    stages = stage_order(means["stage"])
    figure = Figure(figsize=(9.5, 1.4 + 0.3 * len(settings)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, view in zip(panels, ("one_off", "amortized"), strict=True):
        _stacked(axes, means.filter(pl.col("view") == view), settings, stages, unit)
        how = "teacher charged whole" if view == "one_off" else "teacher shared by its users"
        axes.set_title(f"{VIEW_TITLES[view]}: {how}", loc="left")
        axes.set_xlabel(f"energy per run ({unit.name})")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(settings)), [pretty(setting) for setting in settings])
    panels[0].set_ylim(len(settings) - 0.45, -0.55)
    handles = [Patch(color=stage_color(s), label=stage_name(s)) for s in stages]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(stages), 6))
    return figure


def stage_means(tables: Tables) -> pl.DataFrame:
    """Mean joules per setting, view and stage (a run without the stage counts as 0)."""
    runs = tables.runs.select("run", "setting")
    counts = runs.group_by("setting").agg(runs=pl.len())
    return (
        tables.stages.join(runs, on="run")
        .group_by("setting", "view", "stage")
        .agg(pl.col("energy_j").sum())
        .join(counts, on="setting")
        .with_columns(pl.col("energy_j") / pl.col("runs"))
        .sort("setting", "view", "stage")
    )


def _stacked(
    axes: Axes, means: pl.DataFrame, settings: list[str], stages: list[str], unit: Unit
) -> None:
    left = np.zeros(len(settings))
    by_key = {(row["setting"], row["stage"]): row["energy_j"] for row in means.rows(named=True)}
    for stage in stages:
        width = np.array([by_key.get((setting, stage), 0.0) for setting in settings]) / unit.factor
        axes.barh(range(len(settings)), width, left=left, height=0.66, color=stage_color(stage))
        left = left + width
    for index, total in enumerate(left):
        axes.text(total, index, f" {number(total)}", va="center", fontsize=7.5, color=INK)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.12 * float(left.max())))
