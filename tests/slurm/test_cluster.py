"""The study on a real Slurm: the same tables as on one machine, whatever happens meanwhile."""

from __future__ import annotations

import json
import subprocess
import time

import polars as pl
import pytest

from tests.slurm.conftest import Cluster, Study, wait_for

pytestmark = pytest.mark.slurm
CAUSES = (
    "RuntimeError: a fault of the test",
    "out of memory",
    "time limit",
    "cancelled",
    "Slurm sent it back into the queue",
)
"""What Snakemake's terminal says of the failures that come before a node's."""


def manifests(study: Study) -> dict[str, bytes]:
    """Every manifest by its path: keys, recipes, digests of parts, none of the time or host."""
    found = study.folder.glob("artifacts/*/*/manifest.json")
    return {str(path.relative_to(study.folder)): path.read_bytes() for path in found}


def trainings(study: Study) -> dict[str, dict]:
    """Every training's record, without its log of losses, to which an interruption adds a line."""
    found = study.folder.glob("results/students/*/training.json")
    records = {path.parent.name: json.loads(path.read_text()) for path in found}
    return {run: {**record, "history": None} for run, record in records.items()}


def scores(study: Study) -> pl.DataFrame:
    """What the tables say of the runs besides energy."""
    runs = pl.read_parquet(study.folder / "results/accounting/runs.parquet")
    scored = [name for name in runs.columns if name.startswith(("quality", "validation", "word_"))]
    return runs.select("run", "pipeline", "seed", "tokens", "parameters", *scored).sort("run")


def assert_same(study: Study, other: Study) -> None:
    assert manifests(study) == manifests(other)
    assert trainings(study) == trainings(other)
    assert scores(study).equals(scores(other))


def assert_all_on_the_bill(study: Study) -> None:
    """The bills of artifacts and runs are the sums over all their attempts."""
    tables = study.folder / "results/accounting"
    for row in pl.read_parquet(tables / "artifacts.parquet").iter_rows(named=True):
        records = study.records(f"artifacts/{row['kind']}/{row['key']}/attempts/*.json")
        spent = sum(record["total"]["energy_j"]["value"] for record in records)
        assert row["energy_j"] == pytest.approx(spent, rel=1e-9), row["kind"]
    for row in pl.read_parquet(tables / "runs.parquet").iter_rows(named=True):
        records = study.records(
            f"results/students/{row['run']}/energy.attempts/*.json",
            f"results/scores/{row['run']}.energy.attempts/*.json",
        )
        spent = sum(record["total"]["energy_j"]["value"] for record in records)
        assert row["student_only_j"] == pytest.approx(spent, rel=1e-9), row["run"]


def assert_finished(process: subprocess.Popen, study: Study) -> None:
    assert process.wait(1200) == 0, study.text()[-6000:]


def test_the_tables_are_those_of_one_machine(
    cluster: Cluster, local: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = Study(tmp_path_factory.mktemp("clean") / "checkout")
    assert_finished(study.start(cluster), study)
    assert_finished(local.process, local)
    assert_same(study, local)
    assert_all_on_the_bill(study)
    hosted = study.of_rule("train_student")
    assert len(hosted) == 3
    assert all(record["run"]["slurm"]["partition"] == "gpu" for record in hosted)
    assert "slurm" not in study.of_rule("seal")[0]["run"]  # on the submitting host


@pytest.mark.faults
def test_every_fault_ends_in_the_same_tables(
    cluster: Cluster, local: Study, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = Study(
        tmp_path_factory.mktemp("faults") / "checkout",
        hardware={
            "gpus": 1,
            "memory_mb": 2000,
            "runtime_min": 10,
            "part_rows": 100,
            "rules": {"train_student": {"runtime_min": 1}},
        },
    )
    study.fault("fail", "prepare_dataset")
    study.fault("eat", "demo_teacher", "2500")
    study.fault("slow", "train_student", "2")
    study.fault("slow", "generate_corpus", "3")
    study.fault("slow", "capture_logits", "180")
    workflow = study.start(cluster)

    # scancel of one part in mid-work, scontrol requeue of the other.
    for part, command in enumerate([("scancel",), ("scontrol", "requeue")]):
        wait_for(lambda part=part: study.pieces(part) >= 2, f"work on part {part}")
        job = cluster.running("generate_corpus", f"_{part:05d}")
        assert job, "the part is still being worked on"
        cluster.slurm(*command, job.number)
    # The first student, which waits for no teacher, has longer work than time.
    causes = [f"likely cause: {cause}" for cause in CAUSES]
    wait_for(lambda: all(cause in study.text() for cause in causes), "word of every failure")
    # The controller restarts; a node dies under the capture.
    job = wait_for(lambda: cluster.running("capture_logits"), "the capture")
    wait_for(lambda: study.of_rule("capture_logits"), "the capture's record")
    cluster.kill_node(job.node)
    study.mend("slow", "capture_logits")
    study.fault("slow", "generate_corpus", "0.2")
    cluster.script("stop", str(cluster.folder), "slurmctld")
    time.sleep(3)
    cluster.script("start", str(cluster.folder), "slurmctld")
    # Not sinfo: it calls a node mixed while a cancelled job's end there is unknown.
    node = ("scontrol", "show", "node", "--oneliner", job.node)
    down = lambda: "State=DOWN" in cluster.slurm(*node)  # noqa: E731
    wait_for(down, f"{job.node} counts as down")
    cluster.script("start", str(cluster.folder), f"slurmd.{job.node}")

    # Snakemake is killed while students learn; its jobs go on, and are submitted again.
    study.fault("slow", "train_student", "0.5")
    wait_for(lambda: "running" in fates(study, "kd"), "a student that learns from the capture")
    study.killed(workflow)
    orphan = cluster.running("train_student")
    assert orphan, "the job outlives its Snakemake"
    assert study.start(cluster, "--unlock").wait(120) == 0
    assert_finished(study.start(cluster), study)

    assert_finished(local.process, local)
    assert_same(study, local)
    assert_all_on_the_bill(study)
    assert_each_fault_is_on_record(study)
    assert_nothing_was_made_twice(study)
    assert study.start(cluster).wait(120) == 0
    assert "Nothing to be done" in study.text().rpartition("Building DAG")[2]


def fates(study: Study, pipeline: str) -> list[str]:
    """How the attempts at a pipeline's student ended so far."""
    found = study.records(f"results/students/{pipeline}-*/energy.attempts/*.json")
    return [record["record"]["status"] for record in found]


def assert_each_fault_is_on_record(study: Study) -> None:
    ended = {
        rule: [record["record"]["status"] for record in study.of_rule(rule)]
        for rule in ("prepare_dataset", "demo_teacher", "generate_corpus", "capture_logits")
    }
    assert ended["prepare_dataset"] == ["failed", "ok"]
    assert ended["demo_teacher"] == ["killed", "ok"]  # out of memory
    # The node that died under the capture may have had another job, too.
    for rule, parts in (("capture_logits", 1), ("generate_corpus", 2)):
        assert ended[rule].count("ok") == parts
        assert ended[rule].count("killed") >= parts
    stopped = study.records("results/students/sft-*/energy.attempts/*.json")
    assert {record["record"]["status"] for record in stopped} == {"killed", "ok"}  # time limit
    lost = [r for r in (*study.of_rule("demo_teacher"), *stopped) if r["record"]["status"] != "ok"]
    assert all(record["total"]["energy_j"]["value"] > 0 for record in lost)


def tokens(record: dict, kind: str) -> int:
    return ((record.get("work") or {}).get("tokens") or {}).get(kind, 0)


def assert_nothing_was_made_twice(study: Study) -> None:
    corpus = json.loads(next(study.folder.glob("artifacts/corpus/*/manifest.json")).read_text())
    generated = sum(tokens(record, "generated") for record in study.of_rule("generate_corpus"))
    assert 0 < generated <= corpus["tokens"]
    # A node that dies takes the steps since the last checkpoint with it; there is one in 20.
    for run in study.folder.glob("results/students/*"):
        records = study.records(f"results/students/{run.name}/energy.attempts/*.json")
        killed = sum(record["record"]["status"] == "killed" for record in records)
        steps = sum((record.get("work") or {}).get("steps", 0) for record in records)
        assert 60 <= steps <= 60 + 20 * killed
    orphaned = study.records("results/students/kd-*/energy.attempts/*.json")
    assert len(orphaned) >= 2
