"""The benchmark for a real GPU runs, here on a stand-in whose power and tick are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from standins import Nvml

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_meter.py"


def test_its_figures_are_those_of_the_stand_in(nvml: Nvml, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    nvml.play("tick 0.05", "gpu GPU-0 H100", "seg 1 300 300")
    out = tmp_path / "gpu_meter.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--seconds", "2.2"]
    command += ["--pairs", "2", "--pair-seconds", "0.3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (idle,) = (row for row in found["idle"]["no_context"] if row["component"] == "gpu0")
    assert idle["idle_w"] == pytest.approx(300, rel=0.05)
    assert idle["tick_ms"] == pytest.approx(50, abs=30)
    assert set(found["loads"]) == {"idle", "matrix_product", "training"}
    for load in found["loads"].values():
        assert load["method"] == "nvml_counter"
        assert load["counter_j"] == pytest.approx(300 * load["seconds"], rel=0.05)
        assert abs(load["power_over_counter_rel"]) < 0.05
        assert load["counter_read_ms_p50"] >= 0
    cost = found["overhead"]
    assert cost["slowdown_low"] <= cost["slowdown"] <= cost["slowdown_high"]
    assert cost["below_limit"] is (cost["slowdown_high"] < 0.002)
    assert cost["sampler_cpu"] > 0
    assert cost["sampler_private_bytes"] > 2**20
    assert "| training |" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
