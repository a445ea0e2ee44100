"""Ranks end to end: real processes, each with a meter of its own, on one played-back GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from standins import Nvml

from angelshare.energy import EnergySettings, Job
from angelshare.energy.attempts import read_attempts
from angelshare.energy.ranks import merge_attempts
from angelshare.errors import AngelshareError

JobMaker = Callable[..., Job]
WATTS = 300.0
SLACK_J = 45.0
"""What the GPU uses in one tick of the counter and some."""
SETTINGS = EnergySettings(period_s=0.1, cpu="estimate", cpu_tdp_w=16.0, dram="none")
RANK = """
import json, os, sys, time
from pathlib import Path
from angelshare.energy import EnergySettings, Job, window
root, fails, seconds = Path(sys.argv[1]), sys.argv[3] == "fails", float(sys.argv[4])
own = root / ("rank" + os.environ["RANK"])
job = Job(rule="train", stage="student_train", role="student", sidecar=own / "energy.json",
          attempts=own / "attempts", wildcards={"run": "a"}, gpus=1)
with window(job, EnergySettings(**json.loads(sys.argv[2]))):
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    print("open", flush=True)
    sys.stdin.readline()
    time.sleep(seconds)
    if fails:
        raise RuntimeError("this rank fails")
"""


def ranks(root: Path, *, fails: bool) -> None:
    """Two ranks with overlapping windows; rank 1 stays 0.3 s longer and may fail."""
    changed = json.dumps(SETTINGS.model_dump(mode="json", exclude_unset=True))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(root), changed, fate, str(0.4 + 0.3 * rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank, fate in enumerate(("works", "fails" if fails else "works"))
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
    for process in processes:
        process.communicate(b"\n", timeout=60)
    assert [process.returncode for process in processes] == [0, int(fails)]


def test_two_ranks_on_one_gpu_pay_for_it_once(nvml: Nvml, tmp_path: Path) -> None:
    nvml.play("gpu GPU-0 H100", f"seg 1 {WATTS} {WATTS}")
    ranks(tmp_path, fails=True)
    time.sleep(0.1)
    ranks(tmp_path, fails=False)
    found = [read_attempts(tmp_path / f"rank{rank}" / "attempts") for rank in range(2)]
    assert [[one.run.rank for one in each] for each in found] == [[0, 0], [1, 1]]
    merged = merge_attempts([*found[0], *found[1]])
    assert (merged.run.world, merged.record.attempt, merged.record.status) == (2, 2, "ok")
    whole = [part for part in merged.components if part.kind == "gpu"]
    (gpu,) = whole
    longest = max((each[1] for each in found), key=lambda one: one.time.duration_s)
    times = longest.time
    oracle_j = nvml.oracle_j(0, times.start_mono_ns, times.end_mono_ns)
    assert gpu.energy_j == pytest.approx(oracle_j, abs=SLACK_J)
    shares = [part.energy_j for part in merged.components if part.kind == "cpu_package"]
    assert len(shares) == 2
    assert all(joules for joules in shares), "each rank's own share of the CPU is added"
    assert merged.total.energy_j.value == pytest.approx(
        (gpu.energy_j or 0.0) + sum(joules or 0.0 for joules in shares)
    )
    said = {warning.code for warning in merged.warnings or []}
    assert {"overlap", "ranks_overlap"} <= said
    # The bill: both attempts, the GPU once in each, and the failed one is wasted.
    assert merged.bill is not None
    assert merged.bill.attempts == 2
    failed = merge_attempts([each[0] for each in found])
    assert failed.record.status == "failed"
    assert merged.bill.wasted_j == pytest.approx(failed.total.energy_j.value)
    assert merged.bill.energy_j == pytest.approx(
        failed.total.energy_j.value + merged.total.energy_j.value
    )


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(AngelshareError, match="no record to merge"):
        merge_attempts([])
