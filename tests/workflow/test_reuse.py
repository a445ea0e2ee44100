"""What runs again, and what never does."""

import json
import os
import shutil
import time

import polars as pl

from tests.workflow.conftest import TEACHER_RULES, Checkout


def teacher_jobs(planned):
    return {rule: count for rule, count in planned.items() if rule in TEACHER_RULES}


def edit_grid(checkout, pipeline, **changes):
    """Change the grid blocks of one pipeline."""
    grid = checkout.config["grid"]
    for block in grid:
        if block["pipeline"] == pipeline:
            block.update(changes)
    checkout.configure(grid=grid)


def test_a_hyperparameter_reruns_its_own_students_alone(checkout):
    edit_grid(checkout, "kd", alpha=[0.3])
    assert checkout.planned("all_frontiers") == {
        "all_frontiers": 1,
        "train_student": 2,
        "evaluate_student": 2,
        "account": 1,
        "frontiers": 1,
    }


def test_a_new_temperature_reads_the_cache_that_is_there(checkout):
    edit_grid(checkout, "kd", temperature=[2.0, 4.0])
    planned = checkout.planned("all_frontiers")
    assert teacher_jobs(planned) == {}
    assert planned["train_student"] == 2


def test_without_results_no_teacher_job_is_planned(checkout):
    shutil.rmtree(checkout.folder / "results")
    planned = checkout.planned("all_frontiers")
    assert teacher_jobs(planned) == {}
    assert planned["train_student"] == 6


def test_without_results_and_metadata_and_profile_no_teacher_job_is_run(checkout):
    """The worst case: plain Snakemake in a clone that knows nothing may plan teacher jobs, but
    each finds its part in the store and returns without work."""
    before = {p: p.read_bytes() for p in checkout.folder.glob("artifacts/*/*/parts/?????.json")}
    objects = {p: p.stat().st_mtime_ns for p in checkout.folder.glob("artifacts/objects/*/*")}
    printed = checkout.snakemake("--forceall", "all_artifacts")
    assert printed.count("is in the store: reused") >= len(before)
    assert before == {p: p.read_bytes() for p in before}
    assert objects == {
        p: p.stat().st_mtime_ns for p in checkout.folder.glob("artifacts/objects/*/*")
    }


def test_a_second_team_reuses_the_store_and_both_count_as_consumers(checkout, tmp_path):
    store = checkout.folder / "artifacts"
    second = Checkout.fresh(tmp_path / "second")
    second.configure(**checkout.config)
    second.configure(store={"root": str(store), "team": "theirs"})
    grid = [block for block in second.config["grid"] if block["pipeline"] == "kd"]
    second.configure(grid=[{**grid[0], "seeds": [1]}])
    for path in sorted(store.rglob("*"), key=lambda p: hash(p.name)):
        os.utime(path, (time.time(), time.time()))

    assert teacher_jobs(second.planned("all_frontiers")) == {}
    second.snakemake("all_frontiers")
    ledger = pl.read_parquet(second.folder / "results/accounting/artifacts.parquet")
    consumers = dict(ledger.select("kind", "consumers").iter_rows())
    assert consumers["logits"] == 3  # two runs of ours, one of theirs

    planned = checkout.planned("all_frontiers")
    assert planned == {"all_frontiers": 1, "account": 1, "frontiers": 1}
    checkout.snakemake("all_frontiers")
    ledger = pl.read_parquet(checkout.folder / "results/accounting/artifacts.parquet")
    assert dict(ledger.select("kind", "consumers").iter_rows())["logits"] == 3
    assert "Nothing to be done" in checkout.snakemake("all_frontiers")


def test_an_edited_comment_and_a_touched_script_rerun_nothing(checkout):
    for path in (checkout.folder / "workflow/scripts").glob("*.py"):
        path.write_text(path.read_text() + "\n# a remark\n")
    assert checkout.planned("all_frontiers") == {}


def test_an_unrelated_key_reruns_nothing(checkout):
    checkout.configure(carbon={"pue": 1.3})
    assert checkout.planned("all_frontiers") == {}


def test_a_lost_object_is_named_repaired_and_made_again_alone(checkout):
    (path,) = checkout.folder.glob("artifacts/corpus/*/parts/00001.json")
    receipt = json.loads(path.read_text())
    sha256 = receipt["files"][0]["sha256"]
    lost = checkout.folder / f"artifacts/objects/{sha256[:2]}/{sha256}.parquet"
    lost.unlink()

    edit_grid(checkout, "synthetic_sft", seeds=[9])
    printed = checkout.snakemake("all_frontiers", check=False)
    assert f"corpus {receipt['key']}, part 1" in printed
    assert "angelshare verify --repair" in printed
    printed = checkout.run("angelshare", "verify", check=False)
    assert f"corpus {receipt['key']}, part 1" in printed
    assert sha256 in printed
    checkout.run("angelshare", "verify", "--repair")

    planned = checkout.planned("all_frontiers")
    assert teacher_jobs(planned) == {"generate_corpus": 1}
    checkout.snakemake("all_frontiers")
    assert json.loads(path.read_text()) == receipt
    assert lost.exists()
    assert "are whole" in checkout.run("angelshare", "verify")


def test_a_part_without_a_receipt_is_made_again_alone(checkout):
    (path,) = checkout.folder.glob("artifacts/logits/*/parts/00000.json")
    path.unlink()
    assert checkout.planned("all_frontiers") == {"all_frontiers": 1, "capture_logits": 1}


def test_a_lost_manifest_upstream_is_sealed_again_alone(checkout):
    for kind in ("dataset", "tokenizer", "model"):
        (path,) = checkout.folder.glob(f"artifacts/{kind}/*/manifest.json")
        path.unlink()
    planned = checkout.planned("all_frontiers")
    assert planned == {"all_frontiers": 1, "seal": 3, "account": 1, "frontiers": 1}
    edit_grid(checkout, "kd", alpha=[0.3])
    assert teacher_jobs(checkout.planned("all_frontiers")) == {"seal": 3}


def test_bad_configuration_stops_before_any_job(checkout):
    checkout.configure(loss={"temperature": -1})
    printed = checkout.snakemake("-n", check=False)
    assert "loss.temperature must be greater than 0 (got -1" in printed
    assert "Traceback" not in printed


def test_the_slurm_profile_plans_the_same_jobs(checkout):
    shutil.rmtree(checkout.folder / "results")
    local = checkout.planned("all_frontiers")
    assert checkout.planned("all_frontiers", profile="slurm") == local
