"""A script learns of a SIGTERM that only the process above it was sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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
