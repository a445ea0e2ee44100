"""What runs again, and what never does."""

import base64
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import polars as pl
import pytest

from angelshare.config import load_config
from angelshare.data.tables import read_table, write_table
from angelshare.grid import plan_study
from angelshare.store.artifacts import ArtifactStore
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


@pytest.mark.parametrize("profile", ["local", "slurm", None])
def test_a_part_that_was_finished_after_its_snakemake_was_killed_is_taken(tmp_path, profile):
    checkout = Checkout.fresh(tmp_path / "checkout")
    jobs = checkout.planned("all_frontiers", profile=profile)
    study = plan_study(load_config(checkout.config))
    (dataset,) = study.datasets.values()
    parts = Path("artifacts/dataset", dataset.key, "parts")
    (checkout.folder / parts).mkdir(parents=True)
    for name in ("00000.json", "00000.energy.json"):
        (checkout.folder / parts / name).write_text("{}")
        # As Snakemake marks what it has started and not seen end.
        marker = base64.urlsafe_b64encode(str(parts / name).encode()).decode()
        (checkout.folder / ".snakemake/incomplete").mkdir(exist_ok=True)
        (checkout.folder / ".snakemake/incomplete" / marker).write_text("{}")
    bare = ("--workflow-profile", "none", "--cores", "1", "-n")
    assert "IncompleteFilesException" in checkout.run("snakemake", *bare, check=False)
    assert jobs.pop("prepare_dataset") == 1
    assert checkout.planned("all_frontiers", profile=profile) == jobs


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


def in_the_store(checkout, kind):
    """The folder of the one artifact of a kind."""
    (folder,) = (checkout.folder / "artifacts" / kind).iterdir()
    return folder


def scramble(folder):
    """Give every file under a folder a modification time of its own, past or to come."""
    moments = random.Random(20)
    for path in sorted(folder.rglob("*")):
        then = time.time() + moments.uniform(-1e7, 1e7)
        os.utime(path, (then, then))


def test_swapped_hyperparameters_rerun_the_students_alone(checkout):
    """The set of values stays the same, so only a recipe that names them can tell."""
    training = checkout.config["training"]
    optimizer = training["optimizer"]
    swapped = {
        "learning_rate": optimizer["adamw_learning_rate"],
        "adamw_learning_rate": optimizer["learning_rate"],
    }
    checkout.configure(training=training | {"optimizer": optimizer | swapped})
    planned = checkout.planned("all_frontiers")
    assert teacher_jobs(planned) == {}
    assert planned["train_student"] == planned["evaluate_student"] == 6


def test_a_teacher_and_a_student_that_swap_roles_are_other_recipes(checkout, tmp_path):
    """Two models that exist: who teaches whom is in the recipe, though the inputs are the same."""
    models = sorted((checkout.folder / "results/students").glob("*/model"))[:2]

    def assign(teacher, student):
        checkout.configure(
            teachers={"demo": {"model": str(teacher)}},
            students={"tiny": {"init": {"model": str(student)}}},
        )
        edit_grid(checkout, "kd", seeds=[1])

    assign(*models)
    make_up(checkout)
    assert teacher_jobs(checkout.planned("all_artifacts")) == {}
    assign(*reversed(models))
    planned = teacher_jobs(checkout.planned("all_artifacts"))
    assert planned == {"capture_logits": 1, "generate_corpus": 2, "evaluate_teacher": 1, "seal": 3}
    assign(*models)
    assert teacher_jobs(checkout.planned("all_artifacts")) == {}


def make_up(checkout):
    """Put every artifact of the study into its store, with made-up content: enough to plan by."""
    here = os.getcwd()
    os.chdir(checkout.folder)
    try:
        config = load_config(checkout.config)
        store = config.store.open()
        for plan in plan_study(config).artifacts.values():
            artifact = store.artifact(plan.kind, plan.key)
            for part in range(plan.parts):
                source = checkout.folder / "made-up"
                source.write_text(f"{plan.key} {part}")
                artifact.commit(part, {"made-up.parquet": source}, inputs={})
                artifact.receipt_path(part).with_suffix(".energy.json").write_text("{}")
            artifact.seal(plan.recipe, plan.parts)
            (artifact.folder / "energy.json").write_text("{}")
    finally:
        os.chdir(here)


def test_a_raised_stage_version_makes_that_stage_again_and_what_reads_it(checkout):
    path = checkout.folder / "workflow/lib/angelshare/recipes.py"
    text = path.read_text()
    raised = re.sub(r'"logits": (\d+)', lambda m: f'"logits": {int(m.group(1)) + 1}', text)
    assert raised != text
    path.write_text(raised)
    planned = checkout.planned("all_frontiers")
    assert teacher_jobs(planned) == {"capture_logits": 1, "seal": 1}
    assert planned["train_student"] == 2


def test_scrambled_modification_times_rerun_nothing(checkout):
    scramble(checkout.folder / "artifacts")
    planned = checkout.planned("all_frontiers")
    assert planned == {}
    shutil.rmtree(checkout.folder / "results")
    assert teacher_jobs(checkout.planned("all_frontiers")) == {}


@pytest.mark.parametrize("profile", ["local", "slurm", None])
def test_a_fresh_clone_plans_no_teacher_job_with_whatever_profile(checkout, tmp_path, profile):
    """Its scripts are younger than every artifact, and it knows no metadata."""
    clone = Checkout.fresh(tmp_path / "clone")
    clone.configure(**checkout.config)
    clone.configure(store={"root": str(checkout.folder / "artifacts"), "team": "theirs"})
    scramble(checkout.folder / "artifacts")
    planned = clone.planned("all_frontiers", profile=profile)
    assert teacher_jobs(planned) == {}
    assert planned["train_student"] == 6


def test_without_a_profile_nothing_is_planned(checkout):
    for path in (checkout.folder / "workflow/scripts").glob("*.py"):
        path.write_text(path.read_text() + "\n# a remark\n")
    assert checkout.planned("all_frontiers", profile=None) == {}


@pytest.mark.parametrize("kind", ["dataset", "tokenizer", "model"])
def test_a_whole_upstream_artifact_that_is_gone_costs_no_teacher_job(checkout, kind):
    """What was made from it stays valid; it is made again where it is read, a teacher only where
    something is to be made by it."""
    folder = in_the_store(checkout, kind)
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "parts")
    made_again = {
        "dataset": {"prepare_dataset": 1, "seal": 1},
        "tokenizer": {"train_tokenizer": 1, "seal": 1},
        "model": {},
    }
    assert teacher_jobs(checkout.planned("all_frontiers")) == made_again[kind]
    edit_grid(checkout, "kd", alpha=[0.3])
    assert teacher_jobs(checkout.planned("all_frontiers")) == made_again[kind]


def test_a_layer_that_may_only_be_read_is_reused(checkout, tmp_path):
    theirs = checkout.folder / "artifacts"
    before = {path: path.lstat().st_mtime_ns for path in theirs.rglob("*")}
    ours = Checkout.fresh(tmp_path / "ours")
    ours.configure(**checkout.config)
    ours.configure(store={"root": "artifacts", "layers": [str(theirs)], "team": "theirs"})
    (block,) = (block for block in ours.config["grid"] if block["pipeline"] == "kd")
    ours.configure(grid=[block | {"seeds": [1]}], training=short(ours))
    for path in theirs.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    assert teacher_jobs(ours.planned("all_frontiers")) == {}
    ours.snakemake("all_frontiers")
    assert {path: path.lstat().st_mtime_ns for path in theirs.rglob("*")} == before
    ledger = pl.read_parquet(ours.folder / "results/accounting/artifacts.parquet")
    assert dict(ledger.select("kind", "consumers").iter_rows())["logits"] == 3
    assert list((ours.folder / "artifacts").glob("logits/*/consumers/*.json"))
    assert list((ours.folder / "artifacts").glob("objects/*")) == []


def short(checkout):
    """Training that ends at once."""
    return checkout.config["training"] | {"max_steps": 4, "warmup_steps": 1, "eval_every": 2}


def test_a_changed_input_is_refused_repaired_and_its_dependants_made_again(checkout):
    """A dataset that was collected and came back with other content, as a stage that is not
    deterministic brings it: what was made from the former one is invalid, and says so."""
    dataset = in_the_store(checkout, "dataset")
    (part,) = (dataset / "parts").glob("?????.json")
    store = ArtifactStore(checkout.folder / "artifacts")
    artifact = store.artifact("dataset", dataset.name)
    manifest = artifact.manifest()
    paths = {path.suffix: path for path in artifact.paths()}
    table = read_table(paths[".parquet"])
    other = checkout.folder / "other.parquet"
    write_table(table.take(list(reversed(range(table.num_rows)))), other)
    for gone in (artifact.manifest_path, part):
        gone.unlink()
    files = {"data.parquet": other, "counts.json": paths[".json"]}
    artifact.commit(0, files, inputs={}, rows=table.num_rows)
    artifact.seal(manifest.recipe, 1)

    printed = checkout.run("angelshare", "verify", check=False)
    logits = in_the_store(checkout, "logits").name
    assert f"logits {logits}, part 0 (read by kd-tiny" in printed
    assert "made from other content of its sequences" in printed
    edit_grid(checkout, "kd", seeds=[9])
    checkout.configure(training=short(checkout))
    one_block(checkout, "kd")
    printed = checkout.snakemake("all_frontiers", check=False)
    assert "angelshare verify --repair" in printed
    checkout.run("angelshare", "verify", "--repair")
    assert teacher_jobs(checkout.planned("all_artifacts")) == {
        "capture_logits": 1,
        "evaluate_teacher": 1,
        "seal": 2,
    }
    checkout.snakemake("all_frontiers")
    assert "are whole" in checkout.run("angelshare", "verify")


def one_block(checkout, pipeline):
    """Leave only the grid blocks of one pipeline."""
    grid = [block for block in checkout.config["grid"] if block["pipeline"] == pipeline]
    checkout.configure(grid=grid)


def test_a_teacher_whose_licence_restricts_its_outputs_warns_everywhere(checkout):
    teacher = checkout.config["teachers"]["demo"]
    restricted = teacher | {"license": "LicenseRef-Acme", "outputs_restricted": True}
    checkout.configure(teachers={"demo": restricted})
    assert checkout.planned("all_frontiers") == {}
    one_block(checkout, "kd")
    path = in_the_store(checkout, "logits") / "parts/00000.json"
    path.unlink()
    printed = checkout.snakemake("all_frontiers")
    model = in_the_store(checkout, "model").name[:12]
    warning = f"the licence of model/{model} restricts training on its outputs"
    assert warning in printed
    sidecar = json.loads(path.with_suffix(".energy.json").read_text())
    assert [w["code"] for w in sidecar["warnings"]].count("licence") == 1
    assert warning in checkout.run("angelshare", "show", path.parent.parent.name)
    assert "licence restricts training on it" in checkout.run("angelshare", "ls")
    assert warning in (checkout.folder / "logs/account.log").read_text()
    assert warning in (checkout.folder / "results/report.html").read_text()
    assert warning in checkout.run("angelshare", "plan")
