"""Which setting dominates which: against brute force over draws, and where it is known by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.dominance import LISTED_FROM, SURE, dominance, dominance_table
from angelshare.accounting.draws import Draws
from angelshare.accounting.findings import findings
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import AttemptSource, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables
from angelshare.accounting.uncertainty import VIEWS

few = st.integers(0, 4).map(float)
points = st.lists(st.lists(st.tuples(few, few), min_size=5, max_size=5), min_size=1, max_size=6)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """The definition: (energy, quality) no worse in both, better in one."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(points)
def test_against_brute_force(draws: list[list[tuple[float, float]]]) -> None:
    values = np.array(draws)
    found = dominance(values[..., 0], values[..., 1])
    for one, other in product(range(5), repeat=2):
        times = sum(dominates(draw[one], draw[other]) for draw in draws)
        assert found[one, other] == pytest.approx(times / len(draws))


def test_more_draws_than_are_compared_at_once() -> None:
    generator = np.random.default_rng(1)
    energy, quality = generator.normal(size=(2, 1000, 4)).round(1)
    cheaper = energy[:, :, None] <= energy[:, None, :]
    better = quality[:, :, None] >= quality[:, None, :]
    same = (energy[:, :, None] == energy[:, None, :]) & (quality[:, :, None] == quality[:, None, :])
    expected = (cheaper & better & ~same).mean(0)
    np.testing.assert_allclose(dominance(energy, quality), expected)


def draws_of(energy: np.ndarray, quality: np.ndarray) -> Draws:
    """Draws whose means are the settings' values, alike under each view."""
    summary = pl.DataFrame(
        {
            "setting": [f"s{i}" for i in range(energy.shape[1])],
            **{f"{view}_j": energy.mean(0) for view in VIEWS},
            "quality": quality.mean(0),
        }
    )
    return Draws(summary, dict.fromkeys(VIEWS, energy), quality)


def test_the_table_lists_every_pair_from_the_threshold_on() -> None:
    generator = np.random.default_rng(5)
    energy = generator.normal(size=12) + 0.7 * generator.normal(size=(800, 12))
    quality = generator.normal(size=12) + 0.7 * generator.normal(size=(800, 12))
    table = dominance_table(draws_of(energy, quality))
    chances = dominance(energy, quality)
    means = dominance(energy.mean(0)[None], quality.mean(0)[None]) == 1
    for view in VIEWS:
        rows = table.filter(pl.col("view") == view)
        found = {(r["setting"], r["dominated"]): r for r in rows.rows(named=True)}
        expected = {
            (f"s{a}", f"s{b}"): chances[a, b]
            for a, b in product(range(12), repeat=2)
            if chances[a, b] >= LISTED_FROM or means[a, b]
        }
        assert {pair: row["probability"] for pair, row in found.items()} == expected
        assert len(found) < 12 * 11
        for (one, other), row in found.items():
            a, b = int(one[1:]), int(other[1:])
            assert row["in_means"] == means[a, b]
            assert row["saved_j"] == pytest.approx(energy.mean(0)[b] - energy.mean(0)[a])
            assert row["quality_gain"] == pytest.approx(quality.mean(0)[a] - quality.mean(0)[b])


def test_an_unknown_uncertainty_is_no_certainty() -> None:
    generator = np.random.default_rng(2)
    energy = np.array([1.0, 2.0, 3.0]) + np.array([0, 0, 0.1]) * generator.normal(size=(500, 3))
    quality = np.broadcast_to([0.9, 0.5, 0.1], (500, 3))
    rows = dominance_table(draws_of(energy, quality)).filter(pl.col("view") == "one_off")
    assert set(rows.select("setting", "dominated", "in_means").rows()) == {
        ("s0", "s1", True),
        ("s0", "s2", True),
        ("s1", "s2", True),
    }
    assert rows["probability"].null_count() == 3


def two(boards: tuple[str, str], quality: tuple[float, float], stderr: float) -> Tables:
    """Settings a (100 J) and b (102 J) whose meters have a gain error of 5 % each."""
    runs, scores, pairs = [], [], []
    for name, energy_j, board, score in zip("ab", (100.0, 102.0), boards, quality, strict=True):
        runs.append(Run(name, name, "s", "d", 0))
        scores.append(Score(name, "b", score, stderr, 1.0))
        value = sidecar(name, "student_train", energy_j, gpu=True, gain=0.05, board=board)
        pairs.append((Record(Path(f"{name}.json"), value), AttemptSource(Path(name), name)))
    study = Study("us", tuple(runs), (), tuple(scores))
    return make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=20_000))


def pair(tables: Tables, one: str, other: str) -> dict[str, object]:
    rows = tables.dominance.filter(view="one_off", setting=one, dominated=other).rows(named=True)
    return rows[0] if rows else {}


def test_two_settings_by_hand() -> None:
    """a is better by one standard error of the difference (Phi(1) = 0.841). On one board the gain
    moves both energies alike, so a is always cheaper; on two boards it is cheaper with
    Phi(2 / sqrt(2.5^2 + 2.55^2)) = Phi(0.56) = 0.712."""
    better, stderr = NormalDist().cdf(1.0), 0.02 / 2**0.5
    cheaper = NormalDist().cdf(2.0 / (2.5**2 + 2.55**2) ** 0.5)
    same = two(("GPU-1", "GPU-1"), (0.52, 0.50), stderr)
    apart = two(("GPU-1", "GPU-2"), (0.52, 0.50), stderr)
    assert pair(same, "a s", "b s")["probability"] == pytest.approx(better, abs=0.01)
    assert pair(same, "b s", "a s") == {}
    assert pair(apart, "a s", "b s")["probability"] == pytest.approx(better * cheaper, abs=0.012)
    assert (1 - better) * (1 - cheaper) < LISTED_FROM
    assert pair(apart, "b s", "a s") == {}
    assert pair(apart, "a s", "b s")["saved_j"] == pytest.approx(2.0)


def test_the_waste_beside_a_sure_dominator_by_hand() -> None:
    """Ten standard errors better, on one board: 2 J are wasted, 5 % more or less."""
    tables = two(("GPU-1", "GPU-1"), (0.60, 0.50), 0.01 / 2**0.5)
    (row,) = tables.frontier.filter(view="one_off", setting="b s").rows(named=True)
    assert (row["sure_dominator"], row["sure_probability"]) == ("a s", 1.0)
    assert row["wasted_j"] == pytest.approx(2.0)
    assert row["wasted_low_j"] == pytest.approx(2.0 * (1 - 0.049), abs=0.01)
    assert row["wasted_high_j"] == pytest.approx(2.0 * (1 + 0.049), abs=0.01)
    texts = [finding.text for finding in findings(tables) if finding.topic == "waste"]
    assert texts == [
        "Dominated when amortised: b s wastes 2.00 J a run beside a s, which is no worse "
        "(95 % 1.90 J to 2.10 J; > 99 % sure).",
        "Dominated under every view: b s.",
    ]


def test_the_frontier_names_the_same_probabilities(demo_tables: Tables) -> None:
    pairs = demo_tables.dominance
    cheapest = demo_tables.frontier.filter(pl.col("dominated_by").is_not_null()).join(
        pairs,
        right_on=["view", "dominated", "setting"],
        left_on=["view", "setting", "dominated_by"],
    )
    assert cheapest.height == demo_tables.frontier["dominated_by"].drop_nulls().len() > 0
    assert cheapest["dominated_probability"].to_list() == cheapest["probability"].to_list()
    sure = demo_tables.frontier.filter(pl.col("sure_dominator").is_not_null())
    assert sure.height > 0
    assert sure["sure_probability"].min() >= SURE  # type: ignore[operator]
    for row in sure.rows(named=True):
        beside = pairs.filter(view=row["view"], dominated=row["setting"])
        most = beside.filter(pl.col("probability") >= SURE)["saved_j"].max()
        assert row["wasted_j"] == most
        assert row["wasted_low_j"] < row["wasted_j"] < row["wasted_high_j"]
        assert row["membership_probability"] <= 1 - row["sure_probability"]
