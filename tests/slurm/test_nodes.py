"""A student on two nodes, preempted in mid-training; what its teacher did is there already."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.conftest import Cluster, Study, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

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
    settings = {
        "store": {"team": "theirs", "root": str(local.folder / "artifacts")},
        "grid": [{**GRID, "seeds": [1]}],
        # Muon's iterations in bfloat16 would make much of a difference in the last digit.
        "training": {
            **local.checkout.config["training"],
            "optimizer": {"name": "adafactor", "learning_rate": 0.002},
        },
    }
    folder = tmp_path_factory.mktemp("nodes")
    study = Study(folder / "two", **settings, students={"tiny": {**student, "nodes": 2}})
    alone = Study(folder / "one", **settings, students={"tiny": student})
    study.fault("slow", "train_student", "0.5")
    workflow = study.start(cluster)
    # SIGTERM to the first process of the job's step alone, as Slurm does it with cgroups.
    wait_for(lambda: counted_steps(study) >= 3, "the third step")
    (run,) = study.folder.glob("results/students/*")
    training = f"results/students/{run.name}/training.json"
    by_itself = alone.start(None, target=training)
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
    wait_for(lambda: len(list((run / "energy.attempts").glob("*.json"))) > 2, "a third attempt")
    study.mend("slow", "train_student")
    assert workflow.wait(600) == 0, study.text()[-6000:]

    assert by_itself.wait(300) == 0, alone.text()[-6000:]
    same_student(run.name, study, alone)
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
    folders = [one.folder / "results/students" / run for one in (study, other)]
    here, there = (json.loads((folder / "training.json").read_text()) for folder in folders)
    assert here.pop("recipe") == there.pop("recipe")
    for one in (here, there):
        del one["history"]
    assert here == pytest.approx(there, rel=1e-5)
    first, second = (load_file(folder / "model/model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        apart = torch.linalg.norm(weights - second[name]) / torch.linalg.norm(second[name])
        assert apart < 1e-4, (name, float(apart))
