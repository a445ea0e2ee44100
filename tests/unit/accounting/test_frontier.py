"""The frontier against brute force, and its probabilities where they can be known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.findings import findings
from angelshare.accounting.frontier import non_dominated
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import AttemptSource, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables

few = st.integers(0, 6).map(float)


def brute_force(energy: list[float], quality: list[float]) -> list[bool]:
    points = list(zip(energy, quality, strict=True))
    return [
        not any(e <= mine[0] and q >= mine[1] and (e, q) != mine for e, q in points)
        for mine in points
    ]


@given(st.lists(st.tuples(few, few), min_size=1, max_size=30))
def test_against_brute_force(points: list[tuple[float, float]]) -> None:
    energy, quality = (list(values) for values in zip(*points, strict=True))
    found = non_dominated(np.array(energy), np.array(quality))
    assert found.tolist() == brute_force(energy, quality)


@given(st.lists(st.lists(st.tuples(few, few), min_size=4, max_size=4), min_size=1, max_size=5))
def test_rows_of_draws_are_independent(draws: list[list[tuple[float, float]]]) -> None:
    values = np.array(draws)
    found = non_dominated(values[..., 0], values[..., 1])
    for row, points in zip(found, draws, strict=True):
        energy, quality = (list(v) for v in zip(*points, strict=True))
        assert row.tolist() == brute_force(energy, quality)


def tables_of(points: dict[str, list[tuple[float, float]]], stderr: float = 0.0) -> Tables:
    """One setting per name with (joules, score) of each seed; exact meters."""
    runs, scores, pairs = [], [], []
    for name, repeats in points.items():
        for seed, (energy_j, score) in enumerate(repeats):
            run = f"{name}{seed}"
            runs.append(Run(run, name, "s", "d", seed))
            scores.append(Score(run, "b", score, stderr, 1.0))
            value = sidecar(run, "student_train", energy_j, gpu=True, gain=0.0)
            pairs.append((Record(Path(f"{run}.json"), value), AttemptSource(Path(run), run)))
    study = Study("us", tuple(runs), (), tuple(scores))
    return make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=4000))


def one_view(tables: Tables) -> dict[str, dict[str, object]]:
    rows = tables.frontier.filter(pl.col("view") == "one_off").rows(named=True)
    return {row["pipeline"]: row for row in rows}


def test_far_apart_is_sure_and_equal_is_open() -> None:
    seeds = [(-1.0, -0.01), (0.0, 0.02), (1.0, -0.01)]

    def around(energy_j: float, score: float) -> list[tuple[float, float]]:
        return [(energy_j + de, score + dq) for de, dq in seeds]

    rows = one_view(
        tables_of({"good": around(100, 0.9), "bad": around(900, 0.2), "twin": around(100, 0.9)})
    )
    assert rows["bad"]["on_frontier"] is False
    assert rows["bad"]["dominated_by"] == "good s"
    assert float(str(rows["bad"]["membership_probability"])) < 0.01
    assert float(str(rows["bad"]["dominated_probability"])) > 0.99
    for name in ("good", "twin"):
        assert rows[name]["on_frontier"] is True
        assert 0.5 < float(str(rows[name]["membership_probability"])) < 0.95


def test_two_settings_by_hand() -> None:
    """A costs less for sure; B is better by one standard error of the difference: Phi(1)."""
    rows = one_view(tables_of({"a": [(10.0, 0.50)], "b": [(20.0, 0.52)]}, stderr=0.02 / 2**0.5))
    assert rows["a"]["membership_probability"] == 1.0
    assert float(str(rows["b"]["membership_probability"])) == pytest.approx(0.8413, abs=0.02)


def test_settings_on_other_datasets_are_marked() -> None:
    runs = (Run("a", "sft", "s", "x", 0), Run("b", "sft", "s", "y", 0), Run("c", "kd", "s", "x", 0))
    pairs = [
        (
            Record(Path(f"{run.run}.json"), sidecar(run.run, "student_train", 5.0)),
            AttemptSource(Path(run.run), run.run),
        )
        for run in runs
    ]
    scores = tuple(Score(run.run, "b", 0.5, None, 1.0) for run in runs)
    study = Study("us", runs, (), scores)
    tables = make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=200))
    notes = dict(tables.summary.select("setting", "note").rows())
    assert notes["kd s"].endswith("on x only")
    assert "only" not in notes["sft s"]
    assert tables.runs["quality_stderr"].null_count() == 3
    assert any("same datasets" in finding.text for finding in findings(tables))


def test_a_run_without_a_benchmark_is_not_on_the_frontier() -> None:
    run = Run("r", "sft", "s", "d", 0)
    other = Run("o", "kd", "s", "d", 0)
    scores = (Score("r", "b", 0.5, None, 1.0), Score("r", "c", 0.5, None, 1.0))
    values = [
        (sidecar(name, "student_train", 5.0), AttemptSource(Path(name), name)) for name in "ro"
    ]
    pairs = [(Record(Path(f"{i}.json"), value), source) for i, (value, source) in enumerate(values)]
    study = Study("us", (run, other), (), (*scores, Score("o", "b", 0.9, None, 1.0)))
    tables = make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=200))
    missing = dict(tables.runs.select("run", "benchmarks_missing").rows())
    assert missing == {"r": "", "o": "c"}
    assert set(tables.frontier["setting"]) == {"sft s"}
    assert "lack a benchmark" in tables.summary.filter(pl.col("pipeline") == "kd")["note"][0]
