"""Moved boundaries: no joule is made or lost, and what they change is said."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from angelshare.accounting.imported import account_csv
from angelshare.accounting.sensitivity import BOUNDARIES, conclusions, shifted
from angelshare.accounting.tables import Tables

KWH = 3.6e6


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = Path(__file__).parents[2] / "data" / "paper"
    out = tmp_path_factory.mktemp("paper")
    return account_csv(folder / "stages.csv", folder / "quality.csv", out)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shift", [-0.05, 0.05])
def test_no_joule_is_made_or_lost(tables: Tables, boundary: str, shift: float) -> None:
    moved = shifted(tables.attempts, tables.shares, boundary, shift)
    before, after = tables.attempts["energy_j"].sum(), moved["energy_j"].sum()
    if boundary == BOUNDARIES[0]:
        # The paper's preprocessing stands in each run and is on nobody else's bill.
        assert moved["energy_j"].to_list() == tables.attempts["energy_j"].to_list()
    assert after == pytest.approx(before)


def test_the_paper_by_hand(tables: Tables) -> None:
    row = tables.sensitivity.filter(
        (pl.col("boundary") == "teacher | training")
        & (pl.col("shift") == 0.05)
        & (pl.col("conclusion") == "break-even of kd 1B")
    ).row(0, named=True)
    # 5 % of 11 kWh go in thirds to the three students: 10.45 / (1.10 - 0.55 / 3).
    assert row["n_star_before"] == pytest.approx(10.0)
    assert row["n_star_after"] == pytest.approx(10.45 / (1.10 - 0.55 / 3))
    assert row["changes"] is False
    assert tables.sensitivity.height == 6 * len(conclusions({
        name: getattr(tables, name) for name in ("summary", "frontier", "break_even")
    }))  # fmt: skip


def test_conclusions_are_named(tables: Tables) -> None:
    found = conclusions({n: getattr(tables, n) for n in ("summary", "frontier", "break_even")})
    assert found["cheapest of student 1B, one_off"] == "sft 1B"
    assert found["cheapest of student 1B, student_only"] == "kd 1B"
    assert found["frontier, one_off"] == "sft 13B, sft 1B, sft 7B, synthetic_sft 1B"
    assert found["break-even of kd 1B"] == "not reached"
