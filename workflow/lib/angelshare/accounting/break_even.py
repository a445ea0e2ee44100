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

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.difference import difference_errors, mean_of
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import TEACHER_KINDS, Study
from angelshare.accounting.uncertainty import (
    Exposure,
    Exposures,
    Repeats,
    SharedDraws,
    interval,
    known_bound,
)

NEVER, FINITE, UNBOUNDED, AT_ONCE, UNKNOWN = "never", "finite", "unbounded", "at once", "unknown"
"""Statuses: no such number; a number with a finite interval; a number whose interval has no upper
end (never is among the plausible values); nothing to pay back; not enough data to say."""

_SCHEMA = {
    **dict.fromkeys(("pipeline", "student", "setting", "baseline_setting"), pl.String),
    **dict.fromkeys(("teacher_j", "teacher_low_j", "teacher_high_j"), pl.Float64),
    **dict.fromkeys(("baseline_student_j", "distilled_student_j"), pl.Float64),
    **dict.fromkeys(("gap_j", "gap_low_j", "gap_high_j"), pl.Float64),
    **dict.fromkeys(("n_star", "n_star_low", "n_star_high"), pl.Float64),
    "n_star_status": pl.String,
    "never_probability": pl.Float64,
    "consumers": pl.Int64,
    "reached": pl.Boolean,
    "reached_probability": pl.Float64,
    **dict.fromkeys(("t_star_tokens", "t_star_low", "t_star_high"), pl.Float64),
    **dict.fromkeys(("t_star_status", "t_star_reference"), pl.String),
    **dict.fromkeys(("n_baseline", "n_distilled"), pl.Int64),
    **dict.fromkeys(("datasets", "note"), pl.String),
}


def break_even_table(
    study: Study,
    runs: pl.DataFrame,
    shares: pl.DataFrame,
    exposed: Exposures,
    settings: AccountingSettings,
) -> pl.DataFrame:
    """`break_even.parquet`: one row per distilling pipeline and student.

    Where a pipeline has several settings for a student, the row is of the one with the most runs
    on the baseline's datasets, then of the highest quality; `setting` names it. `consumers` are
    those of the least shared of its teacher artifacts, over all teams.
    """
    generator = np.random.default_rng(settings.seed)
    shared = exposed.shared_draws(settings.draws, generator)
    plain = runs.filter((pl.col("pipeline") == settings.baseline) & ~pl.col("distilled"))
    baselines = {
        str(student): _reference(group, None)
        for (student,), group in plain.group_by("student", maintain_order=True)
    }
    consumers = _consumers(study, shares)
    rows = []
    distilled = runs.filter("distilled").sort("pipeline", "student", "setting", "run")
    for (pipeline, student), group in distilled.group_by(
        "pipeline", "student", maintain_order=True
    ):
        baseline = baselines.get(str(student))
        chosen = _reference(group, baseline)
        row: dict[str, Any] = {"pipeline": pipeline, "student": student}
        row["setting"] = chosen["setting"][0]
        row["consumers"] = min(consumers[run] for run in chosen["run"])
        row |= _n_star(chosen, baseline, row["consumers"], exposed, shared, settings, generator)
        row |= _t_star(chosen, baselines, settings, generator)
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _reference(group: pl.DataFrame, baseline: pl.DataFrame | None) -> pl.DataFrame:
    """The runs of the setting that stands for a pipeline and student."""
    candidates = []
    for (setting,), runs in group.group_by("setting", maintain_order=True):
        matched = runs.height if baseline is None else _on_datasets_of(runs, baseline).height
        quality = [value for value in runs["quality"] if value is not None]
        rank = (-matched, -float(np.mean(quality)) if quality else np.inf, str(setting))
        candidates.append((rank, runs))
    return min(candidates, key=lambda candidate: candidate[0])[1].sort("run")


def _on_datasets_of(runs: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    return runs.filter(pl.col("dataset").is_in(other["dataset"].unique().to_list()))


def _consumers(study: Study, shares: pl.DataFrame) -> dict[str, int]:
    """Per run, the consumers of the least shared of its teacher artifacts (0 where it has none)."""
    counts = {(kind, key): n for kind, key, n in shares.group_by("kind", "key").len().rows()}
    return {
        run.run: min(
            (counts.get(artifact, 0) for artifact in run.artifacts if artifact[0] in TEACHER_KINDS),
            default=0,
        )
        for run in study.runs
    }


def _n_star(
    distilled: pl.DataFrame,
    baseline: pl.DataFrame | None,
    consumers: int,
    exposed: Exposures,
    shared: SharedDraws,
    settings: AccountingSettings,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The columns of N* for one pipeline and student against the baseline of the same student."""
    matched = distilled if baseline is None else _on_datasets_of(distilled, baseline)
    if baseline is None or not matched.height:
        return {
            "n_star_status": UNKNOWN,
            "n_distilled": distilled.height,
            "n_baseline": 0,
            "datasets": ", ".join(sorted(set(distilled["dataset"]))),
            "note": f"no {settings.baseline} run of this student on these datasets to compare with",
        }
    against = _on_datasets_of(baseline, matched)
    plus, minus = _weights(against, exposed), _weights(matched, exposed)
    plain_j, taught_j = (_by_dataset(side, "student_only_j") for side in (against, matched))
    baseline_j, distilled_j = mean_of(plain_j), mean_of(taught_j)
    teacher = exposed.teacher.combine(minus)
    teacher_j = mean_of(_by_dataset(matched, "teacher_j"))
    gap_D = (
        baseline_j - distilled_j + difference_errors(plain_j, taught_j, settings.draws, generator)
    )
    gap_D = gap_D + _meter(exposed.views["student_only"].combine(plus - minus), shared, generator)
    gap_low_j, gap_high_j = interval(gap_D)
    bound_j = known_bound(teacher)[0]
    teacher_D = np.maximum(teacher_j + _meter(teacher, shared, None), 0.0)
    return {
        "baseline_setting": against["setting"][0],
        "teacher_j": teacher_j,
        "teacher_low_j": None if bound_j is None else max(0.0, teacher_j - bound_j),
        "teacher_high_j": None if bound_j is None else teacher_j + bound_j,
        "baseline_student_j": baseline_j,
        "distilled_student_j": distilled_j,
        "gap_j": baseline_j - distilled_j,
        "gap_low_j": gap_low_j,
        "gap_high_j": gap_high_j,
        **pay_back(teacher_j, baseline_j - distilled_j, teacher_D, gap_D, consumers),
        "n_baseline": against.height,
        "n_distilled": matched.height,
        "datasets": ", ".join(sorted(set(matched["dataset"]))),
        "note": _note(against.height, matched.height),
    }


def pay_back(
    teacher_j: float, gap_j: float, teacher_D: np.ndarray, gap_D: np.ndarray, consumers: int
) -> dict[str, Any]:
    """N* with its 95 % interval from draws of the teacher's bill and of the gap.

    A draw with a gap at or below zero stands for "never", above every number: an upper end that
    falls there is null and the status says "unbounded". Draws without any spread know nothing of
    the uncertainty: then there is no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        n_D = np.where(gap_D > 0, teacher_D / gap_D, np.inf)
    low, high = np.quantile(n_D, [0.025, 0.975], method="inverted_cdf")
    n_star = teacher_j / gap_j if gap_j > 0 else None
    status = NEVER if n_star is None else FINITE if np.isfinite(high) else UNBOUNDED
    reached = n_star is not None and consumers >= n_star
    if np.ptp(gap_D) == 0 and np.ptp(teacher_D) == 0:
        return {"n_star": n_star, "n_star_status": status, "reached": reached}
    return {
        "n_star": n_star,
        "n_star_low": float(low) if np.isfinite(low) else None,
        "n_star_high": float(high) if np.isfinite(high) else None,
        "n_star_status": status,
        "never_probability": float((gap_D <= 0).mean()),
        "reached": reached,
        "reached_probability": float((n_D <= consumers).mean()),
    }


def _weights(runs: pl.DataFrame, exposed: Exposures) -> np.ndarray:
    """[1, all runs]: the mean over datasets of the mean over each dataset's runs."""
    weights = np.zeros((1, len(exposed.runs)))
    for (_,), group in runs.group_by("dataset", maintain_order=True):
        index = [exposed.runs.index(run) for run in group["run"]]
        weights[0, index] = 1.0 / (runs["dataset"].n_unique() * group.height)
    return weights


def _by_dataset(runs: pl.DataFrame, column: str) -> list[np.ndarray]:
    """The values of a column per dataset, datasets in sorted order."""
    groups = runs.sort("dataset", "run").group_by("dataset", maintain_order=True)
    return [group[column].to_numpy() for _, group in groups]


def _meter(
    exposure: Exposure, shared: SharedDraws, generator: np.random.Generator | None
) -> np.ndarray:
    """Measurement errors of one row, [draws] joules; with a generator its own noise as well."""
    own = None
    if generator is not None:
        own = generator.standard_normal((len(shared.board_DB), 1))
    return exposure.draw(shared, own)[:, 0]


def _t_star(
    distilled: pl.DataFrame,
    baselines: Mapping[str, pl.DataFrame],
    settings: AccountingSettings,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The columns of T*. Interval from repeats alone: one board's gain cancels in this ratio."""
    named = _serving_reference(distilled, baselines)
    if named is None:
        return {"t_star_status": UNKNOWN}
    reference, relation = named
    columns = ["one_off_j", "inference_j_per_token"]
    sides, drawn, repeated = [], [], True
    for side in (distilled, reference):
        known = side.drop_nulls(columns)
        if not known.height:
            return {"t_star_status": UNKNOWN}
        repeats = Repeats.of(known.select(columns).to_numpy(), known["dataset"].to_list())
        sides.append(repeats.mean_C)
        repeated = repeated and repeats.df > 0
        drawn.append(repeats.draw(settings.draws, generator))
    extra_j, saving = sides[0][0] - sides[1][0], sides[1][1] - sides[0][1]
    tokens_D = _tokens_to_repay(drawn[0][:, 0] - drawn[1][:, 0], drawn[1][:, 1] - drawn[0][:, 1])
    tokens = float(_tokens_to_repay(np.array(extra_j), np.array(saving)))
    low, high = np.quantile(tokens_D, [0.025, 0.975], method="inverted_cdf")
    finite = FINITE if np.isfinite(high) else UNBOUNDED
    return {
        "t_star_tokens": tokens if np.isfinite(tokens) else None,
        "t_star_low": float(low) if repeated and np.isfinite(low) else None,
        "t_star_high": float(high) if repeated and np.isfinite(high) else None,
        "t_star_status": AT_ONCE if tokens == 0 else NEVER if not np.isfinite(tokens) else finite,
        "t_star_reference": f"{reference['setting'][0]} ({relation})",
    }


def _tokens_to_repay(extra_j: np.ndarray, saving_j_per_token: np.ndarray) -> np.ndarray:
    """extra / saving; 0 where there is nothing extra, infinite where nothing is saved."""
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = np.where(saving_j_per_token > 0, extra_j / saving_j_per_token, np.inf)
    return np.where(extra_j <= 0, 0.0, tokens)


def _serving_reference(
    distilled: pl.DataFrame, baselines: Mapping[str, pl.DataFrame]
) -> tuple[pl.DataFrame, str] | None:
    """The next larger baseline student by parameters (else by joules per token served)."""
    same = baselines.get(str(distilled["student"][0]))
    for size in ("parameters", "inference_j_per_token"):
        sizes = {name: runs[size].mean() for name, runs in baselines.items()}
        own = sizes.get(str(distilled["student"][0]), distilled[size].mean())
        if own is None or any(value is None for value in sizes.values()):
            continue
        larger = [name for name, value in sizes.items() if value > own]  # type: ignore[operator]
        if larger:
            return baselines[min(larger, key=lambda name: sizes[name])], "next larger baseline"  # type: ignore[arg-type, return-value]
        break
    return None if same is None else (same, "same-size baseline, none is larger")


def _note(n_baseline: int, n_distilled: int) -> str:
    fewest = min(n_baseline, n_distilled)
    return f"n = {fewest} < 3: interval hardly known" if fewest < 3 else ""
