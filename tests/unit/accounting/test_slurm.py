"""Slurm's own joules stand beside ours in the attempts table, and change nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from studies import demo_study, sidecar, write

from angelshare.accounting.attempts import load_attempts
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.slurm import beside_slurm, slurm_jobs
from angelshare.accounting.study import AttemptSource
from angelshare.accounting.tables import write_tables

SACCT = """#!/bin/sh
echo 'Cluster|JobIDRaw|State|ElapsedRaw|ConsumedEnergyRaw|Restarts'
echo 'north|17|PREEMPTED|60|6000|0'
echo 'north|17|COMPLETED|100|20000|1'
echo 'north|19|COMPLETED|10||0'
"""


def under_slurm(record: dict[str, Any], **slurm: Any) -> dict[str, Any]:
    record["run"]["slurm"] = {"cluster": "north", **slurm}
    return record


def test_slurms_joules_stand_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "sacct"
    tool.parent.mkdir()
    tool.write_text(SACCT)
    tool.chmod(0o755)
    study = demo_study(tmp_path / "study")
    folder = study.sources[0].folder
    write(
        folder,
        under_slurm(sidecar("preempted", "evaluate", 3000.0, status="preempted"), job_id="17"),
        under_slurm(sidecar("first", "evaluate", 8000.0), job_id="17", restart_count=1),
        under_slurm(sidecar("second", "evaluate", 10000.0), job_id="17", restart_count=1),
        under_slurm(sidecar("unknown", "evaluate", 1.0), job_id="19"),
        under_slurm(sidecar("elsewhere", "evaluate", 1.0), job_id="17", cluster="south"),
    )
    without = write_tables(study, AccountingSettings(), tmp_path / "without")
    assert without.attempts["slurm_energy_j"].null_count() == without.attempts.height
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    tables = write_tables(study, AccountingSettings(), tmp_path / "tables")
    rows = {row["id"]: row for row in tables.attempts.rows(named=True)}
    found = {name: (row["slurm_energy_j"], row["slurm_ratio"]) for name, row in rows.items()}
    assert found.pop("preempted") == (6000.0, 0.5)
    # Two rules in one Slurm job: its figure stands beside both, the ratio is of their sum.
    assert found.pop("first") == found.pop("second") == (20000.0, 0.9)
    assert set(found.values()) == {(None, None)}
    published = pl.read_parquet(tmp_path / "tables" / "attempts.parquet")
    assert published.equals(tables.attempts)
    theirs = ["slurm_energy_j", "slurm_ratio"]
    assert tables.attempts.drop(theirs).equals(without.attempts.drop(theirs))
    assert tables.runs.equals(without.runs)


def test_jobs_outside_slurm_are_not_asked_for(tmp_path: Path) -> None:
    write(tmp_path, sidecar("a", "evaluate", 5.0))
    attempts, _ = load_attempts([AttemptSource(tmp_path, "r")])
    assert slurm_jobs(attempts) == []
    assert beside_slurm(attempts, {}).equals(attempts)
