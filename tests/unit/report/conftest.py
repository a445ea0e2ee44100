from __future__ import annotations

import sys
from pathlib import Path

import pytest

from angelshare.accounting.imported import account_csv
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.tables import Tables, write_tables

sys.path.insert(0, str(Path(__file__).parents[1] / "accounting"))

from studies import demo_study

PAPER = Path(__file__).parents[2] / "data" / "paper"


@pytest.fixture(scope="session")
def demo_tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of the realistic small study."""
    root = tmp_path_factory.mktemp("demo")
    return write_tables(demo_study(root / "in"), AccountingSettings(draws=500), root / "out")


@pytest.fixture(scope="session")
def paper_tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of the paper's Table 3."""
    out = tmp_path_factory.mktemp("paper")
    return account_csv(PAPER / "stages.csv", PAPER / "quality.csv", out)


@pytest.fixture(scope="session")
def bare_tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """One run, no score, no artifact."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "stages.csv").write_text(
        "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens\n"
        "a,sft,1B,d,0,student_train,,1,\n"
    )
    return account_csv(folder / "stages.csv", None, folder)
