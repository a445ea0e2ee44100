"""A student on two nodes, preempted in mid-training; what its teacher did is there already."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.conftest import Cluster, Study, wait_for

pytestmark = pytest.mark.slurm

GRID = {"pipeline": "kd", "students": ["tiny"], "datasets": ["problems"], "teacher": "demo"}


def submitted(study: Study) -> dict[str, set[str]]:
    """The numbers of all Slurm jobs that Snakemake submitted, by rule."""
    found: dict[str, set[str]] = {}
    pattern = r"SLURM jobid (\d+) \(log: \S*?/rule_(\w+)/"
    for number, rule in re.findall(pattern, study.text()):
        found.setdefault(rule, set()).add(number)
    return found


def counted_steps(study: Study) -> int:
    """Steps that the processes of a student have told its job of."""
    events = study.folder.glob("results/checkpoints/*.processes/events.jsonl")
    return sum(path.read_text().count('"count"') for path in events)


def test_a_student_on_two_nodes_is_preempted_and_ends_as_that_of_one_process(
    cluster: Cluster, local: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert local.process.wait(1200) == 0, local.text()[-6000:]
    student = local.checkout.config["students"]["tiny"]
    study = Study(
        tmp_path_factory.mktemp("nodes") / "checkout",
        store={"team": "theirs", "root": str(local.folder / "artifacts")},
        students={"tiny": {**student, "nodes": 2}},
        grid=[{**GRID, "seeds": [1]}],
    )
    study.fault("slow", "train_student", "0.5")
    workflow = study.start(cluster)
    # SIGTERM to the first process of the job's step alone, as Slurm does it with cgroups.
    wait_for(lambda: counted_steps(study) >= 3, "the third step")
    job = cluster.running("train_student")
    assert job
    assert job.node == "n[2-3]"
    cluster.terminate_step(job)
    # Preemption.
    wait_for(lambda: list(study.folder.glob("results/checkpoints/*/checkpoint-20")), "step 20")
    cluster.slurm(
        *("sbatch", "--partition=urgent", "--nodelist=n2,n3", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=sleep 2"),
    )
    (run,) = study.folder.glob("results/students/*")
    wait_for(lambda: len(list((run / "energy.attempts").glob("*.json"))) > 2, "a third attempt")
    study.mend("slow", "train_student")
    assert workflow.wait(600) == 0, study.text()[-6000:]

    same_student(run.name, study, local)
    attempts = study.of_rule("train_student")
    assert [record["record"]["status"] for record in attempts] == ["killed", "preempted", "ok"]
    # The one that was told to end was submitted again, the preempted one keeps its number.
    first, second, third = (record["run"]["slurm"]["job_id"] for record in attempts)
    assert first != second == third
    # SIGTERM left a checkpoint of the very step, and the record of the job and both its nodes.
    steps = [record["work"]["steps"] for record in attempts]
    assert sum(steps) == 60
    for record in attempts:
        assert [rank.get("rank") for rank in record["ranks"]] == [0, 0, 1]
        assert record["record"]["complete"]
        assert record["total"]["energy_j"]["value"] > 0
    bill = pl.read_parquet(study.folder / "results/accounting/runs.parquet")
    (scored,) = study.of_rule("evaluate_student")
    spent = sum(r["total"]["energy_j"]["value"] for r in (*attempts, scored))
    assert bill["student_only_j"].to_list() == pytest.approx([spent], rel=1e-9)

    assert "likely cause: preempted" in study.text()

    # What the other team's teacher did is there: no job was submitted for it.
    jobs = submitted(study)
    assert jobs.keys() == {
        "prerun",
        "train_student",
        "evaluate_student",
        "account",
        "frontiers",
    }
    asked = cluster.slurm("scontrol", "show", "job", "--oneliner")
    on_gpus = {
        number
        for number, line in re.findall(r"^JobId=(\d+) (.*)$", asked, re.MULTILINE)
        if "gpu" in line.partition("TresPer")[2]
    }
    mine = {number for numbers in jobs.values() for number in numbers}
    assert on_gpus & mine == jobs["train_student"] | jobs["evaluate_student"]


def same_student(run: str, study: Study, other: Study) -> None:
    """The student of one run, twice trained, up to rounding."""
    name = f"results/students/{run}/model/model.safetensors"
    torch.testing.assert_close(
        load_file(study.folder / name), load_file(other.folder / name), rtol=1e-3, atol=1e-4
    )
    name = f"results/students/{run}/training.json"
    here, there = (json.loads((one.folder / name).read_text()) for one in (study, other))
    for one in (here, there):
        del one["history"]
    assert here.pop("recipe") == there.pop("recipe")
    assert here == pytest.approx(there, rel=1e-3)
