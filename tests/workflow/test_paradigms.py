"""The grid of paradigms, reduced: every paradigm, and a run that reads all that a teacher made."""

import json

import polars as pl
import pytest
import yaml

from .conftest import ROOT, Checkout

READ = ["corpus", "logits", "states", "states"]


@pytest.fixture(scope="module")
def paradigms(tmp_path_factory) -> Checkout:
    """Two students of everything at once, and one of hidden states alone over the same corpus."""
    values = yaml.safe_load((ROOT / "config/grids/paradigms.yaml").read_text())
    values["datasets"]["problems"].update(labelled=24, unlabelled=16, validation=16, test=8)
    values["teachers"]["demo"]["demo"].update(problems=400, steps=30)
    values["training"].update(max_steps=12, eval_every=6, warmup_steps=2)
    values["generation"] = {"max_new_tokens": 24, "batch_size": 64}
    values["pipelines"] = {
        "all": {**values["pipelines"]["together"], "data": "corpus"},
        "feature": {**values["pipelines"]["feature"], "data": "corpus"},
    }
    block = {**values["grid"][0], "seeds": [1]}
    values["grid"] = [
        {**block, "pipeline": "all", "seeds": [1, 2]},
        {**block, "pipeline": "feature"},
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
        assert consumers in (2, 3)
        own = shares.filter(pl.col("key") == artifact["key"])
        assert len(own) == consumers
        assert own["share_j"].sum() == pytest.approx(artifact["energy_j"], rel=1e-9)
        assert artifact["energy_j"] > 0
    for run in runs.iter_rows(named=True):
        assert run["distilled"]
        assert run["student_only_j"] < run["amortized_j"] < run["one_off_j"]


def test_terms_and_pairs_are_reported_and_projectors_published(paradigms):
    for folder in (paradigms.folder / "results/paradigms/students").iterdir():
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


def test_a_second_run_has_nothing_to_do_and_the_store_is_whole(paradigms):
    assert "Nothing to be done" in paradigms.snakemake("all_frontiers")
    assert "are whole" in paradigms.run("angelshare", "verify")
    assert "states" in paradigms.run("angelshare", "ls").split()
