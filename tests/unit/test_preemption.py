"""A script learns of a SIGTERM that only the process above it was sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from angelshare.termination import preempted, queue_again

SNAKEMAKE = """
import signal, subprocess, sys
from angelshare.termination import pass_on_termination
pass_on_termination()
came = []
signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))  # it waits for its job
script = subprocess.Popen([sys.argv[1]])
print(script.wait(), came, flush=True)
"""
SCRIPT = """#!/bin/bash
trap 'echo saved; exit 7' TERM
echo ready
while :; do sleep 0.05; done
"""


def test_a_script_is_told(tmp_path: Path) -> None:
    folder = tmp_path / ".snakemake" / "scripts"
    folder.mkdir(parents=True)
    script = folder / "train_student.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    above = subprocess.Popen(
        [sys.executable, "-c", SNAKEMAKE, str(script)], stdout=subprocess.PIPE, text=True
    )
    assert above.stdout is not None
    assert above.stdout.readline() == "ready\n"
    os.kill(above.pid, signal.SIGTERM)
    assert above.stdout.read().split("\n")[:2] == ["saved", f"7 [{int(signal.SIGTERM)}]"]
    assert above.wait(10) == 0


def scontrol(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that answers so; what it was asked."""
    tool, asked = folder / "scontrol", folder / "asked"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{script}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return asked


@pytest.mark.parametrize(
    ("when", "expected"), [("2026-11-22T05:51:55", True), ("None", False), ("Unknown", False)]
)
def test_slurm_is_asked_whether_it_preempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, expected: bool
) -> None:
    asked = scontrol(tmp_path, f"echo JobId=7 PreemptTime={when} Requeue=1", monkeypatch)
    assert preempted() is expected
    assert asked.read_text() == "-o show job 7\n"


@pytest.mark.parametrize(("status", "expected"), [(0, True), (1, False)])
def test_a_job_is_put_back_where_slurm_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, expected: bool
) -> None:
    asked = scontrol(tmp_path, f"exit {status}", monkeypatch)
    assert queue_again() is expected
    assert asked.read_text() == "requeue 7\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not preempted()
    assert not queue_again()
