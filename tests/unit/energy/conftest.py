"""What the meter's tests share: a job in a temporary folder, a cache and registry of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins import Nvml, build

from angelshare.energy import EnergySettings, Job


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # Open windows are registered per machine: tests that run at once have one each.
        patch.setenv("TMPDIR", machine := str(tmp_path_factory.mktemp("machine")))
        patch.setattr(tempfile, "tempdir", machine)
        for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def settings() -> EnergySettings:
    """A fast meter that estimates 16 W for the whole CPU, whatever this machine has."""
    return EnergySettings(period_s=0.05, cpu="estimate", cpu_tdp_w=16.0)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Makes jobs that write below the test's folder."""

    def make(**changes: Any) -> Job:
        plain: dict[str, Any] = {
            "rule": "train",
            "stage": "student_train",
            "role": "student",
            "sidecar": tmp_path / "energy.json",
            "attempts": tmp_path / "attempts",
            "wildcards": {"run": "a"},
        }
        return Job(**{**plain, **changes})

    return make


@pytest.fixture(scope="session")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build the stand-in for NVML")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """A machine with GPUs that play back a trace; this process's samplers see them."""
    machine = Nvml(_library, tmp_path / "play.txt")
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    return machine
