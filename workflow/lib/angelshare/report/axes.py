"""What the figures' axes share: plain numbers on log and linear scales, and the order of things."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from angelshare.accounting.tables import Tables
from angelshare.report.style import looks

PLAIN = FuncFormatter(lambda value, _: f"{value:,.4g}")


def log_x(axes: Axes) -> None:
    """A log x axis whose ticks are plain numbers, at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())


def students_by_size(tables: Tables) -> list[str]:
    """Students from small to large: by parameters where known, else by training energy."""
    sizes = (
        tables.summary.group_by("student")
        .agg(pl.col("parameters").mean(), pl.col("student_only_j").mean())
        .sort("parameters", "student_only_j", "student", nulls_last=True)
    )
    return sizes["student"].to_list()


def ordered_settings(tables: Tables) -> list[str]:
    """Settings by student size, then pipeline in the palette's order, then name."""
    students = students_by_size(tables)
    pipelines = list(looks(tables.summary["pipeline"]))
    rows = tables.summary.select("student", "pipeline", "setting").rows()
    ranked = sorted(rows, key=lambda r: (students.index(r[0]), pipelines.index(r[1]), r[2]))
    return [setting for _, _, setting in ranked]
