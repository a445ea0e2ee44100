"""What is said of Slurm jobs: state, likely cause, way out, from canned answers of Slurm."""

import os
from datetime import UTC, datetime

import pytest

from angelshare.progress import cluster
from angelshare.progress.attempts import Attempt
from angelshare.progress.cluster import GONE, awaited, cluster_jobs, likely_cause

SNAKEMAKE_LOG = """
Job 4 has been submitted with SLURM jobid 11 (log: /x/11.log).
Job 5 has been submitted with SLURM jobid 12 (log: /x/12.log).
Finished jobid: 4 (Rule: prepare_dataset)
Error in rule train_student:
    external_jobid: 12
Job 5 has been submitted with SLURM jobid 13 (log: /x/13.log).
Job 6 has been submitted with SLURM jobid 14 (log: /x/14.log).
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout whose Slurm answers from a table."""
    (tmp_path / ".snakemake/log").mkdir(parents=True)
    (tmp_path / ".snakemake/log/2026.snakemake.log").write_text(SNAKEMAKE_LOG)
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def slurm_says(folder, *lines, sacct=()):
    for name, answers in (("squeue", lines), ("sacct", sacct)):
        tool = folder / "tools" / name
        tool.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(answers) + "\nEND\n")
        tool.chmod(0o755)


def test_what_snakemake_waits_for(folder):
    assert awaited(folder) == {"13", "14"}


def test_jobs_of_this_folder_alone_with_cause_and_log(folder):
    log = folder / "logs/slurm/rule_train_student/kd/12.log"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=12.0\n")
    slurm_says(
        folder,
        f"12|FAILED|rule_train_student_wildcards_kd|{folder}",
        f"13|RUNNING|rule_train_student_wildcards_kd|{folder}",
        f"14|PREEMPTED|rule_demo_teacher|{folder}",
        "15|RUNNING|rule_train_student|/somewhere/else",
    )
    failed, running, preempted = cluster_jobs(folder, [])
    assert (failed.number, failed.cause, failed.log) == ("12", "out of memory", log)
    assert "hardware.memory_mb" in str(failed)
    assert "log says why" not in str(failed)
    assert not failed.stuck
    assert (running.cause, running.stuck) == (None, False)
    assert preempted.stuck
    assert "scontrol requeue 14" in preempted.way_out


def test_what_slurm_has_forgotten_is_asked_of_its_accounting(folder):
    slurm_says(folder, sacct=["13|CANCELLED by 0"])
    job, forgotten = cluster_jobs(folder, [])
    assert (job.state, job.cause, job.stuck) == ("CANCELLED", "cancelled", True)
    assert (forgotten.state, forgotten.stuck) == (GONE, True)


@pytest.mark.parametrize(
    ("state", "text", "cause"),
    [
        ("TIMEOUT", "", "time limit"),
        ("NODE_FAIL", "", "node failure"),
        ("FAILED", "JOB 7 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT", "time limit"),
        ("FAILED", "slurmstepd: error: Exceeded job memory limit", "out of memory"),
        ("FAILED", "torch.OutOfMemoryError: CUDA out of memory.", "out of memory"),
        ("FAILED", "ValueError", "failed"),
        ("FAILED", "[train_student kd] error: no row is left\nWorkflowError:\n", "no row is left"),
        ("FAILED", "2026-01-01T00:00:00Z error: no row is left", "no row is left"),
        ("FAILED", "ValueError: first\n\nKeyError: 'x'\nRuleException:\n", "KeyError: 'x'"),
        ("FAILED", "srun: error: n1: task 0: Exited with exit code 1", "failed"),
        ("COMPLETED", "", None),
        ("RUNNING", "oom_kill", None),
    ],
)
def test_the_likely_cause(tmp_path, state, text, cause):
    log = tmp_path / "7.log"
    log.write_text(text)
    assert likely_cause(state, log, None) == cause


def test_a_preempted_attempt_says_so_where_the_log_says_cancelled(tmp_path):
    log = tmp_path / "7.log"
    log.write_text("slurmstepd: error: *** STEP 7.0 ON n2 CANCELLED AT 2026 ***")
    attempt = Attempt(
        path=tmp_path / "a.json",
        rule="train_student",
        wildcards={},
        status="preempted",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        duration_s=1.0,
        energy_j=1.0,
        host="n2",
        slurm_job="7",
        exit_code=None,
        signal=15,
    )
    assert likely_cause("FAILED", log, attempt) == "preempted"
    assert likely_cause("FAILED", log, None) == "cancelled"


def test_every_cause_has_a_way_out(folder):
    causes = {*cluster._CAUSES.values(), *(cause for _, cause in cluster._TRACES), "failed"}
    assert {*causes, cluster.KILLED} == set(cluster.WAYS_OUT)
    log = folder / "logs/slurm/rule_account/12.log"
    log.parent.mkdir(parents=True)
    log.write_text("KeyError: 'run'\n")
    slurm_says(folder, f"12|FAILED|rule_account|{folder}")
    job = cluster_jobs(folder, [])[0]
    assert "likely cause: KeyError: 'run'; log" in str(job)
    assert str(job).endswith("Its log says why; start the workflow again when that is mended.")


def test_a_long_error_is_shortened(tmp_path):
    log = tmp_path / "7.log"
    log.write_text(f"ValueError: {'x' * 1000}")
    assert len(likely_cause("FAILED", log, None)) == cluster.ERROR_LENGTH + 3


def test_without_slurm_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster_jobs(tmp_path, []) == []
