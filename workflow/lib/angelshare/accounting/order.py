"""The order in which students, pipelines and settings are named everywhere."""

from __future__ import annotations

import polars as pl

from angelshare.accounting.names import KNOWN_PIPELINES
from angelshare.accounting.tables import Tables


def students_by_size(tables: Tables) -> list[str]:
    """Students from small to large: by parameters where known, else by training energy."""
    sizes = (
        tables.summary.group_by("student")
        .agg(pl.col("parameters").mean(), pl.col("student_only_j").mean())
        .sort("parameters", "student_only_j", "student", nulls_last=True)
    )
    return sizes["student"].to_list()


def ordered_settings(tables: Tables) -> list[str]:
    """Settings by student size, then pipeline (known ones first), then name."""
    students = students_by_size(tables)
    rows = tables.summary.select("student", "pipeline", "setting").rows()
    ranked = sorted(rows, key=lambda row: (students.index(row[0]), *_place(row[1]), row[2]))
    return [setting for _, _, setting in ranked]


def _place(pipeline: str) -> tuple[int, str]:
    known = pipeline in KNOWN_PIPELINES
    return (KNOWN_PIPELINES.index(pipeline) if known else len(KNOWN_PIPELINES), pipeline)
