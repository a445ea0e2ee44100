"""N* and T* rows by hand: which settings are compared, and with what reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Consumer, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables

Line = tuple[Run, float, float, float]
"""A run with the joules of its training and evaluation, and its score."""


def run(name: str, pipeline: str, student: str, seed: int = 0, **more: Any) -> Run:
    """A run; distilled ones stand on the cache `k` unless told otherwise."""
    artifacts = (("logits", "k"),) if pipeline == "kd" else ()
    dataset = more.pop("dataset", "d")
    return Run(name, pipeline, student, dataset, seed, more, artifacts, 1000)


def tables_of(lines: list[Line], consumers: tuple[Consumer, ...] = ()) -> Tables:
    pairs = [
        (
            Record(Path("l.json"), sidecar("l", "teacher_logits", 100.0, gpu=True, gain=0.0)),
            AttemptSource(Path("l"), None, "logits", "k"),
        )
    ]
    scores = []
    for one, train_j, evaluate_j, score in lines:
        for stage, energy_j in (("student_train", train_j), ("evaluate", evaluate_j)):
            value = sidecar(
                f"{stage}-{one.run}",
                stage,
                energy_j,
                gpu=True,
                gain=0.0,
                tokens={"evaluated": 10, "trained": 1000},
            )
            source = AttemptSource(Path(one.run), one.run)
            pairs.append((Record(Path(f"{stage}-{one.run}.json"), value), source))
        scores.append(Score(one.run, "b", score, None, 0.8))
    artifact = Artifact("logits", "k", "cache", 10, 10, True, consumers)
    study = Study("us", tuple(line[0] for line in lines), (artifact,), tuple(scores))
    return make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=400))


def rows_of(tables: Tables) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["pipeline"], r["student"]): r for r in tables.break_even.rows(named=True)}


SMALL: Line = (run("s1", "sft", "small"), 60.0, 2.0, 0.4)
LARGE: Line = (run("s2", "sft", "large"), 130.0, 6.0, 0.6)
TAUGHT: Line = (run("k1", "kd", "small"), 50.0, 2.0, 0.5)


def test_one_of_each_by_hand() -> None:
    tables = tables_of([SMALL, LARGE, TAUGHT])
    row = rows_of(tables)["kd", "small"]
    assert (row["teacher_j"], row["gap_j"], row["n_star"]) == (100.0, 10.0, 10.0)
    assert (row["consumers"], row["reached"]) == (1, False)
    assert row["t_star_reference"] == "sft large (next larger baseline)"
    assert row["t_star_tokens"] == pytest.approx((152.0 - 136.0) / (0.6 - 0.2))
    assert (row["n_baseline"], row["n_distilled"]) == (1, 1)
    assert "n = 1 < 3" in row["note"]


def test_t_star_against_the_same_size_when_none_is_larger() -> None:
    row = rows_of(tables_of([SMALL, TAUGHT]))["kd", "small"]
    assert row["t_star_reference"] == "sft small (same-size baseline, none is larger)"
    assert (row["t_star_status"], row["t_star_tokens"]) == ("never", None)


def test_t_star_at_once_when_the_larger_baseline_costs_more() -> None:
    dear: Line = (run("s2", "sft", "large"), 900.0, 6.0, 0.6)
    row = rows_of(tables_of([SMALL, dear, TAUGHT]))["kd", "small"]
    assert (row["t_star_status"], row["t_star_tokens"]) == ("at once", 0.0)


def test_without_a_baseline_nothing_is_claimed() -> None:
    row = rows_of(tables_of([LARGE, TAUGHT]))["kd", "small"]
    assert (row["n_star"], row["n_star_status"]) == (None, "unknown")
    assert row["note"] == "no sft run of this student on these datasets to compare with"
    elsewhere: Line = (run("s1", "sft", "small", dataset="e"), 60.0, 2.0, 0.4)
    row = rows_of(tables_of([elsewhere, TAUGHT]))["kd", "small"]
    assert row["n_star_status"] == "unknown"


def test_only_matched_datasets_are_compared() -> None:
    lines: list[Line] = [
        (run("s1", "sft", "small"), 60.0, 2.0, 0.4),
        (run("s2", "sft", "small", dataset="e"), 600.0, 2.0, 0.4),
        (run("k1", "kd", "small"), 50.0, 2.0, 0.5),
    ]
    row = rows_of(tables_of(lines))["kd", "small"]
    assert (row["gap_j"], row["datasets"]) == (10.0, "d")


def test_the_setting_with_most_runs_stands_for_the_pipeline_then_the_best() -> None:
    lines: list[Line] = [
        SMALL,
        (run("a", "kd", "small", 0, temperature=1.0), 55.0, 2.0, 0.7),
        (run("b", "kd", "small", 0, temperature=2.0), 50.0, 2.0, 0.4),
        (run("c", "kd", "small", 1, temperature=2.0), 50.0, 2.0, 0.4),
        (run("d", "kd", "small", 0, temperature=4.0), 40.0, 2.0, 0.5),
        (run("e", "kd", "small", 1, temperature=4.0), 40.0, 2.0, 0.5),
    ]
    row = rows_of(tables_of(lines))["kd", "small"]
    assert row["setting"] == "kd small T=4"
    assert row["n_star"] == pytest.approx(100.0 / 20.0)
    assert row["consumers"] == 5
    assert row["reached"]


def test_other_teams_runs_help_to_reach_n_star() -> None:
    others = tuple(Consumer(f"x{i}", f"x{i}", "them", 5, "2026") for i in range(9))
    row = rows_of(tables_of([SMALL, TAUGHT], others))["kd", "small"]
    assert (row["consumers"], row["reached"]) == (10, True)


def test_quality_by_hand() -> None:
    one = run("r", "sft", "s")
    scores = (
        Score("r", "b", 0.5, 0.04, 0.8),
        Score("r", "c", 0.9, 0.09, 0.9),
        Score("r", "loss", 2.5, 0.1, 0.5, in_quality=False),
    )
    pairs = [
        (Record(Path("t.json"), sidecar("t", "student_train", 5.0)), AttemptSource(Path("r"), "r"))
    ]
    tables = make_tables(
        Study("us", (one,), (), scores), *attempt_frames(pairs), AccountingSettings(draws=200)
    )
    (row,) = tables.runs.rows(named=True)
    assert row["quality"] == pytest.approx((0.625 + 1.0) / 2)
    assert row["quality_stderr"] == pytest.approx(math.hypot(0.05, 0.1) / 2)
    assert (row["b"], row["c"], row["loss"]) == (0.5, 0.9, 2.5)
