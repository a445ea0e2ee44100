"""The grid of paradigms, reduced: every paradigm, a run that reads all that a teacher made, one
whose teacher lies in memory, and a student with another tokenizer, scored in 8 bits too."""

import json

import polars as pl
import pytest
import yaml

from angelshare.accounting.findings import findings
from angelshare.accounting.tables import read_tables

from .conftest import ROOT, Checkout

READ = ["corpus", "logits", "states", "states"]


@pytest.fixture(scope="module")
def paradigms(tmp_path_factory) -> Checkout:
    """Two students of everything at once, one of hidden states alone over the same corpus, one
    that answers itself; and of the same corpus and logits, one that reads with a tokenizer of its
    own."""
    values = yaml.safe_load((ROOT / "config/grids/paradigms.yaml").read_text())
    values["datasets"]["problems"].update(labelled=24, unlabelled=16, validation=16, test=8)
    values["teachers"]["demo"]["demo"].update(problems=400, steps=30)
    values["training"].update(max_steps=12, eval_every=6, warmup_steps=2)
    values["generation"] = {"max_new_tokens": 24, "batch_size": 64}
    values["pipelines"] = {
        "all": {**values["pipelines"]["together"], "data": "corpus"},
        "feature": {**values["pipelines"]["feature"], "data": "corpus"},
        "uld": {**values["pipelines"]["uld"], "data": "corpus"},
        "on_policy": {"data": "dataset", "on_policy": {"max_new_tokens": 24, "top_k": 16}},
    }
    values["students"]["foreign"]["quantised"] = "int8"
    block, foreign = ({**values["grid"][number], "seeds": [1]} for number in (0, -1))
    values["grid"] = [
        {**block, "pipeline": "all", "seeds": [1, 2]},
        {**block, "pipeline": "feature"},
        foreign,
        {**block, "pipeline": "on_policy"},
    ]
    checkout = Checkout.fresh(tmp_path_factory.mktemp("paradigms") / "checkout")
    (checkout.folder / "config/config.yaml").write_text(yaml.safe_dump(values))
    checkout.snakemake("all_frontiers")
    return checkout


def table(checkout: Checkout, name: str) -> pl.DataFrame:
    return pl.read_parquet(checkout.folder / f"results/paradigms/accounting/{name}.parquet")


def test_a_run_is_a_consumer_of_all_it_read_and_shares_are_conserved(paradigms):
    shares = table(paradigms, "shares").filter(pl.col("policy") == "equal")
    runs = table(paradigms, "runs")
    for run in runs.filter(pl.col("pipeline") == "all")["run"]:
        kinds = sorted(shares.filter(pl.col("run") == run)["kind"])
        assert [kind for kind in kinds if kind in READ] == READ
    artifacts = table(paradigms, "artifacts").filter(pl.col("kind").is_in(READ))
    assert len(artifacts) == len(READ)
    for artifact in artifacts.iter_rows(named=True):
        read = paradigms.folder / f"artifacts/{artifact['kind']}/{artifact['key']}/consumers"
        consumers = len(list(read.glob("*.json")))
        assert consumers == {"corpus": 4, "logits": 3}.get(artifact["kind"], consumers)
        assert consumers in (2, 3, 4)
        own = shares.filter(pl.col("key") == artifact["key"])
        assert len(own) == consumers
        assert own["share_j"].sum() == pytest.approx(artifact["energy_j"], rel=1e-9)
        assert artifact["energy_j"] > 0
    for run in runs.iter_rows(named=True):
        assert run["distilled"]
        assert run["student_only_j"] < run["amortized_j"] < run["one_off_j"]


def test_terms_and_pairs_are_reported_and_projectors_published(paradigms):
    for folder in (paradigms.folder / "results/paradigms/students").glob("[af]*"):
        training = json.loads((folder / "training.json").read_text())
        everything = folder.name.startswith("all-")
        logged = {name for entry in training["history"] for name in entry}
        assert "feature_loss" in logged
        assert ("relation_loss" in logged) == everything
        if everything:
            # An epoch has a step of 32 rows and one of the others; the mean of both is logged.
            steps = (32, training["train_rows"] - 32)
            pairs = {entry.get("relation_pairs") for entry in training["history"]}
            assert pairs == {None, sum(n * (n - 1) / 2 for n in steps) / 2}
        assert (folder / "projector.safetensors").stat().st_size > 1000
        assert not (folder / "model/projector.safetensors").exists()


def test_a_teacher_in_memory_is_on_one_bill_whole_and_in_no_artifact(paradigms):
    runs = table(paradigms, "runs")
    run = runs.filter(pl.col("pipeline") == "on_policy").row(0, named=True)
    folder = paradigms.folder / "results/paradigms/students" / run["run"]
    record = json.loads((folder / "energy.json").read_text())
    phases = {phase["name"]: phase["energy_j"] for phase in record["phases"]}
    assert phases.keys() == {"teacher_load", "teacher_forward", "student_generation"}
    online_j = phases["teacher_load"] + phases["teacher_forward"]
    assert all(energy_j > 0 for energy_j in phases.values())
    assert run["teacher_online_j"] == pytest.approx(online_j)
    assert run["teacher_online_j"] < run["student_only_j"]
    assert set(runs.filter(pl.col("pipeline") != "on_policy")["teacher_online_j"]) == {None}
    assert record["work"]["tokens"]["generated"] > 0
    # Under every view it is there once, whole; the stages of a view sum to it.
    stages = table(paradigms, "stages").filter(pl.col("run") == run["run"])
    for view in ("student_only", "one_off", "amortized"):
        own = stages.filter(pl.col("view") == view)
        (teacher,) = own.filter(pl.col("stage") == "teacher_online").iter_rows(named=True)
        assert (teacher["energy_j"], teacher["shared"]) == (run["teacher_online_j"], False)
        assert own["energy_j"].sum() == pytest.approx(run[f"{view}_j"])
    trained = table(paradigms, "attempts").filter(
        (pl.col("run") == run["run"]) & (pl.col("stage") == "student_train")
    )
    kept = stages.filter((pl.col("view") == "one_off") & (pl.col("stage") == "student_train"))
    assert kept["energy_j"].sum() + online_j == pytest.approx(trained["energy_j"].sum())
    # It reads what others read too, but no work that a teacher did for others.
    shares = table(paradigms, "shares").filter(pl.col("run") == run["run"])
    assert set(shares["kind"]) == {"dataset", "tokenizer", "scores"}
    assert run["distilled"]
    assert f"on_policy {run['student']}" in table(paradigms, "frontier")["setting"].to_list()
    said = findings(read_tables(paradigms.folder / "results/paradigms/accounting"))
    assert any("in memory works for one run alone" in one.text for one in said)


def test_a_student_with_another_tokenizer_learns_from_the_same_cache(paradigms):
    (folder,) = (paradigms.folder / "results/paradigms/students").glob("uld-*")
    training = json.loads((folder / "training.json").read_text())
    (paired,) = training["paired"]
    assert 0.3 < paired <= 1
    assert training["cross_entropy"] < training["untrained_cross_entropy"]
    shares = table(paradigms, "shares").filter(pl.col("run") == folder.name)
    assert {"corpus", "logits"} < set(shares["kind"])
    assert json.loads((folder / "model/config.json").read_text())["vocab_size"] < 256


def test_a_quantised_point_has_its_own_inference_and_its_run_s_one_training(paradigms):
    runs = table(paradigms, "runs").filter(pl.col("pipeline") == "uld").sort("run")
    plain, quantised = runs.iter_rows(named=True)
    assert (plain["student"], quantised["student"]) == ("foreign", "foreign int8")
    assert quantised["run"] == f"{plain['run']}-int8"
    attempts = table(paradigms, "attempts")
    of_stage = {
        (run, stage): energy_j
        for run, stage, energy_j in attempts.group_by("run", "stage")
        .agg(pl.col("energy_j").sum())
        .iter_rows()
    }
    assert {stage for run, stage in of_stage if run == quantised["run"]} == {"evaluate"}
    training_j = of_stage[plain["run"], "student_train"]
    for point in (plain, quantised):
        own_j = of_stage[point["run"], "evaluate"]
        assert own_j > 0
        assert point["student_only_j"] == pytest.approx(training_j + own_j)
        assert point["inference_j_per_token"] > 0
        for view in ("amortized_j", "one_off_j"):
            upstream_j = point[view] - point["student_only_j"]
            assert upstream_j == pytest.approx(plain[view] - plain["student_only_j"])
    assert quantised["inference_j_per_token"] != plain["inference_j_per_token"]
    assert "uld foreign int8" in set(table(paradigms, "summary")["setting"])
    assert quantised["run"] not in set(table(paradigms, "shares")["run"])


def test_a_second_run_has_nothing_to_do_and_the_store_is_whole(paradigms):
    assert "Nothing to be done" in paradigms.snakemake("all_frontiers")
    assert "are whole" in paradigms.run("angelshare", "verify")
    assert "states" in paradigms.run("angelshare", "ls").split()
