"""Points that share one training: a model that is also scored in another precision.

Such a point could not exist without the training, nor without what the training read. So in every
view it carries the training and the shares of the run that was trained, whole, and its own
evaluation. Nothing is paid twice: attempts, artifacts and shares know one training and one
consumer, and it is only the rows of runs that do not add up to the study where such points are.
"""

from __future__ import annotations

import polars as pl

from angelshare.accounting.study import Study


def lent(study: Study, records: pl.DataFrame) -> pl.DataFrame:
    """Attempts (or their components) with those of each training once more for its points."""
    trained = pl.col("stage") == "student_train"
    copies = [
        records.filter((pl.col("run") == run.trained_as) & trained).with_columns(
            run=pl.lit(run.run), id=pl.col("id") + f"@{run.run}"
        )
        for run in study.runs
        if run.trained_as
    ]
    return pl.concat([records, *copies])


def lent_shares(study: Study, shares: pl.DataFrame) -> pl.DataFrame:
    """Shares with those of each run that was trained once more for its points."""
    copies = [
        shares.filter("ours", pl.col("run") == run.trained_as).with_columns(run=pl.lit(run.run))
        for run in study.runs
        if run.trained_as
    ]
    return pl.concat([shares, *copies])
