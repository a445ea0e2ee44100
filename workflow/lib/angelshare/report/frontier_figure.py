"""Quality against energy, a panel per view: what each pipeline's energy buys."""

from __future__ import annotations

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from angelshare.accounting.findings import percent
from angelshare.accounting.names import pretty
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.accounting.units import Unit, energy_unit
from angelshare.report.axes import log_x
from angelshare.report.labels import Label, place
from angelshare.report.style import INK, VIEW_TITLES, looks

_LOG_FROM = 3.0
"""Energies that differ by more than this factor get a log axis."""

_LABEL_ALL_UP_TO = 16
"""With more settings than this only those on the frontier are named."""


def frontier_figure(tables: Tables) -> Figure | None:
    """Filled points are on the frontier, bars are 95 % intervals of the repeats."""
    table = tables.frontier
    if table.is_empty():
        return None
    energies = table["energy_j"].to_list()
    unit = energy_unit(energies)
    logarithmic = max(energies) > _LOG_FROM * min(energies) > 0
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    panels = figure.subplots(1, len(VIEWS), sharey=True, sharex=True)
    for axes, view in zip(panels, VIEWS, strict=True):
        rows = table.filter(pl.col("view") == view)
        if logarithmic:
            log_x(axes)
        axes.set_title(VIEW_TITLES[view], loc="left")
        axes.set_xlabel(f"energy per run ({unit.name})")
        corners = frontier_corners(rows, unit)
        axes.plot(*zip(*corners, strict=True), color=INK, lw=1.1, alpha=0.55, zorder=2)
        _points(axes, rows, tables.summary, view, unit)
    panels[0].set_ylabel("quality (share of the teacher's score)")
    panels[0].set_xlim(*_padded(panels[0].get_xlim(), logarithmic))
    panels[0].margins(y=0.12)
    figure.legend(
        handles=_legend(table, tables.summary),
        loc="outside lower center",
        ncols=10,
        title=_meter_note(tables.summary),
        title_fontsize=8,
    )
    figure.draw_without_rendering()
    for axes, view in zip(panels, VIEWS, strict=True):
        _name_points(axes, table.filter(pl.col("view") == view), unit)
    return figure


def frontier_corners(rows: pl.DataFrame, unit: Unit) -> list[tuple[float, float]]:
    """The corners of the staircase of what quality each energy buys."""
    corners: list[tuple[float, float]] = []
    for energy_j, quality in (
        rows.filter("on_frontier").sort("energy_j").select("energy_j", "quality").rows()
    ):
        if corners:
            corners.append((energy_j / unit.factor, corners[-1][1]))
        corners.append((energy_j / unit.factor, quality))
    return corners


def _padded(limits: tuple[float, float], logarithmic: bool) -> tuple[float, float]:
    """Room for labels, most on the right."""
    low, high = limits
    if logarithmic:
        return low / (high / low) ** 0.15, high * (high / low) ** 0.24
    return low - 0.05 * (high - low), high + 0.25 * (high - low)


def _points(axes: Axes, rows: pl.DataFrame, summary: pl.DataFrame, view: str, unit: Unit) -> None:
    spreads = {row["setting"]: row for row in summary.rows(named=True)}
    look = looks(rows["pipeline"])
    for row in rows.rows(named=True):
        style, spread = look[row["pipeline"]], spreads[row["setting"]]
        filled = row["on_frontier"]
        axes.errorbar(
            row["energy_j"] / unit.factor,
            row["quality"],
            xerr=_bar(row["energy_j"], spread, f"{view}_j", unit.factor),
            yerr=_bar(row["quality"], spread, "quality", 1.0),
            fmt=style.marker,
            ms=6.5 if filled else 5.5,
            color=style.color,
            mfc=style.color if filled else "white",
            mec=style.color,
            mew=1.1,
            elinewidth=0.8,
            alpha=1.0 if filled else 0.75,
            zorder=4 if filled else 3,
        )


def _bar(
    value: float, spread: dict[str, Any], measure: str, factor: float
) -> list[list[float]] | None:
    """The two lengths of an error bar; None where nothing was repeated."""
    low, high = spread[f"{measure}_low"], spread[f"{measure}_high"]
    if low is None:
        return None
    return [[max(0.0, value - max(low, 0.0)) / factor], [max(0.0, high - value) / factor]]


def _name_points(axes: Axes, rows: pl.DataFrame, unit: Unit) -> None:
    """Name the settings; the others of a sweep by what differs, once one is named in full."""
    look = looks(rows["pipeline"])
    named = rows if rows.height <= _LABEL_ALL_UP_TO else rows.filter("on_frontier")
    labels = []
    full: set[str] = set()
    for row in named.sort("on_frontier", "quality", descending=True).rows(named=True):
        family = f"{row['pipeline']} {row['student']}"
        short = row["setting"].removeprefix(family).strip() if family in full else ""
        full.add(family)
        x, color = row["energy_j"] / unit.factor, look[row["pipeline"]].color
        text = short or pretty(row["setting"])
        labels.append(Label(x, row["quality"], text, color, row["on_frontier"]))
    points = [(e / unit.factor, q) for e, q in rows.select("energy_j", "quality").rows()]
    place(axes, labels, points, frontier_corners(rows, unit))


def _meter_note(summary: pl.DataFrame) -> str | None:
    """How far all energies may be off together, which bars of repeats do not show."""
    bounds = (summary["one_off_j_u95"] / summary["one_off_j"]).to_list()
    largest = max((bound for bound in bounds if bound is not None), default=0.0)
    if largest < 0.005:
        return None
    return f"The meter's own bound (95 %), mostly common to all points: ±{percent(largest)}"


def _legend(table: pl.DataFrame, summary: pl.DataFrame) -> list[Line2D]:
    look = looks(table["pipeline"])
    handles = [
        Line2D([], [], ls="", marker=style.marker, color=style.color, label=pretty(pipeline))
        for pipeline, style in look.items()
    ]
    handles.append(Line2D([], [], ls="", marker="o", color=INK, label="on the frontier"))
    handles.append(Line2D([], [], ls="", marker="o", color=INK, mfc="white", label="dominated"))
    if summary["quality_low"].null_count() < summary.height:
        handles.append(Line2D([], [], color=INK, lw=0.8, label="bars: 95 % interval of repeats"))
    return handles
