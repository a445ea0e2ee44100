"""A study made in one store and published; other teams fetch what they would have made."""

import json
import shutil

import polars as pl

from tests.workflow.conftest import TEACHER_RULES, Checkout


def keys_of(checkout, *without):
    return [
        path.parent.name
        for path in sorted(checkout.folder.glob("artifacts/*/*/manifest.json"))
        if path.parent.parent.name not in without
    ]


def a_team_without_a_store(finished, folder, *remotes):
    """A new clone whose study distils one student from the logits that were made elsewhere."""
    checkout = Checkout.fresh(folder)
    checkout.configure(**finished.config)
    (block,) = (block for block in finished.config["grid"] if block["pipeline"] == "kd")
    checkout.configure(
        grid=[{**block, "seeds": [3]}],
        store={"root": "artifacts", "team": "theirs", "remotes": list(remotes)},
    )
    return checkout


def test_what_a_remote_has_is_fetched_and_never_made(finished, new_bucket, tmp_path):
    url = new_bucket()
    finished.run("angelshare", "push", url, *keys_of(finished, "model"))
    theirs = a_team_without_a_store(finished, tmp_path / "theirs", url)

    printed = theirs.snakemake("-n", "all_frontiers")
    assert f"bytes to fetch from {url}" in printed
    assert "rule demo_teacher" not in printed
    # Dataset, tokenizer, logits and scores; the teacher itself is needed by nobody any more.
    assert theirs.planned("all_frontiers") == {
        "all_frontiers": 1,
        "prerun": 1,
        "fetch": 4,
        "train_student": 1,
        "evaluate_student": 1,
        "account": 1,
        "frontiers": 1,
    }
    assert "to be fetched from" in theirs.run("angelshare", "plan")
    theirs.snakemake("all_frontiers")
    assert "4 artifacts are whole" in theirs.run("angelshare", "verify")

    tables = theirs.folder / "results/accounting"
    logits = pl.col("artifact_kind") == "logits"
    components = pl.read_parquet(tables / "components.parquet")
    imported = components.filter(logits & (pl.col("method") == "imported"))
    assert imported["energy_j"].sum() > 0
    before = pl.read_parquet(finished.folder / "results/accounting/attempts.parquet")
    after = pl.read_parquet(tables / "attempts.parquet")
    produced = before.filter(logits)["energy_j"].sum()
    assert after.filter(logits & (pl.col("rule") != "fetch"))["energy_j"].sum() == produced
    assert after.filter(logits & (pl.col("rule") == "fetch")).height == 1
    # What the teacher's training cost came along, and it did not.
    assert not list(theirs.folder.glob("artifacts/model/*/manifest.json"))
    model = pl.col("artifact_kind") == "model"
    assert after.filter(model)["energy_j"].sum() == before.filter(model)["energy_j"].sum()

    assert theirs.planned("all_frontiers") == {}
    theirs.configure(store={**theirs.config["store"], "remotes": ["s3://no-such-bucket/store"]})
    assert theirs.planned("all_frontiers") == {}


def test_a_remote_that_is_gone_or_damaged_is_said_and_the_work_done_here(finished, tmp_path):
    shared = tmp_path / "shared"
    finished.run("angelshare", "push", str(shared), *keys_of(finished, "corpus"))
    theirs = a_team_without_a_store(finished, tmp_path / "theirs", str(shared))
    (manifest,) = shared.glob("logits/*/manifest.json")
    sha256 = json.loads(manifest.read_text())["parts"][0]["files"][0]["sha256"]
    (lost,) = shared.glob(f"objects/{sha256[:2]}/{sha256}.*")
    lost.unlink()

    printed = theirs.snakemake("all_artifacts", check=False)
    assert "is missing" in printed
    assert "what no remote offers any more is made here" in printed
    shutil.rmtree(shared)
    printed = theirs.snakemake("-n", "all_artifacts")
    assert f"{shared}: there is no store, or it is empty." in printed
    # What had arrived is kept; the logits are made, and for them what they are made from.
    planned = {
        rule: count
        for rule, count in theirs.planned("all_artifacts").items()
        if rule in {*TEACHER_RULES, "fetch"}
    }
    assert planned == {"demo_teacher": 1, "capture_logits": 1, "seal": 2}
