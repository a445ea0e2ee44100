"""Slurm's own joules beside ours: a reconciliation, never a value."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

JOB = ("slurm_cluster", "slurm_job", "slurm_restart")


def slurm_jobs(attempts: pl.DataFrame) -> list[tuple[str, str, int]]:
    """Every Slurm job (cluster, id, restarts) that an attempt ran in."""
    return attempts.select(JOB).drop_nulls().unique().sort(JOB).rows()


def beside_slurm(
    attempts: pl.DataFrame, energies: Mapping[tuple[str, str, int], float | None]
) -> pl.DataFrame:
    """Fill `slurm_energy_j` and `slurm_ratio` where Slurm has a figure for an attempt's job.

    `slurm_energy_j` is the whole Slurm job's (J); `slurm_ratio` is the sum over all attempts that
    ran in that job (one, or those of a group of rules) divided by it.
    """
    known = [(*job, joules) for job, joules in energies.items() if joules is not None]
    types = {name: attempts.schema[name] for name in (*JOB, "slurm_energy_j")}
    theirs = pl.DataFrame(known, schema=types, orient="row")
    ours = pl.col("energy_j").sum().over(JOB)
    return (
        attempts.drop("slurm_energy_j")
        .join(theirs, on=JOB, how="left", maintain_order="left")
        .with_columns(slurm_ratio=ours / pl.col("slurm_energy_j"))
        .select(attempts.columns)
    )
