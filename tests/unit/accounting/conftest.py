from __future__ import annotations

from pathlib import Path

import pytest
from studies import demo_study

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.tables import Tables, write_tables


@pytest.fixture(scope="session")
def demo_tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of the realistic small study."""
    root = tmp_path_factory.mktemp("demo")
    return write_tables(demo_study(root / "in"), AccountingSettings(draws=1000), root / "out")


@pytest.fixture
def paper() -> Path:
    """The folder of the paper's Table 3 as CSV."""
    return Path(__file__).parents[2] / "data" / "paper"
