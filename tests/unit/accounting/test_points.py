"""A model that is also scored in another precision: one training, two points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Consumer, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables
from angelshare.errors import AngelshareError

FLOAT = Run("kd-s1", "kd", "small", "d", 1, artifacts=(("logits", "k"),), tokens=10)
INT8 = replace(FLOAT, run="kd-s1-int8", student="small int8", trained_as="kd-s1")
OTHER = Consumer("them", "theirs", "them", 10, "2026-01-01T00:00:00Z")
RECORDS = [
    (AttemptSource(Path("l"), None, "logits", "k"), sidecar("l", "teacher_logits", 300.0)),
    (AttemptSource(Path("t"), "kd-s1"), sidecar("t", "student_train", 70.0, gpu=True)),
    (AttemptSource(Path("e"), "kd-s1"), sidecar("e", "evaluate", 9.0, tokens={"evaluated": 90})),
    (
        AttemptSource(Path("q"), "kd-s1-int8"),
        sidecar("q", "evaluate", 4.0, tokens={"evaluated": 80}),
    ),
]


def tables_of(*runs: Run) -> Tables:
    names = {run.run for run in runs}
    records = [
        (source, one) for source, one in RECORDS if source.run is None or source.run in names
    ]
    study = Study(
        "us",
        runs,
        (Artifact("logits", "k", "logits", 10, 10, consumers=(OTHER,)),),
        tuple(Score(run.run, "b", 0.5, 0.01, 0.9) for run in runs),
        tuple(source for source, _ in records),
    )
    pairs = [(Record(Path(f"{i}.json"), one), source) for i, (source, one) in enumerate(records)]
    return make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=200))


def rows(tables: Tables) -> dict[str, dict[str, float]]:
    return {row["run"]: row for row in tables.runs.iter_rows(named=True)}


def test_each_point_carries_the_training_and_its_own_inference() -> None:
    found = rows(tables_of(FLOAT, INT8))
    for run, own_j in (("kd-s1", 9.0), ("kd-s1-int8", 4.0)):
        assert found[run]["student_only_j"] == pytest.approx(70.0 + own_j)
        assert found[run]["one_off_j"] == pytest.approx(70.0 + own_j + 300.0)
        assert found[run]["amortized_j"] == pytest.approx(70.0 + own_j + 150.0)
        assert found[run]["student_only_high_j"] > found[run]["student_only_j"]
    assert found["kd-s1"]["inference_j_per_token"] == pytest.approx(0.1)
    assert found["kd-s1-int8"]["inference_j_per_token"] == pytest.approx(0.05)


def test_a_point_changes_nothing_of_what_was_paid() -> None:
    alone, both = tables_of(FLOAT), tables_of(FLOAT, INT8)
    assert alone.shares.equals(both.shares)
    assert alone.artifacts.equals(both.artifacts)
    assert both.attempts["energy_j"].sum() == pytest.approx(300.0 + 70.0 + 9.0 + 4.0)
    assert both.attempts["id"].n_unique() == len(RECORDS)
    same = [name for name in rows(alone)["kd-s1"] if name in rows(both)["kd-s1"]]
    assert {n: rows(alone)["kd-s1"][n] for n in same} == {n: rows(both)["kd-s1"][n] for n in same}


def test_a_point_is_labelled_and_its_stages_add_up() -> None:
    tables = tables_of(FLOAT, INT8)
    assert set(tables.summary["setting"]) == {"kd small", "kd small int8"}
    assert "kd small int8" in tables.frontier["setting"].to_list()
    sums = tables.stages.group_by("run", "view").agg(pl.col("energy_j").sum())
    for run, view, energy_j in sums.rows():
        assert rows(tables)[run][f"{view}_j"] == pytest.approx(energy_j)


def test_a_point_of_a_training_that_is_not_there_is_refused() -> None:
    with pytest.raises(AngelshareError, match="kd-s1"):
        tables_of(INT8)
