"""The measures of Slimming-Models-Saving-Watts: energy per token served, retention, efficiency.

* EPT, joules per token: a run's evaluation energy over its evaluated tokens (prompt and answer),
  and apart for prefill (over prompt tokens; with the first token of each answer) and decoding (over
  generated tokens). Null where a job did not mark the two: likelihood tasks have no decoding, vLLM
  and other harnesses mix them in one batch, imported energies have no phases. What a teacher spends
  on prompts and on answers stands apart in the same way, per artifact (`artifacts`).
* OM_perf = mean over benchmarks of A_student / A_teacher, the second of the three definitions in
  that project's history; it equals Q of arXiv 2605.13981.
* Eff_overall of a run = OM_perf · EPT_teacher / EPT_student, the teacher's evaluation on the same
  problems; of a pipeline its mean over students, each the mean of its runs.
"""

from __future__ import annotations

import polars as pl

from angelshare.accounting.study import Study

EFFICIENCY_COLUMNS = (
    *("prefill_j_per_token", "decode_j_per_token", "teacher_inference_j_per_token"),
    *("om_perf", "eff_overall"),
)

_SCHEMA = {
    "pipeline": pl.String,
    "students": pl.Int64,
    "runs": pl.Int64,
    **dict.fromkeys(("inference_j_per_token", "prefill_j_per_token"), pl.Float64),
    **dict.fromkeys(("decode_j_per_token", "om_perf", "eff_overall"), pl.Float64),
}


def with_efficiency(runs: pl.DataFrame, study: Study, attempts: pl.DataFrame) -> pl.DataFrame:
    """`runs` (with `quality` and `inference_j_per_token`) with the columns `EFFICIENCY_COLUMNS`."""
    done = attempts.filter(pl.col("status") == "ok")
    phases = per_phase(done.filter(pl.col("stage") == "evaluate"), "run")
    scored = (
        done.filter(pl.col("stage") == "teacher_evaluate")
        .group_by(kind="artifact_kind", key="artifact_key")
        .agg(teacher_inference_j_per_token=_ratio("energy_j", "tokens"))
    )
    compared = pl.DataFrame(
        [(run.run, *run.teacher_scores) for run in study.runs if run.teacher_scores],
        schema={"run": pl.String, "kind": pl.String, "key": pl.String},
        orient="row",
    ).join(scored, on=["kind", "key"])
    saving = pl.col("teacher_inference_j_per_token") / pl.col("inference_j_per_token")
    return (
        runs.join(phases, on="run", how="left", maintain_order="left")
        .join(
            compared.select("run", "teacher_inference_j_per_token"),
            on="run",
            how="left",
            maintain_order="left",
        )
        .with_columns(
            om_perf=pl.col("quality"),
            eff_overall=pl.when(pl.col("inference_j_per_token") > 0).then(
                pl.col("quality") * saving
            ),
        )
    )


def per_phase(attempts: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Per group of attempts that marked them: `prefill_j_per_token`, over prompt tokens, and
    `decode_j_per_token`, over generated tokens."""
    return (
        attempts.filter(pl.col("prefill_j").is_not_null())
        .group_by(by)
        .agg(
            prefill_j_per_token=_ratio("prefill_j", "prompt_tokens"),
            decode_j_per_token=_ratio("decode_j", "generated_tokens"),
        )
    )


def with_phases(artifacts: pl.DataFrame, attempts: pl.DataFrame) -> pl.DataFrame:
    """The artifacts with the teacher's joules per prompt token and per answer token."""
    done = attempts.filter(pl.col("status") == "ok").rename(
        {"artifact_kind": "kind", "artifact_key": "key"}
    )
    return artifacts.join(
        per_phase(done, "kind", "key"), on=["kind", "key"], how="left", maintain_order="left"
    )


def efficiency_table(runs: pl.DataFrame) -> pl.DataFrame:
    """`efficiency.parquet`: per pipeline the means over students of their runs' means."""
    names = [name for name, kind in _SCHEMA.items() if kind == pl.Float64]
    by_student = runs.group_by("pipeline", "student").agg(
        pl.col(names).mean(), runs=pl.len().cast(pl.Int64)
    )
    return (
        by_student.group_by("pipeline")
        .agg(
            pl.col(names).mean(),
            students=pl.len().cast(pl.Int64),
            runs=pl.col("runs").sum(),
        )
        .select(list(_SCHEMA))
        .cast(_SCHEMA)  # type: ignore[arg-type]
        .sort("pipeline")
    )


def _ratio(joules: str, tokens: str) -> pl.Expr:
    """Summed joules per summed token; null where no token was counted."""
    count = pl.col(tokens).sum()
    return pl.when(count > 0).then(pl.col(joules).sum() / count)
