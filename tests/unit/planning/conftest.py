from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from angelshare.config import Config, load_config

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests/unit/accounting"))


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The embedded default as plain values, with a store and results of its own."""
    monkeypatch.chdir(tmp_path)
    found = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    found["store"] = {"root": str(tmp_path / "store"), "team": "ours"}
    found["results"] = str(tmp_path / "results")
    return found


@pytest.fixture
def config(values: dict[str, Any]) -> Config:
    return load_config(values)
