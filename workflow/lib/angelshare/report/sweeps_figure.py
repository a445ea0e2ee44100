"""Quality and energy against each hyperparameter that a sweep varies, other things equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from angelshare.accounting.names import pretty
from angelshare.accounting.order import students_by_size
from angelshare.accounting.tables import Tables
from angelshare.accounting.units import Unit, energy_unit
from angelshare.report.axes import PLAIN
from angelshare.report.style import looks

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


class Sweep(NamedTuple):
    """Settings of one pipeline and student that differ in one hyperparameter alone."""

    hyperparameter: str
    pipeline: str
    student: str
    held: str
    """What else varies in the pipeline, and is the same here."""
    rows: pl.DataFrame


def sweeps(tables: Tables) -> list[Sweep]:
    """Every series of at least two settings that differ in one numeric hyperparameter."""
    summary = tables.summary
    names = summary.columns[summary.columns.index("student") + 1 : summary.columns.index("setting")]
    found = []
    for name in names:
        if summary.schema[name] != pl.Float64:
            continue
        others = [other for other in names if other != name]
        known = summary.filter(pl.col(name).is_not_null()).sort(
            "pipeline", "student", *others, name
        )
        for _, rows in known.group_by("pipeline", "student", *others, maintain_order=True):
            if rows[name].n_unique() > 1:
                same = [(other, rows[other][0]) for other in _varying(known, others)]
                held = ", ".join(f"{other} {at:g}" for other, at in same if at is not None)
                found.append(Sweep(name, rows["pipeline"][0], rows["student"][0], held, rows))
    return found


def _varying(rows: pl.DataFrame, names: list[str]) -> list[str]:
    """The numeric hyperparameters of which the rows hold several values."""
    numeric = [name for name in names if rows.schema[name] == pl.Float64]
    return [name for name in numeric if rows[name].drop_nulls().n_unique() > 1]


def sweeps_figure(tables: Tables) -> Figure | None:
    """A column per hyperparameter: quality, student-only and one-off energy, 95 % bars.

    The one-off energy shows what a generation budget costs: the teacher's tokens are in no other.
    """
    series = sweeps(tables)
    if not series:
        return None
    names = list(dict.fromkeys(sweep.hyperparameter for sweep in series))
    unit = energy_unit(pl.concat([sweep.rows["one_off_j"] for sweep in series]))
    figure = Figure(figsize=(1.6 + 3.2 * len(names), 6.8), layout="constrained")
    panels = figure.subplots(3, len(names), squeeze=False, sharex="col", sharey="row")
    students = students_by_size(tables)
    for column, name in enumerate(names):
        for sweep in series:
            if sweep.hyperparameter == name:
                _line(panels[0, column], sweep, "quality", Unit("", 1.0), students)
                _line(panels[1, column], sweep, "student_only_j", unit, students)
                _line(panels[2, column], sweep, "one_off_j", unit, students)
        values = sorted({v for s in series if s.hyperparameter == name for v in s.rows[name]})
        panels[2, column].set_xticks(values)
        panels[2, column].xaxis.set_major_formatter(PLAIN)
        panels[2, column].set_xlabel(name.replace("_", " "))
        for panel in panels[1:, column]:
            panel.yaxis.set_major_formatter(PLAIN)
    panels[0, 0].set_ylabel("quality")
    panels[1, 0].set_ylabel(f"student-only energy ({unit.name})")
    panels[2, 0].set_ylabel(f"one-off energy ({unit.name})")
    for row in panels[1:]:
        row[0].set_ylim(bottom=0)
    figure.legend(
        handles=_legend(series, students), loc="outside lower center", ncols=6, handlelength=3.4
    )
    return figure


def _line(axes: Axes, sweep: Sweep, measure: str, unit: Unit, students: list[str]) -> None:
    rows = sweep.rows.filter(pl.col(measure).is_not_null())
    look = looks([sweep.pipeline])[sweep.pipeline]
    value = rows[measure].to_numpy() / unit.factor
    low, high = (
        rows[f"{measure}_{end}"].cast(pl.Float64).to_numpy() / unit.factor
        for end in ("low", "high")
    )
    if sweep.held and measure == "quality":
        at = (float(rows[sweep.hyperparameter][-1]), float(value[-1]))
        axes.annotate(
            *(sweep.held, at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            annotation_clip=False,
        )
    bars = np.nan_to_num(np.stack([value - low, high - value]))
    axes.errorbar(
        rows[sweep.hyperparameter].to_numpy(),
        value,
        yerr=bars,
        fmt=look.marker,
        ls=_DASHES[students.index(sweep.student) % len(_DASHES)],
        color=look.color,
        ms=5,
        lw=1.3,
        elinewidth=0.8,
    )


def _legend(series: list[Sweep], students: list[str]) -> list[Line2D]:
    pairs = dict.fromkeys((sweep.pipeline, sweep.student) for sweep in series)
    handles = []
    for pipeline, student in pairs:
        look = looks([pipeline])[pipeline]
        style = _DASHES[students.index(student) % len(_DASHES)]
        label = pretty(f"{pipeline} {student}")
        handles.append(
            Line2D([], [], color=look.color, marker=look.marker, ls=style, ms=5, label=label)
        )
    return handles
