"""What every job has around it: its waiting is on its bill."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from angelshare.config import load_config
from angelshare.energy.attempts import read_attempts, validate_sidecar
from angelshare.grid import plan_study
from angelshare.jobs import job
from angelshare.part_jobs import part_job
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.leases import single_flight

ROOT = Path(__file__).parents[2]
WAIT_S = 0.6


def values_in(folder: Path) -> dict[str, Any]:
    """The default's configuration with store and results in this folder."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text()) or {}
    values["store"] = {"root": str(folder / "store"), "team": "ours"}
    values["results"] = str(folder / "results")
    values["energy"] = {"period_s": 0.1, "cpu": "estimate", "cpu_tdp_w": 100.0, "gpu": "none"}
    return values


def test_a_full_disk_is_said_with_the_way_out(tmp_path: Path, capfd: Any) -> None:
    with (
        pytest.raises(SystemExit) as ended,
        job(
            config=values_in(tmp_path),
            rule="make",
            stage="data_prepare",
            role="other",
            sidecar=tmp_path / "energy.json",
            attempts=tmp_path / "attempts",
            log=tmp_path / "log",
        ),
        Path("/dev/full").open("w") as stream,
    ):
        stream.write("x" * 100_000)
    assert ended.value.code == 1
    said = (tmp_path / "log").read_text()
    assert "No space left on device" in said
    assert "point TMPDIR at a larger disk" in said
    assert "Traceback" not in said
    (record,) = read_attempts(tmp_path / "attempts")
    assert record.record.status == "failed"


def test_waiting_for_another_teams_lease_is_paid_for(tmp_path: Path) -> None:
    values = values_in(tmp_path)
    plan = next(one for one in plan_study(load_config(values)).artifacts.values() if not one.inputs)
    artifact = ArtifactStore(tmp_path / "store").artifact(plan.kind, plan.key)
    held = threading.Event()

    def waits() -> bool:
        traces = artifact.attempts.glob("*.trace.jsonl")
        return any('"wait"' in path.read_text() for path in traces)

    def another_team() -> None:
        with single_flight(artifact, 0):
            held.set()
            until = time.monotonic() + 20
            while not waits() and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(WAIT_S)

    other = threading.Thread(target=another_team)
    other.start()
    assert held.wait(20)
    sidecar = tmp_path / "energy.json"
    with part_job(
        plan.kind,
        plan.key,
        "0",
        rule="make",
        receipt=str(artifact.receipt_path(0)),
        config=values,
        sidecar=sidecar,
        log=tmp_path / "log",
    ) as made:
        assert made.adopted is None
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    other.join()
    record = validate_sidecar(sidecar)
    wait, make = record.phases or []
    assert (wait.name, make.name) == ("wait", "make")
    assert wait.end_s - wait.start_s + 0.1 >= WAIT_S
    assert record.time.duration_s >= make.end_s - wait.start_s
    assert wait.energy_j > 0
    assert record.total.energy_j.value >= wait.energy_j + make.energy_j - 1e-6
    for phase in (wait, make):
        assert phase.shift_minus5pct_j is not None
        assert phase.shift_plus5pct_j is not None
