"""Energy per token served, retention and overall efficiency, by hand."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from studies import sidecar, write

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Run, Score, Study
from angelshare.accounting.tables import Tables, write_tables
from angelshare.report.display import attempts_by_stage


def measured(root: Path) -> Tables:
    """A teacher at 4 J per token; one student at 1 J with phases, one at 2 J without."""
    teacher = sidecar("t", "teacher_evaluate", 400.0, tokens={"evaluated": 100})
    sources = [
        AttemptSource(write(root / "scores", teacher), artifact_kind="scores", artifact_key="k")
    ]
    runs, scores = [], []
    for name, energy_j, score in (("small", 100.0, 0.4), ("large", 200.0, 0.6)):
        tokens = {"evaluated": 100, "prompt": 60, "generated": 40}
        evaluated = sidecar(f"e-{name}", "evaluate", energy_j, tokens=tokens)
        if name == "small":
            evaluated["phases"] = [
                {"name": "prefill", "start_s": 0, "end_s": 1, "energy_j": 30.0},
                {"name": "decode", "start_s": 1, "end_s": 2, "energy_j": 60.0},
            ]
        trained = sidecar(f"s-{name}", "student_train", 1000.0, tokens={"trained": 10})
        sources.append(AttemptSource(write(root / name, evaluated, trained), run=name))
        runs.append(Run(name, "sft", name, "d", 0, {}, (), 10, None, ("scores", "k")))
        scores.append(Score(name, "exact_match", score, None, 0.8))
    artifact = Artifact("scores", "k", "teacher", 100, 1)
    study = Study("ours", tuple(runs), (artifact,), tuple(scores), tuple(sources))
    return write_tables(study, AccountingSettings(draws=200), root / "out")


def test_by_hand(tmp_path: Path) -> None:
    tables = measured(tmp_path)
    small = tables.runs.filter(pl.col("run") == "small").row(0, named=True)
    large = tables.runs.filter(pl.col("run") == "large").row(0, named=True)
    assert small["inference_j_per_token"] == pytest.approx(1.0)
    assert small["prefill_j_per_token"] == pytest.approx(30 / 60)
    assert small["decode_j_per_token"] == pytest.approx(60 / 40)
    assert (large["prefill_j_per_token"], large["decode_j_per_token"]) == (None, None)
    assert small["teacher_inference_j_per_token"] == pytest.approx(4.0)
    assert small["om_perf"] == small["quality"] == pytest.approx(0.5)
    assert small["eff_overall"] == pytest.approx(0.5 * 4 / 1)
    assert large["eff_overall"] == pytest.approx(0.75 * 4 / 2)
    (row,) = tables.efficiency.rows(named=True)
    assert (row["students"], row["runs"]) == (2, 2)
    assert row["eff_overall"] == pytest.approx((2.0 + 1.5) / 2)
    assert row["om_perf"] == pytest.approx(0.625)


def test_a_teachers_prompts_and_answers_apart(tmp_path: Path) -> None:
    """Two parts, one of which was made again; what the killed attempt did is in no rate."""
    records = []
    for name, status, prefill_j in (("a", "ok", 30.0), ("b", "ok", 50.0), ("c", "killed", 1e6)):
        tokens = {"prompt": 100, "generated": 20}
        record = sidecar(name, "teacher_generation", 500.0, status=status, tokens=tokens)
        record["phases"] = [
            {"name": "prefill", "start_s": 0, "end_s": 1, "energy_j": prefill_j},
            {"name": "decode", "start_s": 1, "end_s": 2, "energy_j": 300.0},
        ]
        records.append(record)
    prepared = sidecar("d", "preprocess", 5.0, tokens={"prompt": 100})
    trained = sidecar("s", "student_train", 9.0)
    sources = (
        AttemptSource(write(tmp_path / "r", trained), run="r"),
        *(
            AttemptSource(write(tmp_path / kind, *some), artifact_kind=kind, artifact_key=kind[0])
            for kind, some in (("corpus", records), ("dataset", [prepared]))
        ),
    )
    artifacts = tuple(Artifact(kind, kind[0], kind, 40, 1) for kind in ("corpus", "dataset"))
    runs = (Run("r", "synthetic_sft", "s", "d", 0, artifacts=(("corpus", "c"),)),)
    study = Study("ours", runs, artifacts, sources=sources)
    tables = write_tables(study, AccountingSettings(draws=200), tmp_path / "out")
    found = {row["kind"]: row for row in tables.artifacts.rows(named=True)}
    assert found["corpus"]["prefill_j_per_token"] == pytest.approx(80 / 200)
    assert found["corpus"]["decode_j_per_token"] == pytest.approx(600 / 40)
    assert found["dataset"]["prefill_j_per_token"] is None
    stages = attempts_by_stage(tables)
    assert stages is not None
    row = next(row for row in stages.rows if row[0].text == "teacher: generation")
    shown = dict(zip(stages.header, (cell.text for cell in row), strict=True))
    assert (shown["J per prompt token"], shown["J per generated token"]) == ("0.400", "15.0")


def test_one_phase_alone_is_no_split(tmp_path: Path) -> None:
    evaluated = sidecar("e", "evaluate", 10.0, tokens={"evaluated": 10})
    evaluated["phases"] = [{"name": "evaluate", "start_s": 0, "end_s": 1, "energy_j": 10.0}]
    source = AttemptSource(write(tmp_path / "a", evaluated), run="a")
    study = Study("ours", (Run("a", "sft", "s", "d", 0),), sources=(source,))
    tables = write_tables(study, AccountingSettings(draws=200), tmp_path / "out")
    assert tables.attempts["prefill_j"].to_list() == [None]
    assert tables.runs["eff_overall"].to_list() == [None]
