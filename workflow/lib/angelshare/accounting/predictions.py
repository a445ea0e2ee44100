"""Plans held against what was then measured: one row per job that a plan predicted and that ran.

Joules and seconds. The prediction is the last one made before the attempt that succeeded started;
what it is compared with is that attempt, and failed ones stand beside it as `wasted_j`.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from angelshare.accounting.attempts import WASTED
from angelshare.accounting.study import Study

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("job", "stage", "run", "artifact_kind", "artifact_key"), pl.String),
    **dict.fromkeys(("plan_utc", "basis", "fit", "hardware", "measured_hardware"), pl.String),
    **dict.fromkeys(("predicted_j", "predicted_low_j", "predicted_high_j"), pl.Float64),
    **dict.fromkeys(("measured_j", "wasted_j", "ratio"), pl.Float64),
    "covered": pl.Boolean,
    **dict.fromkeys(("predicted_s", "predicted_low_s", "predicted_high_s"), pl.Float64),
    "measured_s": pl.Float64,
    "covered_s": pl.Boolean,
}
"""Columns of `predictions.parquet`; `ratio` is measured / predicted, `covered` whether what was
measured lies within the predicted bounds."""

_PREDICTED = (
    *("job", "plan_utc", "basis", "fit", "hardware"),
    *("predicted_j", "predicted_low_j", "predicted_high_j"),
    *("predicted_s", "predicted_low_s", "predicted_high_s"),
)


def prediction_table(study: Study, attempts: pl.DataFrame) -> pl.DataFrame:
    """`predictions.parquet` of a study from the predictions that were stored when runs started."""
    predicted = pl.DataFrame(
        [
            (
                *(one.job, one.plan_utc, one.basis, one.fit, one.hardware),
                *(one.energy_j, one.energy_low_j, one.energy_high_j),
                *(one.duration_s, one.duration_low_s, one.duration_high_s),
            )
            for one in study.predictions
        ],
        schema={name: SCHEMA[name] for name in _PREDICTED},
        orient="row",
    )
    succeeded = (
        attempts.filter((pl.col("status") == "ok") & pl.col("energy_j").is_not_null())
        .sort("start_utc", "id")
        .select(
            *("job", "stage", "run", "artifact_kind", "artifact_key", "start_utc"),
            measured_hardware="hardware",
            measured_j="energy_j",
            measured_s="duration_s",
        )
    )
    lost = pl.col("energy_j").filter(pl.col("status").is_in(WASTED)).sum()
    wasted = attempts.group_by("job").agg(wasted_j=lost)
    pairs = (
        predicted.join(succeeded, on="job")
        .filter(pl.col("plan_utc") <= pl.col("start_utc"))
        .sort("job", "start_utc", "plan_utc")
        .unique("job", keep="last", maintain_order=True)
    )
    return (
        pairs.join(wasted, on="job", how="left")
        .with_columns(
            ratio=pl.when(pl.col("predicted_j") > 0).then(
                pl.col("measured_j") / pl.col("predicted_j")
            ),
            covered=pl.col("measured_j").is_between("predicted_low_j", "predicted_high_j"),
            covered_s=pl.col("measured_s").is_between("predicted_low_s", "predicted_high_s"),
        )
        .select(list(SCHEMA))
        .cast(SCHEMA)  # type: ignore[arg-type]
        .sort("job", "plan_utc")
    )
