"""What each paradigm costs against plain fine-tuning, and what its caches take: one study's tables.

    snakemake --profile local --configfile config/grids/paradigms.yaml -- all_frontiers
    python -m benchmarks.paradigms [--results results/paradigms] [--out FILE.json]

Energy and time are those of the jobs, start of the program included, over the tokens that they
trained; the first pass that relations and CKA make where a step has several counts with them, and
so do a teacher in memory, whose joules a run stand apart as well, and the student's own answers.
Bytes are those of the artifact's files, compressed, over the target positions that the teacher
read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from angelshare.files import publish_json

CACHES = ("logits", "states", "corpus")
PLAIN = "sft"


def trainings(accounting: Path) -> list[dict[str, Any]]:
    """A row for every pipeline and student: joules and seconds per token, and what came out."""
    runs = pl.read_parquet(accounting / "runs.parquet")
    scores = [name for name in runs.columns if name.endswith("_after_hash")]
    made = pl.read_parquet(accounting / "attempts.parquet").filter(
        (pl.col("stage") == "student_train") & (pl.col("status") == "ok")
    )
    spent = made.group_by("run").agg(
        pl.col("energy_j").sum(), pl.col("duration_s").sum(), pl.col("tokens").sum().alias("read")
    )
    table = (
        runs.join(spent, on="run")
        .with_columns(
            uj_per_token=1e6 * pl.col("energy_j") / pl.col("read"),
            us_per_token=1e6 * pl.col("duration_s") / pl.col("read"),
        )
        .group_by("pipeline", "student", maintain_order=True)
        .agg(
            pl.len().alias("runs"),
            pl.col("uj_per_token", "us_per_token").mean(),
            pl.col("uj_per_token").std().alias("uj_per_token_sd"),
            pl.col("teacher_online_j", "teacher_j", "amortized_j", "one_off_j").mean(),
            pl.col("validation_cross_entropy").mean(),
            pl.col("validation_cross_entropy").std().alias("validation_cross_entropy_sd"),
            *(pl.col(name).mean() for name in scores),
            *(pl.col(name).std().alias(f"{name}_sd") for name in scores),
        )
    )
    return [dict(row) for row in table.iter_rows(named=True)]


def caches(accounting: Path) -> list[dict[str, Any]]:
    """A row for everything that a teacher left: bytes and joules per target position."""
    table = pl.read_parquet(accounting / "artifacts.parquet").filter(pl.col("kind").is_in(CACHES))
    return [
        {
            "kind": row["kind"],
            "label": row["label"],
            "targets": row["tokens"],
            "bytes_per_target": row["bytes"] / row["tokens"],
            "j_per_target": row["energy_j"] / row["tokens"],
            "consumers": row["consumers"],
        }
        for row in table.iter_rows(named=True)
    ]


def shown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[n]) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def against_plain(rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Joules and seconds per token in units of plain fine-tuning's of the same student."""
    plain = {row["student"]: row for row in rows if row["pipeline"] == PLAIN}
    return [
        {
            "pipeline": row["pipeline"],
            "student": row["student"],
            "energy": row["uj_per_token"] / plain[row["student"]]["uj_per_token"],
            "time": row["us_per_token"] / plain[row["student"]]["us_per_token"],
        }
        for row in rows
        if row["student"] in plain
    ]


def main() -> None:
    """Read the tables, print and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paradigms", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/paradigms"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    accounting = arguments.results / "accounting"
    trained, kept = trainings(accounting), caches(accounting)
    compared = [dict(row) for row in against_plain(trained)]
    for rows in (trained, compared, kept):
        if rows:
            print(shown(rows), end="\n\n")
    if arguments.out:
        figures = {"trainings": trained, "against_sft": compared, "caches": kept}
        publish_json(arguments.out, figures)


if __name__ == "__main__":
    main()
