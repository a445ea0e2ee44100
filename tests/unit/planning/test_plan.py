"""Plans of a study: what is listed, from what records, what they refuse, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from past import finished_artifact, finished_run, put, record
from studies import demo_study

from angelshare.accounting.attempts import load_attempts
from angelshare.accounting.predictions import prediction_table
from angelshare.accounting.study import Prediction, Study
from angelshare.config import Config, load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.jobs import job
from angelshare.planning.plan import Plan, make_plan
from angelshare.planning.ranges import Range
from angelshare.planning.records import read_history
from angelshare.planning.spending import check_budget, spent_j
from angelshare.planning.stored import store_plan, stored_predictions
from angelshare.planning.study_models import study_models
from angelshare.planning.text import block, interval
from angelshare.planning.workflow import announce, start


def planned(config: Config) -> Plan:
    return make_plan(config, plan_study(config), config.store.open())


def test_an_empty_store_plans_everything(config: Config) -> None:
    plan = planned(config)
    rules = Counter(one.item.rule for one in plan.predictions)
    runs = len(plan_study(config).runs)
    assert rules["train_student"] == rules["evaluate_student"] == runs == 24
    assert rules["generate_corpus"] == 2
    assert rules["demo_teacher"] == rules["capture_logits"] == rules["evaluate_teacher"] == 1
    assert {one.basis for one in plan.predictions} == {"flops"}
    assert plan.energy_j.low < plan.energy_j.value < plan.energy_j.high
    assert plan.energy_j.value == pytest.approx(sum(one.energy_j.value for one in plan.predictions))  # type: ignore[union-attr]
    text = "\n".join(block(plan))
    assert "24 jobs, student training" in text
    assert "cost not known" in text


def test_what_is_there_is_reused_and_its_records_are_used(config: Config) -> None:
    finished_artifact(config, "logits", 30.0)
    finished_artifact(config, "corpus", 50.0)
    for seed, energy_j in enumerate((95.0, 100.0, 105.0)):
        finished_run(config, f"old-{seed}", energy_j)
    plan = planned(config)
    assert {one.plan.kind for one in plan.reused} == {"logits", "corpus"}
    rules = Counter(one.item.rule for one in plan.predictions)
    assert "capture_logits" not in rules
    assert "generate_corpus" not in rules
    assert plan.hardware == "a laptop processor"
    trained = [one for one in plan.predictions if one.item.stage == "student_train"]
    tiny = next(one for one in trained if "-tiny-" in one.item.label)
    small = next(one for one in trained if "-small-" in one.item.label)
    assert tiny.basis == "records"
    assert small.basis == "records of other models"
    assert tiny.energy_j is not None
    # 600 steps of 32 rows of 30 tokens are 1.44 times the 400,000 tokens that were recorded;
    # with seven passes over 200 rows for validation, not 10,000 tokens: 1.466.
    assert tiny.energy_j.value == pytest.approx(146.6, rel=0.002)


def test_records_say_how_much_was_decoded(config: Config) -> None:
    finished_artifact(config, "corpus", 50.0)
    finished_run(config, "old", 100.0)
    store = config.store.open()
    teacher = next(p for p in plan_study(config).artifacts.values() if p.kind == "model")
    put(store.root / "model" / teacher.key / "manifest.json", {"recipe": teacher.recipe})
    history = read_history(store, Path(config.results), {})
    # 60,000 generated after prompts of 40,000; the evaluation's record does not say.
    assert {one.decoded for one in history.stages["teacher_generation"]} == {0.6}
    assert {one.decoded for one in history.stages["evaluate"]} == {1.0}


def test_damaged_records_are_passed_over(config: Config) -> None:
    empty = planned(config)
    store = config.store.open()
    put(store.root / "corpus" / ("ab" * 16) / "manifest.json", {})
    put(Path(config.results, "students", "torn", "training.json"), {"recipe": None})
    assert planned(config) == empty


def test_layers_are_named(values: dict[str, Any], tmp_path: Path) -> None:
    theirs = load_config({**values, "store": {"root": str(tmp_path / "theirs"), "team": "them"}})
    finished_artifact(theirs, "logits", 30.0, team="them")
    ours = load_config(
        {**values, "store": {**values["store"], "layers": [str(tmp_path / "theirs")]}}
    )
    plan = planned(ours)
    assert [one.layer for one in plan.reused] == [str(tmp_path / "theirs")]
    assert f"1 from {tmp_path / 'theirs'}" in block(plan)[0]


def test_pretrained_models_are_fetched_and_sized_by_name(values: dict[str, Any]) -> None:
    values["teachers"] = {"demo": {"model": "org/Teacher-32B", "revision": "0" * 40}}
    values["students"]["tiny"] = {"init": {"model": "org/Student-1B", "revision": "0" * 40}}
    values["students"]["small"] = {"init": {"model": "org/a-student", "revision": "0" * 40}}
    values["datasets"]["problems"] = {
        "source": "hub",
        "name": "org/data",
        "revision": "0" * 40,
        "labelled": 7000,
        "test": 100,
    }
    values["budget"] = {"device": "1 x H100"}
    del values["tokenizers"]
    config = load_config({**values, "evaluation": {"tasks": ["gsm8k", "ifeval"]}})
    plan = planned(config)
    assert plan.downloads == ["org/Teacher-32B", "org/a-student", "org/Student-1B"]
    fetched = [one for one in plan.predictions if one.item.action == "fetch"]
    assert [one.item.label for one in fetched] == ["dataset problems"]
    assert {one.item.label.split()[0] for one in plan.unknown} == {"train", "evaluate"}
    assert all("-small-" in one.item.label for one in plan.unknown)
    logits = next(one for one in plan.predictions if one.item.rule == "capture_logits")
    assert logits.energy_j is not None
    # A third of 7,000 rows of 32 tokens, 64 GFLOP each and some attention, at 40 % of 989 TFLOP/s
    # after 10 s of starting, at 80 % of 700 W.
    seconds = 10 + 7000 / 3 * 32 * 64e9 / (0.4 * 989e12)
    assert logits.energy_j.value == pytest.approx(seconds * 0.8 * 700, rel=0.01)
    assert "not in the sum" in "\n".join(block(plan))


def test_carbon_and_cost_are_those_of_the_energy(values: dict[str, Any]) -> None:
    values["carbon"] = {
        "grid_g_per_kwh": 100.0,
        "grid_source": "a test",
        "pue": 1.5,
        "price_per_kwh": 0.2,
        "price_source": "a test",
    }
    plan = planned(load_config(values))
    kwh = plan.energy_j.value / 3.6e6
    assert plan.co2e_g().value == pytest.approx(kwh * 150)
    cost = plan.cost()
    assert cost is not None
    assert cost.value == pytest.approx(kwh * 0.3)


def test_a_start_keeps_its_plan_and_a_budget_refuses_it(values: dict[str, Any]) -> None:
    config = load_config(values)
    study, store = plan_study(config), config.store.open()
    run = next(iter(study.runs))
    jobs = [("train_student", {"run": run}), ("evaluate_student", {"run": run})]
    lines = start(config, study, store, {}, jobs)
    assert "1 to evaluate, 1 to train" in lines[0]
    kept = list(stored_predictions(Path(config.results)))
    assert [one.stage for one in kept] == ["student_train", "evaluate"]
    assert kept[0].job == f"train_student[run={run}]@run {run}"
    assert kept[0].energy_low_j < kept[0].energy_j < kept[0].energy_high_j
    tight = load_config({**values, "budget": {"kwh": 1e-7}})
    with pytest.raises(AngelshareError, match="does not fit into the budget"):
        start(tight, study, store, {}, jobs)
    assert len(list(Path(config.results, "plans").iterdir())) == 1
    assert "REFUSED" in "\n".join(announce(tight, study, store, {}, jobs))
    assert start(tight, study, store, {}, []) == [
        "Plan: 0 artifacts reused; nothing is to be made.",
        "  budget 0.360 J, spent so far 0 J",
    ]


def test_parts_are_matched_by_the_rules_own_wildcards(config: Config) -> None:
    study = plan_study(config)
    key = next(plan.key for plan in study.artifacts.values() if plan.kind == "corpus")
    lines = announce(
        config, study, config.store.open(), {}, [("generate_corpus", {"key": key, "part": "00001"})]
    )
    assert "1 to generate" in lines[0]


def test_spending_counts_ours_and_what_runs(values: dict[str, Any]) -> None:
    config = load_config({**values, "budget": {"kwh": 1e-4}})
    study, store = plan_study(config), config.store.open()
    finished_artifact(config, "logits", 30.0, team="them")
    finished_artifact(config, "corpus", 50.0, team="ours")
    finished_run(config, "old", 100.0)
    failed = record("student_train", "train_student", 7.0, {}, name="f", status="failed")
    attempts = Path(config.results) / "students" / "old" / "energy.attempts"
    put(attempts / "failed.json", failed)
    assert spent_j(config, study, store) == pytest.approx(2 * 50 + 130 + 7)
    running = record("student_train", "train_student", 0.0, {}, name="r", status="running")
    put(attempts / "running.json", running)
    (attempts / "angelshare-r.prom").write_text(
        '# TYPE x counter\nangelshare_energy_joules{id="r",component="cpu0"} 40\n'
        'angelshare_energy_joules{id="r",component="dram"} 2\n'
    )
    assert spent_j(config, study, store) == pytest.approx(279)
    check_budget(config, study, store, "student_train")
    put(attempts / "more.json", record("student_train", "train_student", 90.0, {}, name="m"))
    with pytest.raises(AngelshareError, match="budget is spent"):
        check_budget(config, study, store, "student_train")
    check_budget(config, study, store, "accounting")


def test_a_job_is_refused_before_it_costs_anything(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values["budget"] = {"kwh": 1e-9}
    finished_run(load_config(values), "old", 100.0)
    attempts = tmp_path / "new.attempts"
    with (
        pytest.raises(SystemExit) as refused,
        job(
            rule="train_student",
            stage="student_train",
            role="student",
            config=values,
            sidecar=tmp_path / "new.json",
            attempts=attempts,
            log=tmp_path / "log",
        ),
    ):
        pytest.fail("the body ran")
    assert refused.value.code == 1
    assert not attempts.exists()
    assert "the budget is spent: 3.611e-05 of 1e-09 kWh" in capsys.readouterr().err


def test_predictions_are_held_against_what_was_measured(tmp_path: Path) -> None:
    study = demo_study(tmp_path)
    attempts, _ = load_attempts(study.sources)
    job_name = "rule_student_train[]@run kd-large-T2-s1"
    measured = attempts.filter((pl.col("job") == job_name) & (pl.col("status") == "ok"))
    energy_j = float(measured["energy_j"][0])

    def expected(utc: str, factor: float) -> Prediction:
        value = energy_j * factor
        return Prediction(
            plan_utc=utc, hardware="h", job=job_name, stage="student_train", basis="flops",
            fit="", energy_j=value, energy_low_j=0.9 * value, energy_high_j=1.1 * value,
            duration_s=1.0, duration_low_s=0.5, duration_high_s=2.0,
        )  # fmt: skip

    plans = (
        expected("2025-01-01T00:00:00.000Z", 2.0),
        expected("2025-06-01T00:00:00.000Z", 1.05),
        expected("2027-01-01T00:00:00.000Z", 3.0),
    )
    with_plans = Study(study.team, study.runs, study.artifacts, study.scores, study.sources, plans)
    table = prediction_table(with_plans, attempts)
    (row,) = table.rows(named=True)
    assert row["plan_utc"] == "2025-06-01T00:00:00.000Z"
    assert row["measured_j"] == energy_j
    assert row["ratio"] == pytest.approx(1 / 1.05)
    assert row["covered"] is True
    assert row["covered_s"] is False
    assert row["wasted_j"] == pytest.approx(130.0)
    assert prediction_table(study, attempts).is_empty()


def test_a_damaged_plan_is_named(config: Config) -> None:
    put(Path(config.results) / "plans" / "a.json", {"schema": "other"})
    with pytest.raises(AngelshareError, match=r"a\.json is no stored plan"):
        list(stored_predictions(Path(config.results)))


def test_nothing_is_kept_where_nothing_is_planned(config: Config) -> None:
    assert (
        store_plan(
            make_plan(config, plan_study(config), config.store.open(), wanted=lambda _: False),
            Path(config.results),
        )
        is None
    )


def test_energies_with_bounds_in_one_unit() -> None:
    assert interval(Range(1234.0, 600.0, 2400.0)) == "1,234 J (600 to 2,400)"
    assert interval(Range(3.96e7, 1.8e7, 7.2e7)) == "11.0 kWh (5.00 to 20.0)"


def test_a_starting_workflow_imports_nothing_heavy() -> None:
    code = (
        "import sys, angelshare.planning.workflow\n"
        "print([m for m in ('numpy', 'polars', 'torch', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_prerun_calibrates(config: Config) -> None:
    from angelshare.planning.calibration import calibrate

    found = calibrate(config, seconds=0.3)
    assert found["model"]["hidden_size"] == 64
    for kind in ("train", "forward", "decode"):
        assert found[kind]["flops"] > 0
        assert found[kind]["duration_s"] >= 0.3
    put(
        Path(config.results) / "prerun" / "machine.json",
        {
            "devices": [{"component": "cpu0", "device": "x"}],
            "env": {"cpu_model": found["hardware"]},
            "calibration": found,
        },
    )
    plan = planned(config)
    assert plan.hardware_basis == "the prerun's"
    assert {one.basis for one in plan.predictions} == {"calibration"}
    assert json.loads(json.dumps(found)) == found


def test_an_on_policy_training_counts_its_teacher_and_is_told_by_its_own_kind(
    values: dict[str, Any],
) -> None:
    values["pipelines"]["on_policy"] = {
        "data": "dataset",
        "on_policy": {"max_new_tokens": 20, "student_share": 0.25},
    }
    block = {"students": ["tiny"], "datasets": ["problems"], "teacher": "demo", "seeds": [1, 2]}
    values["grid"] = [{**block, "pipeline": name} for name in ("kd", "on_policy")]
    config = load_config(values)

    def trainings() -> dict[str, Any]:
        found = [one for one in planned(config).predictions if one.item.stage == "student_train"]
        return {str(one.item.run).partition("-")[0]: one for one in found if "-s2-" in one.item.run}

    done = {run.pipeline: run.name for run in plan_study(config).runs.values() if run.seed == 1}
    first = trainings()
    cached, online = first["kd"].item, first["on_policy"].item
    models = study_models(config)
    tokens, length = cached.tokens.value, 32.0
    more = models["teacher demo"].forward_flops(tokens, length)
    # Decoding is slower by what the two reach of a device's peak.
    more += models["student tiny"].forward_flops(0.25 * tokens, length) * 0.35 / 0.05
    assert online.flops.value - cached.flops.value == pytest.approx(more)
    finished_run(config, done["kd"], 100.0)
    second = trainings()
    assert second["kd"].basis == "records"
    assert second["on_policy"].basis == "flops"
    finished_run(config, done["on_policy"], 700.0)
    third = trainings()
    assert third["on_policy"].basis == "records"
    assert third["kd"].energy_j == second["kd"].energy_j
    assert third["on_policy"].energy_j.value > 4 * third["kd"].energy_j.value


def test_rows_that_only_the_sealed_dataset_knows(values: dict[str, Any]) -> None:
    (values["datasets"]["more"],) = (
        {"source": "hub", "name": "org/data", "revision": "0" * 40, "validation": 10, "test": 10},
    )
    values["grid"] = [{"pipeline": "sft", "students": ["tiny"], "datasets": ["more"], "seeds": [1]}]
    values["training"] = {**values["training"], "max_epochs": 1.0}
    config = load_config(values)
    assert planned(config).predictions
    finished_artifact(config, "dataset", 5.0)  # 1,000 rows, of which 980 are for training
    trained = next(one for one in planned(config).predictions if one.item.run)
    assert trained.item.tokens is not None
    # One epoch of 980 rows is 31 steps of 32 rows, each assumed half of 64 tokens.
    assert trained.item.tokens.value == pytest.approx(31 * 32 * 32)
