"""Q and what the standard errors of students and teachers do to it."""

from __future__ import annotations

import math

import pytest

from angelshare.accounting.runs import _quality
from angelshare.accounting.study import Run, Score, Study


def quality(*scores: Score) -> dict:
    study = Study(team="t", runs=(Run("r", "kd", "s", "d", 1),), scores=scores)
    (row,) = _quality(study).iter_rows(named=True)
    return row


def test_the_errors_of_student_and_teacher_reach_quality() -> None:
    row = quality(
        Score("r", "a", 0.3, stderr=0.03, teacher_score=0.6, teacher_stderr=0.06),
        Score("r", "b", 5.0, teacher_score=8.0, teacher_stderr=0.8, teacher_source="cited from T4"),
        Score("r", "c", 9.9, stderr=1.0, in_quality=False),
    )
    assert row["quality"] == pytest.approx((0.5 + 0.625) / 2)
    # of a: 0.03 / 0.6 and 0.5 * 0.06 / 0.6; of b: 0.625 * 0.8 / 8
    assert row["quality_stderr"] == pytest.approx(math.hypot(0.05, 0.05, 0.0625) / 2)
    assert row["teacher_scores"] == "a: measured; b: cited from T4"
