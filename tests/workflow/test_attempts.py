"""No joule escapes: what a killed job spent stands on its run's bill."""

import json
import os
import signal
import subprocess
import time

import polars as pl
import psutil
import pytest

from tests.workflow.test_reuse import edit_grid


def running_script(parent: int, name: str) -> psutil.Process | None:
    """The process of a job's script below ``parent``."""
    for process in psutil.Process(parent).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if len(command) == 2 and command[1].endswith(f".{name}.py"):
            return process
    return None


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("nothing came in time")


def test_a_killed_training_is_billed_and_its_rerun_resumes(checkout):
    edit_grid(checkout, "kd", seeds=[7])
    workflow = subprocess.Popen(
        ["snakemake", "--profile", "local", "all_frontiers"],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    results = checkout.folder / "results"
    script = wait_for(lambda: running_script(workflow.pid, "train_student"))
    # Written last, in one small write: from then on the checkpoint is whole.
    states = "checkpoints/*/checkpoint-*/trainer_state.json"
    wait_for(lambda: [path for path in results.glob(states) if path.stat().st_size])
    os.kill(script.pid, signal.SIGKILL)
    assert workflow.wait(120) != 0
    (run,) = results.glob("students/kd-*-s7-*")
    records = lambda: [json.loads(p.read_text()) for p in run.glob("energy.attempts/*.json")]  # noqa: E731
    (killed,) = wait_for(lambda: [r for r in records() if r["record"]["status"] != "running"])
    assert killed["record"]["status"] == "killed"
    assert killed["total"]["energy_j"]["value"] > 0

    printed = checkout.snakemake("all_frontiers")
    assert "resuming from a checkpoint" in printed
    record = json.loads((run / "energy.json").read_text())
    spent = sum(r["total"]["energy_j"]["value"] for r in records())
    assert record["bill"]["attempts"] == 2
    assert record["bill"]["energy_j"] == pytest.approx(spent)
    assert record["bill"]["wasted_j"] == pytest.approx(killed["total"]["energy_j"]["value"])
    runs = pl.read_parquet(results / "accounting/runs.parquet")
    (row,) = runs.filter(pl.col("run") == run.name).iter_rows(named=True)
    assert row["wasted_j"] == pytest.approx(record["bill"]["wasted_j"])
    assert row["student_only_j"] > record["bill"]["energy_j"]  # evaluation comes on top
