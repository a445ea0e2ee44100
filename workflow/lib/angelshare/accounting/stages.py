"""Where a run's energy went, stage by stage, under each view: the stage-wise breakdown.

Joules. The stages of a run sum to the run's energy in `runs.parquet`, view by view. Of a training
with a teacher in memory the teacher's joules are a stage of their own, `teacher_online`.
"""

from __future__ import annotations

import polars as pl

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Study

TEACHER_ONLINE = "teacher_online"
"""The stage of a teacher that works within a student's training."""


def stage_table(
    study: Study, attempts: pl.DataFrame, shares: pl.DataFrame, settings: AccountingSettings
) -> pl.DataFrame:
    """One row per run, view and stage that took part: `run, view, stage, shared, energy_j`.

    `shared` marks stages that made a shared artifact, of which the amortised view counts a share.
    """
    charged = attempts.filter(~pl.col("stage").is_in(settings.apart))
    student = pl.col("stage").is_in(settings.student_stages)
    own = _teacher_apart(charged.filter(pl.col("run").is_not_null()), student)
    made = _made_upstream(study, charged, shares).with_columns(shared=pl.lit(True))
    columns = ["run", "stage", "shared", "energy_j"]
    views = {
        "student_only": own.filter("of_student").select(columns),
        "one_off": pl.concat([own.select(columns), made.select(columns)]),
        "amortized": pl.concat(
            [
                own.select(columns),
                made.with_columns(pl.col("energy_j") * pl.col("weight")).select(columns),
            ]
        ),
    }
    return (
        pl.concat(
            [frame.with_columns(view=pl.lit(view)) for view, frame in views.items()],
        )
        .group_by("run", "view", "stage", "shared")
        .agg(pl.col("energy_j").sum())
        .select("run", "view", "stage", "shared", "energy_j")
        .sort("run", "view", "shared", "stage")
    )


def _teacher_apart(own: pl.DataFrame, student: pl.Expr) -> pl.DataFrame:
    """The runs' own attempts, each with a teacher in memory as two stages; `of_student` marks what
    the student-only view counts."""
    own = own.with_columns(of_student=student, shared=pl.lit(False))
    online = own.filter(pl.col("teacher_online_j").is_not_null()).with_columns(
        stage=pl.lit(TEACHER_ONLINE), energy_j=pl.col("teacher_online_j")
    )
    rest = own.with_columns(pl.col("energy_j") - pl.col("teacher_online_j").fill_null(0.0))
    return pl.concat([rest, online])


def _made_upstream(study: Study, charged: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """One row per run, artifact and stage that made it, with the run's share of it as `weight`."""
    named = pl.DataFrame(
        [(run.run, kind, key) for run in study.runs for kind, key in dict.fromkeys(run.artifacts)],
        schema={"run": pl.String, "artifact_kind": pl.String, "artifact_key": pl.String},
        orient="row",
    )
    artifact = ["artifact_kind", "artifact_key"]
    made = (
        charged.filter(pl.col("artifact_kind").is_not_null())
        .group_by(*artifact, "stage")
        .agg(pl.col("energy_j").sum())
        .with_columns(bill_j=pl.col("energy_j").sum().over(artifact))
    )
    ours = (
        shares.filter("ours")
        .group_by("run", artifact_kind="kind", artifact_key="key")
        .agg(pl.col("share_j").sum())
    )
    weight = pl.when(pl.col("bill_j") > 0).then(pl.col("share_j") / pl.col("bill_j")).otherwise(0.0)
    return (
        named.join(ours, on=["run", *artifact]).join(made, on=artifact).with_columns(weight=weight)
    )
