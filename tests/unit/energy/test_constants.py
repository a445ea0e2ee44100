"""codecarbon's own figures: its registry, its defaults, remembered by its version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from angelshare.energy import constants


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_known_cpu_has_its_tdp(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "AMD EPYC 7763 64-Core Processor"
    monkeypatch.setattr(constants, "cpu_model", lambda: name)
    monkeypatch.setattr("codecarbon.core.util.count_physical_cpus", lambda: 2)
    found = constants.estimator()
    assert found.cpu_tdp_w == 2 * 280.0, "two sockets of 280 W, says the vendor"
    assert name in found.cpu_source


def test_an_unknown_cpu_has_codecarbons_default_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "cpu_model", lambda: "Analytical Engine")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    found = constants.estimator()
    assert found.cpu_tdp_w == 4.0 * found.threads
    assert "unknown CPU, 4 W per thread" in found.cpu_source


def test_a_declared_tdp_wins() -> None:
    found = constants.estimator(123.0)
    assert (found.cpu_tdp_w, found.cpu_source) == (123.0, "declared")
    assert found.dram_w > 0


def test_answers_are_remembered_and_nothing_else_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = constants.estimator()
    (path,) = [one for one in cache.rglob("*") if one.is_file()]
    assert path.name.startswith("codecarbon-")

    class Refusing:
        def find_spec(self, name: str, *_: Any) -> None:
            assert not name.startswith("codecarbon"), "asked again"

    for name in [one for one in sys.modules if one.startswith("codecarbon")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert constants.estimator() == first


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert constants.estimator().dram_w > 0
