"""A teacher in memory within a training: on one run's bill, whole, under every view."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from studies import sidecar, write

from angelshare.accounting.findings import findings
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Run, Study
from angelshare.accounting.tables import Tables, write_tables
from angelshare.accounting.uncertainty import VIEWS


def training(name: str, energy_j: float, *phases: tuple[str, float], **more: Any) -> dict[str, Any]:
    record = sidecar(name, "student_train", energy_j, tokens={"trained": 10}, **more)
    if phases:
        record["phases"] = [
            {"name": phase, "start_s": 0, "end_s": 1, "energy_j": joules}
            for phase, joules in phases
        ]
    return record


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Two consumers of one dataset: one with a teacher in memory, killed once, and one without; and
    the first in another precision."""
    root = tmp_path_factory.mktemp("online")
    killed = training("a", 30.0, ("teacher_load", 4.0), ("teacher_forward", 6.0), status="killed")
    done = training(
        "b", 100.0, ("teacher_load", 5.0), ("teacher_forward", 35.0), ("student_generation", 20.0)
    )
    plain = training("c", 50.0)
    artifact = Artifact("dataset", "d", "data", 10, 1)
    sources = [
        AttemptSource(
            write(root / "d", sidecar("d", "preprocess", 8.0)),
            artifact_kind="dataset",
            artifact_key="d",
        )
    ]
    runs = []
    for name, records in (("online", [killed, done]), ("plain", [plain]), ("online-int8", [])):
        scored = sidecar(f"e-{name}", "evaluate", 1.0, tokens={"evaluated": 10})
        sources.append(AttemptSource(write(root / name, *records, scored), run=name))
        trained_as = "online" if name == "online-int8" else None
        pipeline = "sft" if name == "plain" else "on_policy"
        student = "s int8" if trained_as else "s"
        runs.append(
            Run(
                name,
                pipeline,
                student,
                "x",
                0,
                artifacts=(artifact.id,),
                tokens=10,
                trained_as=trained_as,
                teacher_online=name != "plain",
            )
        )
    study = Study("ours", tuple(runs), (artifact,), sources=tuple(sources))
    return write_tables(study, AccountingSettings(draws=200), root / "out")


def test_it_is_whole_in_every_view_failed_attempts_included(tables: Tables) -> None:
    rows = {row["run"]: row for row in tables.runs.rows(named=True)}
    for name in ("online", "online-int8"):
        assert rows[name]["teacher_online_j"] == pytest.approx(4 + 6 + 5 + 35)
        assert rows[name]["student_only_j"] == pytest.approx(30 + 100 + 1)
        assert rows[name]["amortized_j"] == pytest.approx(131 + 4)
        assert rows[name]["one_off_j"] == pytest.approx(131 + 8)
    assert rows["plain"]["teacher_online_j"] is None
    assert [rows[n]["distilled"] for n in ("online", "online-int8", "plain")] == [True, True, False]
    assert set(tables.break_even["pipeline"]) == {"on_policy"}
    assert tables.shares["share_j"].sum() == pytest.approx(8.0)
    assert set(tables.shares["kind"]) == {"dataset"}


def test_it_is_a_stage_of_its_own_and_stages_sum_to_the_views(tables: Tables) -> None:
    for run in tables.runs.rows(named=True):
        own = tables.stages.filter(pl.col("run") == run["run"])
        for view in VIEWS:
            seen = own.filter(pl.col("view") == view)
            assert seen["energy_j"].sum() == pytest.approx(run[f"{view}_j"])
            online = seen.filter(pl.col("stage") == "teacher_online")
            assert online["energy_j"].to_list() == ([] if run["run"] == "plain" else [50.0])
            assert not online["shared"].any()


def test_it_is_said(tables: Tables) -> None:
    said = [one.text for one in findings(tables) if one.topic == "reuse"]
    assert any("on policy s 50" in text and "38 % of its own jobs" in text for text in said)
