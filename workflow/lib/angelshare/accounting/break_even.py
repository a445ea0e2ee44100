"""When a distillation pays back: N*, in students per teacher artifact, and T*, in tokens served.

N* = teacher / (baseline student - distilled student), in joules of the student-only view, baseline
and distilled matched on student and dataset (arXiv 2605.13981, Eq. 4). Where the distilled student
is not cheaper to train there is no such N: the status says "never" and `n_star` is null.

T* = (distilled one-off energy - reference's) / (reference's joules per token served - distilled's)
(ibid., Eq. 5, which names no reference). The reference here is the next larger baseline student,
or the same size where there is none, and the table names it. Extra energy at or below zero is paid
back at once (T* = 0); a student that is not cheaper per token never pays back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.uncertainty import Exposure, Exposures, Repeats, SharedDraws

NEVER, REACHED, OPEN, AT_ONCE, UNKNOWN = "never", "finite", "unbounded", "at once", "unknown"
"""Statuses: no such number; a number with a finite interval; a number whose interval has no upper
end (never is among the plausible values); nothing to pay back; not enough data to say."""

_SCHEMA = {
    **{name: pl.String for name in ("pipeline", "student", "setting", "baseline_setting")},
    **{name: pl.Float64 for name in ("teacher_j", "teacher_low_j", "teacher_high_j")},
    **{name: pl.Float64 for name in ("baseline_student_j", "distilled_student_j")},
    **{name: pl.Float64 for name in ("gap_j", "gap_low_j", "gap_high_j")},
    **{name: pl.Float64 for name in ("n_star", "n_star_low", "n_star_high")},
    "n_star_status": pl.String,
    "never_probability": pl.Float64,
    "consumers": pl.Float64,
    "reached": pl.Boolean,
    "reached_probability": pl.Float64,
    **{name: pl.Float64 for name in ("t_star_tokens", "t_star_low", "t_star_high")},
    **{name: pl.String for name in ("t_star_status", "t_star_reference")},
    **{name: pl.Int64 for name in ("n_baseline", "n_distilled")},
    **{name: pl.String for name in ("datasets", "note")},
}


def break_even_table(
    runs: pl.DataFrame,
    shares: pl.DataFrame,
    artifacts_of_runs: dict[str, tuple[tuple[str, str], ...]],
    exposed: Exposures,
    settings: AccountingSettings,
) -> pl.DataFrame:
    """`break_even.parquet`: one row per distilling pipeline and student.

    Where a pipeline has several settings for a student, the row is of the one with the most runs
    on the baseline's datasets, then of the highest quality; `setting` names it.
    """
    baselines = {
        str(student): _reference(group)
        for (student,), group in runs.filter(
            (pl.col("pipeline") == settings.baseline) & ~pl.col("distilled")
        ).group_by("student", maintain_order=True)
    }
    consumers = dict(
        shares.group_by("kind", "key").len().select(pl.struct("kind", "key"), "len").rows()
        and [((k, y), n) for k, y, n in shares.group_by("kind", "key").len().rows()]
    )
    rows = []
    distilled = runs.filter("distilled").sort("pipeline", "student", "setting", "run")
    for (pipeline, student), group in distilled.group_by("pipeline", "student", maintain_order=True):
        baseline = baselines.get(str(student))
        comparison = _Comparison(_reference(group, baseline), baseline, exposed, settings)
        row = comparison.row(str(pipeline), str(student))
        row["consumers"] = _consumers(comparison.distilled, artifacts_of_runs, consumers)
        row.update(comparison.reached(row["consumers"]))
        row.update(_t_star(comparison.distilled, baselines, settings))
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _reference(group: pl.DataFrame, baseline: pl.DataFrame | None = None) -> pl.DataFrame:
    """The runs of the setting that stands for a pipeline and student."""
    best: tuple[tuple[float, ...], pl.DataFrame] | None = None
    for _, candidate in group.sort("setting").group_by("setting", maintain_order=True):
        matched = candidate
        if baseline is not None:
            matched = candidate.filter(pl.col("dataset").is_in(baseline["dataset"].unique().to_list()))
        quality = matched["quality"].mean()
        rank = (float(matched.height), float("-inf") if quality is None else float(str(quality)))
        if best is None or rank > best[0]:
            best = (rank, candidate)
    assert best is not None
    return best[1].sort("run")
