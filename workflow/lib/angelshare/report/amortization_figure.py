"""Energy per run against the number of runs that share the teacher's work, with N* marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from angelshare.accounting.names import pretty
from angelshare.accounting.order import students_by_size
from angelshare.accounting.tables import Tables
from angelshare.accounting.units import Unit, energy_unit, number
from angelshare.report.axes import PLAIN, log_x
from angelshare.report.style import INK, looks

_DASHES = (0, (4, 2))
_MOST_RUNS = 1000.0


def amortization_figure(tables: Tables) -> Figure | None:
    """A panel per student: the curve of each pipeline, N* with its interval, the actual number."""
    known = tables.break_even.filter(pl.col("distilled_student_j").is_not_null())
    if known.is_empty():
        return None
    students = [name for name in students_by_size(tables) if name in set(known["student"])]
    unit = energy_unit(known["teacher_j"] + known["distilled_student_j"])
    columns = min(len(students), 3)
    lines = -(-len(students) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.9 + 3.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    most = most_runs(known)
    for axes, student in zip(panels, students, strict=False):
        _panel(axes, known.filter(pl.col("student") == student), unit, most)
        axes.set_title(f"student {student}", loc="left")
        axes.set_xlabel("runs that share the teacher's work")
    for axes in panels[len(students) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(f"student and share of the teacher ({unit.name})")
    figure.legend(handles=_legend(known), loc="outside lower center", ncols=10)
    return figure


def most_runs(known: pl.DataFrame) -> float:
    """How many runs the curve goes to: past the actual number and past every N*, within reason."""
    stars = [n_star for n_star in known["n_star"] if n_star is not None]
    actual = [float(count) for count in known["consumers"]]
    return min(max(12.0, *(1.6 * count for count in actual), *(1.3 * n for n in stars)), _MOST_RUNS)


def _panel(axes: Axes, rows: pl.DataFrame, unit: Unit, most: float) -> None:
    look = looks(rows["pipeline"])
    count = np.geomspace(1, most, 200)
    baseline = rows["baseline_student_j"][0] / unit.factor
    axes.axhline(baseline, color=INK, lw=1.1, ls=_DASHES)
    top = baseline
    log_x(axes)
    for index, row in enumerate(rows.rows(named=True)):
        color, actual = look[row["pipeline"]].color, max(row["consumers"], 1)
        top = max(top, (row["distilled_student_j"] + row["teacher_j"]) / unit.factor)
        axes.plot(count, _energy(row, count) / unit.factor, color=color, lw=1.6)
        axes.plot(
            actual,
            _energy(row, actual) / unit.factor,
            look[row["pipeline"]].marker,
            color=color,
            ms=6.5,
            mec="white",
            mew=0.8,
            zorder=5,
        )
        _mark_n_star(axes, row, baseline, most, color)
        axes.text(
            *(0.98, 0.96 - 0.075 * index, _n_star_label(row)),
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color=color,
        )
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_xlim(0.93, most)
    axes.set_ylim(0, 1.08 * top)


def _energy(row: dict[str, Any], runs: Any) -> Any:
    return row["distilled_student_j"] + row["teacher_j"] / runs


def _mark_n_star(axes: Axes, row: dict[str, Any], baseline: float, most: float, color: str) -> None:
    """A ring at N* and a band for its interval; an open end runs to the edge."""
    if row["n_star_low"] is not None:
        high = most if row["n_star_high"] is None else min(row["n_star_high"], most)
        axes.hlines(baseline, min(row["n_star_low"], most), high, color=color, lw=4, alpha=0.3)
    if row["n_star"] is not None and row["n_star"] <= most:
        axes.plot(row["n_star"], baseline, "o", ms=8, mfc="none", mec=color, mew=1.3, zorder=5)


def _n_star_label(row: dict[str, Any]) -> str:
    said = "never" if row["n_star"] is None else number(row["n_star"])
    return f"{pretty(row['setting'])}: N* {said}"


def _legend(known: pl.DataFrame) -> list[Line2D]:
    look = looks(known["pipeline"])
    handles = [
        Line2D([], [], color=s.color, lw=1.6, marker=s.marker, label=f"{pretty(name)} (mark: now)")
        for name, s in look.items()
    ]
    handles.append(Line2D([], [], color=INK, lw=1.1, ls=_DASHES, label="baseline student"))
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", color=INK, label="break-even N*"))
    if known["n_star_low"].null_count() < known.height:
        handles.append(Line2D([], [], color=INK, lw=4, alpha=0.3, label="its 95 % interval"))
    return handles
