"""The meter on a real GPU: its counter ticks, agrees with power, and sees a load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.measures import Component
from angelshare.energy.prerun import idle_baseline
from angelshare.energy.probes.nvml import COLUMNS
from angelshare.energy.trace import read_parquet

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
SETTINGS = EnergySettings(cpu="none", dram="none")


def measured(folder: Path, body: Callable[[], None]) -> tuple[Component, Path]:
    job = Job(
        rule="gpu",
        stage="prerun",
        role="other",
        sidecar=folder / "energy.json",
        attempts=folder / "attempts",
    )
    with window(job, SETTINGS):
        body()
    record = validate_sidecar(job.sidecar)
    return record.components[0], folder / record.trace.path


def multiply(seconds: float) -> None:
    """Square matrix products for that long."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()


def test_idle_counter_ticks_and_agrees() -> None:
    found = idle_baseline(8.0, SETTINGS)
    row = found["devices"][0]
    assert row["meter"] == "nvml_counter"
    assert 10 <= row["tick_ms"] <= 250
    assert 5 < row["idle_w"] < 250
    assert abs(row["agreement_rel"]) < 0.1


def test_a_load_is_seen_and_cross_checked(tmp_path: Path) -> None:
    idle, _ = measured(tmp_path / "idle", lambda: time.sleep(5))
    load, path = measured(tmp_path / "load", lambda: multiply(30))
    assert idle.power is not None
    assert load.power is not None
    assert (load.power.avg_w or 0) > 1.5 * (idle.power.avg_w or 0)
    assert load.crosscheck is not None
    assert load.crosscheck.ok
    trace = read_parquet(path)
    (uuid,) = trace.gpus
    rows = [dict(zip(COLUMNS, sample.gpu[uuid], strict=True)) for sample in trace.samples]
    for row in rows:
        older = row.pop("usage_mw")
        newer = {row["average_mw"], row["instant_mw"]}
        assert (older is None) is (None not in newer), "the older reading replaces a missing one"
        row["average_mw"] = row["instant_mw"] = older if older is not None else 1
        assert None not in row.values(), "a field went unread"


def test_a_short_load_is_resolved(tmp_path: Path) -> None:
    multiply(2)
    load, _ = measured(tmp_path, lambda: multiply(0.5))
    assert load.energy_j is not None
    assert load.u is not None
    assert (load.u.edge_j95 or 0) < 0.3 * load.energy_j


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Short and not for publishing; without an interval narrow enough to say much."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_meter.py"
    out = tmp_path / "gpu_meter.json"
    short = ["--seconds", "5", "--pairs", "2", "--pair-seconds", "2", "--out", str(out)]
    subprocess.run([sys.executable, str(script), *short], check=True)
    found = json.loads(out.read_text())
    loads = found["loads"]
    assert loads["matrix_product"]["mean_w"] > 1.5 * loads["idle"]["mean_w"]
    assert loads["training"]["crosscheck_ok"]
    assert set(found["idle"]) == {"no_context", "context_open"}
    assert found["overhead"]["steps"] > 1
