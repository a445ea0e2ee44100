"""Students that teach, end to end: `config/grids/chain.yaml` in small."""

from __future__ import annotations

import json

import polars as pl
import pytest
import yaml

from tests.workflow.conftest import ROOT, Checkout

SMALL = {
    "datasets": {
        "problems": {
            "source": "word_problems",
            "seed": 7,
            "labelled": 120,
            "unlabelled": 80,
            "validation": 40,
            "test": 40,
        }
    },
    "store": {"team": "ours"},
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Checkout:
    """The grid with one seed, few rows and few steps, run to its end."""
    checkout = Checkout.fresh(tmp_path_factory.mktemp("chain") / "checkout")
    values = yaml.safe_load((ROOT / "config/grids/chain.yaml").read_text()) | SMALL
    values["teachers"]["demo"]["demo"] |= {"steps": 120, "problems": 2000}
    values["training"] |= {"max_steps": 40, "eval_every": 20}
    values["datasets"]["more"] = {**values["datasets"]["problems"], "seed": 11, "labelled": 60}
    routes = {"problems": "demo", "more": "assistant"}
    values["grid"].append({"pipeline": "kd", "students": ["tiny"], "routes": routes})
    values["grid"] = [{**block, "seeds": [1]} for block in values["grid"]]
    checkout.config_path.write_text(yaml.safe_dump(values, sort_keys=False))
    checkout.snakemake("all_frontiers")
    return checkout


def test_a_chain_runs_once_and_is_paid_for_by_its_students(chain):
    assert "Nothing to be done" in chain.snakemake("all_frontiers")
    tables = chain.folder / "results/accounting"
    attempts = pl.read_parquet(tables / "attempts.parquet")
    assistant = attempts.filter(pl.col("stage") == "assistant_train")
    assert assistant["artifact_kind"].unique().to_list() == ["model"]
    (key,) = assistant["artifact_key"].unique().to_list()
    artifacts = pl.read_parquet(tables / "artifacts.parquet")
    (bill,) = artifacts.filter(key=key).iter_rows(named=True)
    assert bill["charged"]
    assert bill["energy_j"] == pytest.approx(assistant["energy_j"].sum())
    assert bill["shared_j"] == pytest.approx(bill["energy_j"])
    runs = pl.read_parquet(tables / "runs.parquet")
    readers = {path.name for path in chain.folder.glob(f"artifacts/model/{key}/consumers/*")}
    assert len(readers) == bill["consumers"] == 4
    tiny = runs.filter(pipeline="kd", student="tiny")
    teacher_j = {row["teacher"]: row["teacher_j"] for row in tiny.iter_rows(named=True)}
    direct_j = teacher_j["demo"]
    assert direct_j < teacher_j["assistant"]
    assert direct_j < teacher_j["0.5 demo + 0.5 assistant"]
    assert runs["quality"].null_count() == 0
    summary = pl.read_parquet(tables / "summary.parquet")
    assert "kd tiny teacher=assistant" in summary["setting"].to_list()


def test_a_routed_run_learns_each_dataset_from_its_own_teacher_and_pays_both(chain):
    (path,) = chain.folder.glob("results/students/kd-tiny-problems-more-*/training.json")
    record, run = json.loads(path.read_text()), path.parent.name
    assert record["train_rows"] == 120 + 60
    assert record["sources"] == [pytest.approx(2 / 3, abs=0.05), pytest.approx(1 / 3, abs=0.05)]
    tables = chain.folder / "results/accounting"
    (row,) = pl.read_parquet(tables / "runs.parquet").filter(run=run).iter_rows(named=True)
    assert row["dataset"] == "problems+more"
    assert row["teacher"] == "demo on problems + assistant on more"
    assert row["student_only_j"] < row["amortized_j"] < row["one_off_j"]
    artifacts = pl.read_parquet(tables / "artifacts.parquet")
    shares = pl.read_parquet(tables / "shares.parquet").filter(policy="equal")
    read = shares.filter(run=run)
    assert {("dataset", 2), ("logits", 2)} <= set(read["kind"].value_counts().rows())
    for kind, key in read.select("kind", "key").rows():
        (bill,) = artifacts.filter(kind=kind, key=key).iter_rows(named=True)
        own = shares.filter(kind=kind, key=key)
        assert own["share_j"].sum() == pytest.approx(bill["energy_j"], rel=1e-9)
    # The assistant learnt from the other cache too, so all that is read stands on that one.
    inputs, tokens = record["recipe"]["inputs"], record["trained_tokens"]
    for role, share in (("logits", 1.0), ("logits_2", record["sources"][1])):
        folder = chain.folder / f"artifacts/logits/{inputs[role]['key']}/consumers"
        consumers = [json.loads(one.read_text()) for one in folder.glob("*.json")]
        (own,) = [one for one in consumers if one["run"] == run]
        assert own["tokens_read"] == pytest.approx(tokens * share, abs=1)
        assert (len(consumers) > 1) == (role == "logits")


def test_the_assistant_is_the_student_that_its_run_would_be(chain):
    """Both are trained here: the weights agree to the byte."""
    (manifest,) = [
        manifest
        for path in chain.folder.glob("artifacts/model/*/manifest.json")
        if "student" in (manifest := json.loads(path.read_text()))["recipe"]
    ]
    objects = {file["name"]: file["sha256"] for file in manifest["parts"][0]["files"]}
    trained = {
        record["recipe"]["inputs"]["logits"]["key"]: path.parent / "model/model.safetensors"
        for path in chain.folder.glob("results/students/kd-small-*/training.json")
        if (record := json.loads(path.read_text()))
    }
    assert len(trained) == 2
    sha256 = objects["model.safetensors"]
    made = chain.folder / f"artifacts/objects/{sha256[:2]}/{sha256}.safetensors"
    twin = trained[manifest["recipe"]["inputs"]["logits"]["key"]]
    assert made.read_bytes() == twin.read_bytes()


def test_answers_and_distributions_are_read_together(chain):
    (path,) = chain.folder.glob("results/students/sequence_and_token-*/training.json")
    record = json.loads(path.read_text())
    assert {"corpus", "logits"} <= record["recipe"]["inputs"].keys()
    assert "loss" in record["recipe"]
    assert record["train_rows"] > 100
    assert record["cross_entropy"] < record["untrained_cross_entropy"]
