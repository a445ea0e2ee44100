"""One row per student run: its energy under the three views, per token, its carbon and its quality.

Joules. `student_only_j` counts the run's own student stages, failed attempts included;
`one_off_j` adds what it made upstream for itself and every shared artifact's whole bill;
`amortized_j` adds the run's share instead. Always student-only <= amortised <= one-off. A teacher
that lies in memory during a training (`teacher_online_j`) works for that run alone: no other can
share it, so it is part of all three.
Quality is the mean over benchmarks of student / teacher (performance retention, arXiv 2605.13981).
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from angelshare.accounting.attempts import WASTED
from angelshare.accounting.bills import known_sum
from angelshare.accounting.efficiency import EFFICIENCY_COLUMNS, with_efficiency
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import TEACHER_KINDS, Run, Score, Study
from angelshare.accounting.uncertainty import VIEWS, Exposures, known_bound
from angelshare.errors import AngelshareError

RUN_COLUMNS = ("run", "pipeline", "student", "dataset", "seed")
"""The columns that stand before the hyperparameters."""

_TAKEN = frozenset(
    {*RUN_COLUMNS, "setting", "distilled", "parameters", "tokens", "quality", "quality_stderr", "n"}
    | {"note", "datasets", "benchmarks_missing", "co2e_g", "j_per_token", "view", "energy_j"}
    | {"private_j", "teacher_j", "wasted_j", "inference_j_per_token", "teacher_share_j"}
    | {"teacher_online_j"}
    | {"prefill_j_per_token", "decode_j_per_token", "teacher_inference_j_per_token"}
    | {"teacher_scores", "om_perf", "eff_overall", "inference_batch_size"}
    | {f"{view}_{what}" for view in VIEWS for what in ("j", "low_j", "high_j", "co2e_g")}
)


def hyperparameter_names(study: Study) -> list[str]:
    """Every hyperparameter that some run has, sorted; each is a column of runs and summary."""
    names = sorted({name for run in study.runs for name in run.hyperparameters})
    if clash := [name for name in names if name in _TAKEN]:
        raise AngelshareError(
            f"hyperparameter {clash[0]} is named like a column of the accounting tables: rename it"
        )
    return names


def benchmark_names(study: Study) -> list[str]:
    """Every benchmark with a score, sorted; each is a column of runs."""
    names = sorted({score.benchmark for score in study.scores})
    taken = _TAKEN | set(hyperparameter_names(study))
    if clash := [name for name in names if name in taken]:
        raise AngelshareError(
            f"benchmark {clash[0]} is named like a column of the accounting tables: rename it"
        )
    return names


def run_table(
    study: Study,
    attempts: pl.DataFrame,
    bills: pl.DataFrame,
    shares: pl.DataFrame,
    exposed: Exposures,
    settings: AccountingSettings,
) -> pl.DataFrame:
    """`runs.parquet`. `j_per_token` and `co2e_g` are of the one-off energy, as the paper's Table 2
    counts; the other views have columns of their own. Low and high are measurement bounds."""
    own = _own_energy(study, attempts, settings)
    upstream = _upstream(study, bills, shares)
    frame = _described(study).join(own, on="run", how="left").join(upstream, on="run", how="left")
    frame = frame.with_columns(
        one_off_j=pl.col("student_only_j") + pl.col("private_j") + pl.col("whole_j"),
        amortized_j=pl.col("student_only_j") + pl.col("private_j") + pl.col("shared_j"),
        one_off_co2e_g=pl.col("student_only_co2e_g") + pl.col("private_co2e_g") + pl.col("whole_g"),
        amortized_co2e_g=(
            pl.col("student_only_co2e_g") + pl.col("private_co2e_g") + pl.col("shared_g")
        ),
    )
    for view in VIEWS:
        bound = pl.Series(f"{view}_u95_j", known_bound(exposed.views[view]), dtype=pl.Float64)
        frame = frame.with_columns(bound).with_columns(
            (pl.col(f"{view}_j") - pl.col(f"{view}_u95_j")).clip(0.0).alias(f"{view}_low_j"),
            (pl.col(f"{view}_j") + pl.col(f"{view}_u95_j")).alias(f"{view}_high_j"),
            _per_token(pl.col(f"{view}_j")).alias(f"{view}_j_per_token"),
        )
    frame = frame.with_columns(
        j_per_token=pl.col("one_off_j_per_token"), co2e_g=pl.col("one_off_co2e_g")
    )
    quality = _quality(study)
    names = hyperparameter_names(study)
    frame = frame.join(quality, on="run", how="left", maintain_order="left")
    first = [*RUN_COLUMNS, *names, "setting", "distilled"]
    core = ["student_only_j", "one_off_j", "amortized_j", "tokens", "j_per_token", "co2e_g"]
    scores = ["quality", "quality_stderr", "teacher_scores", "benchmarks_missing"]
    scores += [*benchmark_names(study)]
    spread = [f"{view}_{what}" for view in VIEWS for what in ("low_j", "high_j", "j_per_token")]
    rest = ["student_only_co2e_g", "amortized_co2e_g", "private_j", "teacher_j", "teacher_share_j"]
    rest += ["teacher_online_j"]
    own_columns = ["wasted_j", "inference_j_per_token", "unresolved_attempts", "parameters"]
    own_columns += ["inference_batch_size"]
    frame = with_efficiency(frame, study, attempts)
    return frame.select(*first, *core, *scores, *spread, *rest, *own_columns, *EFFICIENCY_COLUMNS)


def _per_token(energy_j: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("tokens") > 0).then(energy_j / pl.col("tokens"))


def _described(study: Study) -> pl.DataFrame:
    """What the study says of its runs, with the label of each run's setting."""
    names = hyperparameter_names(study)
    columns: dict[str, Any] = {
        column: [getattr(run, column) for run in study.runs] for column in RUN_COLUMNS
    }
    for name in names:
        columns[name] = _column(name, [run.hyperparameters.get(name) for run in study.runs])
    varying = _varying(study.runs)
    columns["setting"] = [setting_label(run, varying.get(run.pipeline, ())) for run in study.runs]
    columns["distilled"] = [
        r.teacher_online or any(kind in TEACHER_KINDS for kind, _ in r.artifacts)
        for r in study.runs
    ]
    columns["tokens"] = [run.tokens for run in study.runs]
    columns["parameters"] = [run.parameters for run in study.runs]
    columns["inference_batch_size"] = [run.inference_batch_size for run in study.runs]
    schema = dict.fromkeys((*RUN_COLUMNS[:-1], "setting"), pl.String)
    return pl.DataFrame(
        columns,
        schema_overrides={
            **schema,
            "seed": pl.Int64,
            "tokens": pl.Int64,
            "parameters": pl.Int64,
            "inference_batch_size": pl.Int64,
            "distilled": pl.Boolean,
        },
    )


def _column(name: str, values: list[Any]) -> pl.Series:
    """Hyperparameters as one type: numbers as floats, truth values as they are, else text."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return pl.Series(name, values, dtype=pl.Boolean)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    return pl.Series(name, [None if v is None else str(v) for v in values], dtype=pl.String)


def _varying(runs: tuple[Run, ...]) -> dict[str, tuple[str, ...]]:
    """Per pipeline, the hyperparameters in which its runs differ."""
    found: dict[str, tuple[str, ...]] = {}
    for pipeline in {run.pipeline for run in runs}:
        mine = [run for run in runs if run.pipeline == pipeline]
        names = sorted({name for run in mine for name in run.hyperparameters})
        found[pipeline] = tuple(
            name for name in names if len({str(run.hyperparameters.get(name)) for run in mine}) > 1
        )
    return found


def setting_label(run: Run, varying: tuple[str, ...]) -> str:
    """`kd small T=2`: pipeline, student, and the hyperparameters that vary in the pipeline."""
    symbols = {"temperature": "T", "alpha": "α"}
    parts = [f"{run.pipeline} {run.student}"]
    for name in varying:
        value = run.hyperparameters.get(name)
        if value is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{symbols.get(name, name)}={text}")
    return " ".join(parts)


def _own_energy(study: Study, attempts: pl.DataFrame, settings: AccountingSettings) -> pl.DataFrame:
    """Joules and grams of each run's own attempts, student stages and private upstream apart."""
    student = pl.col("stage").is_in(settings.student_stages)
    evaluation = pl.col("stage") == "evaluate"
    own = (
        attempts.filter(pl.col("run").is_not_null() & ~pl.col("stage").is_in(settings.apart))
        .group_by("run")
        .agg(
            student_only_j=pl.col("energy_j").filter(student).sum(),
            private_j=pl.col("energy_j").filter(~student).sum(),
            student_only_co2e_g=known_sum(pl.col("co2e_g").filter(student)),
            private_co2e_g=pl.col("co2e_g").filter(~student).sum(),
            wasted_j=pl.col("energy_j").filter(pl.col("status").is_in(WASTED)).sum(),
            teacher_online_j=known_sum(pl.col("teacher_online_j").filter(student)),
            inference_j=pl.col("energy_j").filter(evaluation & (pl.col("status") == "ok")).sum(),
            inference_tokens=pl.col("tokens").filter(evaluation & (pl.col("status") == "ok")).sum(),
            unresolved_attempts=pl.col("energy_j").is_null().sum(),
        )
        .with_columns(
            inference_j_per_token=pl.when(pl.col("inference_tokens") > 0).then(
                pl.col("inference_j") / pl.col("inference_tokens")
            )
        )
    )
    known = set(own["run"])
    if unknown := sorted(run.run for run in study.runs if run.run not in known):
        raise AngelshareError(
            f"no attempt record says what run {unknown[0]} cost ({len(unknown)} such runs): "
            "train and evaluate it, or leave it out of the study"
        )
    return own


def _upstream(study: Study, bills: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """Per run: the whole bills of its artifacts and its shares; the teacher's part apart."""
    named = pl.DataFrame(
        [(run.run, kind, key) for run in study.runs for kind, key in dict.fromkeys(run.artifacts)],
        schema={"run": pl.String, "kind": pl.String, "key": pl.String},
        orient="row",
    )
    ours = shares.filter("ours").group_by("kind", "key", "run").agg(pl.col("share_j").sum())
    charged = pl.col("charged_j")
    grams = pl.when(charged > 0).then(pl.col("share_j") / charged * pl.col("co2e_g")).otherwise(0.0)
    sums = (
        named.join(bills, on=["kind", "key"])
        .filter("charged")
        .join(ours, on=["kind", "key", "run"], how="left")
        .with_columns(pl.col("share_j").fill_null(0.0))
        .group_by("run")
        .agg(
            whole_j=charged.sum(),
            shared_j=pl.col("share_j").sum(),
            whole_g=pl.col("co2e_g").sum(),
            shared_g=grams.sum(),
            teacher_j=charged.filter("teacher").sum(),
            teacher_share_j=pl.col("share_j").filter("teacher").sum(),
        )
    )
    every = pl.DataFrame({"run": [run.run for run in study.runs]}, schema={"run": pl.String})
    return every.join(sums, on="run", how="left").with_columns(pl.exclude("run").fill_null(0.0))


def _ratio_errors(score: Score, teacher_score: float) -> list[float]:
    """What the standard errors of both scores do to student / teacher, to first order."""
    ratio = score.score / teacher_score
    own = [] if score.stderr is None else [score.stderr / teacher_score]
    theirs = [] if score.teacher_stderr is None else [ratio * score.teacher_stderr / teacher_score]
    return own + theirs


def _quality(study: Study) -> pl.DataFrame:
    """Per run: quality, its standard error from the benchmarks', and the scores themselves.

    Q = mean over the study's benchmarks of score / teacher score; null where a run lacks one of
    them, because means over different benchmarks do not compare. Errors of benchmarks, and of
    student and teacher, count as independent; a score without a standard error counts as exact.
    The teacher's error is common to its students: of their differences this says too much.
    """
    counted = sorted({score.benchmark for score in study.scores if score.in_quality})
    by_run: dict[str, dict[str, Score]] = {run.run: {} for run in study.runs}
    for score in study.scores:
        by_run[score.run][score.benchmark] = score
    rows = []
    for run, scores in by_run.items():
        usable = [scores[name] for name in counted if name in scores and scores[name].teacher_score]
        missing = [name for name in counted if name not in {score.benchmark for score in usable}]
        complete = bool(counted) and not missing
        ratios = [score.score / score.teacher_score for score in usable if score.teacher_score]
        errors = [
            error
            for score in usable
            if score.teacher_score
            for error in _ratio_errors(score, score.teacher_score)
        ]
        count = len(ratios)
        rows.append(
            {
                "run": run,
                "quality": sum(ratios) / count if complete else None,
                "quality_stderr": math.hypot(*errors) / count if complete and errors else None,
                "benchmarks_missing": ", ".join(missing),
                "teacher_scores": "; ".join(
                    dict.fromkeys(f"{one.benchmark}: {one.teacher_source}" for one in usable)
                ),
                **{name: scores[name].score for name in scores},
            }
        )
    schema: dict[str, Any] = {
        "run": pl.String,
        "quality": pl.Float64,
        "quality_stderr": pl.Float64,
        "benchmarks_missing": pl.String,
        "teacher_scores": pl.String,
        **dict.fromkeys(benchmark_names(study), pl.Float64),
    }
    return pl.DataFrame(rows, schema=schema)
