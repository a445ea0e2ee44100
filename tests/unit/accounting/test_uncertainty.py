"""Bounds and intervals: hand-checked sums, and coverage on simulated studies with known truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.break_even import FINITE, NEVER, UNBOUNDED, pay_back
from angelshare.accounting.difference import difference_errors, mean_of
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Run, Study
from angelshare.accounting.tables import Tables, make_tables
from angelshare.accounting.uncertainty import Repeats, interval, t_interval


def record(value: dict[str, Any], source: AttemptSource) -> tuple[Record, AttemptSource]:
    return Record(Path(f"{value['record']['id']}.json"), value), source


def two_boards() -> Tables:
    """Two runs on board A (100 J, 300 J), their cache of 400 J on board B, gains of 5 %."""
    runs = tuple(Run(f"r{i}", "kd", "s", "d", i, artifacts=(("logits", "k"),)) for i in (1, 2))
    records = [
        (sidecar("t1", "student_train", 60.0, gpu=True, board="A"), AttemptSource(Path("1"), "r1")),
        (sidecar("e1", "evaluate", 40.0, gpu=True, board="A"), AttemptSource(Path("1"), "r1")),
        (
            sidecar("t2", "student_train", 300.0, gpu=True, board="A"),
            AttemptSource(Path("2"), "r2"),
        ),
        (
            sidecar("l", "teacher_logits", 400.0, gpu=True, board="B"),
            AttemptSource(Path("l"), None, "logits", "k"),
        ),
    ]
    pairs = [
        (Record(Path(f"{i}.json"), value), source) for i, (value, source) in enumerate(records)
    ]
    study = Study("us", runs, (Artifact("logits", "k", "x", 1, 1),))
    return make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=200))


def test_gain_adds_up_on_a_board_and_in_quadrature_between_boards() -> None:
    rows = {row["run"]: row for row in two_boards().runs.rows(named=True)}
    first = rows["r1"]
    assert first["student_only_high_j"] - 100.0 == pytest.approx(5.0)
    assert first["one_off_high_j"] - 500.0 == pytest.approx(math.hypot(5.0, 20.0))
    assert first["amortized_high_j"] - 300.0 == pytest.approx(math.hypot(5.0, 10.0))


def test_bills_and_shares_carry_the_bound_in_proportion() -> None:
    tables = two_boards()
    (bill,) = tables.artifacts.rows(named=True)
    assert (bill["energy_low_j"], bill["energy_high_j"]) == pytest.approx((380.0, 420.0))
    for share in tables.shares.rows(named=True):
        assert (share["share_low_j"], share["share_high_j"]) == pytest.approx((190.0, 210.0))


def test_repeats_do_not_reduce_the_gain() -> None:
    (row,) = two_boards().summary.rows(named=True)
    assert row["student_only_j"] == pytest.approx(200.0)
    assert row["student_only_j_u95"] == pytest.approx(10.0)
    assert row["one_off_j_u95"] == pytest.approx(math.hypot(10.0, 20.0))


def test_independent_terms_add_in_quadrature() -> None:
    run = Run("r", "sft", "s", "d", 0)
    values = [sidecar(name, "student_train", 100.0, gpu=True, gain=0.0) for name in ("a", "b")]
    for value, u95_j in zip(values, (3.0, 4.0), strict=True):
        value["components"][0]["u95_j"] = u95_j
    pairs = [record(value, AttemptSource(Path("r"), "r")) for value in values]
    tables = make_tables(Study("us", (run,)), *attempt_frames(pairs), AccountingSettings(draws=200))
    assert tables.runs["student_only_high_j"][0] - 200.0 == pytest.approx(5.0)


def test_bounds_of_the_total_serve_where_components_have_none() -> None:
    value = sidecar("a", "student_train", 100.0)
    value["components"][0]["u95_j"] = None
    value["total"]["energy_j"] = {"value": 100.0, "low": 93.0, "high": 107.0}
    pairs = [record(value, AttemptSource(Path("r"), "r"))]
    study = Study("us", (Run("r", "sft", "s", "d", 0),))
    tables = make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=200))
    assert tables.runs["student_only_high_j"][0] == pytest.approx(107.0)


def test_t_interval_by_hand() -> None:
    sd, low, high = t_interval([1.0, 2.0, 3.0])
    assert sd == pytest.approx(1.0)
    assert low is not None
    assert high is not None
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert t_interval([1.0]) == (None, None, None)
    assert interval(np.ones(10)) == (None, None)


def test_spread_between_datasets_is_no_noise() -> None:
    values = np.array([[10.0], [10.0], [90.0], [90.0]])
    repeats = Repeats.of(values, ["a", "a", "b", "b"])
    assert (repeats.df, repeats.mean_C[0]) == (2, 50.0)
    assert np.ptp(repeats.draw(100, np.random.default_rng(0))) == 0
    alone = Repeats.of(values[::2], ["a", "b"])
    assert alone.df == 1
    assert np.ptp(alone.draw(100, np.random.default_rng(0))) > 0
    once = Repeats.of(values[:1], ["a"])
    assert (once.df, np.ptp(once.draw(100, np.random.default_rng(0)))) == (0, 0.0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_drawn_means_cover_the_truth(count: int) -> None:
    generator = np.random.default_rng(count)
    hits = 0
    for _ in range(1500):
        repeats = Repeats.of(generator.normal(7.0, 2.0, (count, 1)), [""] * count)
        low, high = np.quantile(repeats.draw(800, generator), [0.025, 0.975])
        hits += low <= 7.0 <= high
    assert 0.93 <= hits / 1500 <= 0.97


@pytest.mark.parametrize(("seeds", "datasets"), [(3, 1), (5, 1), (2, 3), (1, 4)])
def test_n_star_covers_the_truth(seeds: int, datasets: int) -> None:
    """Teacher 1000 J and a gap of 100 J, so N* = 10; seeds spread by 20 J, datasets by 500 J."""
    generator = np.random.default_rng(10 * seeds + datasets)
    hits, studies, teacher_D = 0, 1500, np.full(800, 1000.0)
    for _ in range(studies):
        level = generator.normal(2000, 500, datasets)
        sides = [[generator.normal(at + gap, 20.0, seeds) for at in level] for gap in (100.0, 0.0)]
        gap = mean_of(sides[0]) - mean_of(sides[1])
        gap_D = gap + difference_errors(*sides, 800, generator)
        found = pay_back(1000.0, gap, teacher_D, gap_D, 3)
        high = math.inf if found["n_star_high"] is None else found["n_star_high"]
        hits += (found["n_star_low"] or math.inf) <= 10.0 <= high
    assert 0.93 <= hits / studies <= 0.97


def test_n_star_when_the_gap_straddles_zero() -> None:
    generator = np.random.default_rng(3)
    teacher_D = np.full(20_000, 100.0)
    wide = generator.normal(0.0, 10.0, 20_000)
    sure = pay_back(100.0, 50.0, teacher_D, 50.0 + wide, 3)
    assert sure["n_star_status"] == FINITE
    assert sure["n_star"] == 2.0
    assert sure["n_star_low"] == pytest.approx(100 / 69.6, rel=0.02)
    assert sure["n_star_high"] == pytest.approx(100 / 30.4, rel=0.02)
    assert sure["reached"]
    open_ended = pay_back(100.0, 10.0, teacher_D, 10.0 + wide, 3)
    assert open_ended["n_star_status"] == UNBOUNDED
    assert open_ended["n_star_high"] is None
    assert open_ended["never_probability"] == pytest.approx(0.1587, abs=0.01)
    never = pay_back(100.0, -5.0, teacher_D, -5.0 + wide, 3)
    assert (never["n_star"], never["n_star_status"], never["reached"]) == (None, NEVER, False)
    assert never["n_star_low"] == pytest.approx(100 / 14.6, rel=0.03)
    hopeless = pay_back(100.0, -50.0, teacher_D, -50.0 + wide, 3)
    assert (hopeless["n_star_low"], hopeless["never_probability"]) == (None, 1.0)


def test_a_common_gain_cancels_in_n_star() -> None:
    """Teacher and students on one board: the ratio does not know the board's gain."""
    pairs = []
    runs = []
    for i in range(3):
        for pipeline, energy_j in (("sft", 200.0), ("kd", 150.0)):
            name = f"{pipeline}{i}"
            needs = (("logits", "k"),) if pipeline == "kd" else ()
            runs.append(Run(name, pipeline, "s", "d", i, artifacts=needs))
            value = sidecar(name, "student_train", energy_j, gpu=True)
            pairs.append(record(value, AttemptSource(Path(name), name)))
    made = sidecar("l", "teacher_logits", 500.0, gpu=True)
    pairs.append(record(made, AttemptSource(Path("l"), None, "logits", "k")))
    study = Study("us", tuple(runs), (Artifact("logits", "k", "x", 1, 1),))
    tables = make_tables(study, *attempt_frames(pairs), AccountingSettings(draws=2000))
    (row,) = tables.break_even.rows(named=True)
    assert row["n_star"] == pytest.approx(10.0)
    assert (row["n_star_low"], row["n_star_high"]) == pytest.approx((10.0, 10.0), rel=1e-6)
    assert row["gap_high_j"] - row["gap_j"] == pytest.approx(2.5, rel=0.1)
    assert row["teacher_high_j"] == pytest.approx(525.0)
    assert tables.frontier.is_empty()


def test_equal_inputs_give_equal_tables() -> None:
    first, second = two_boards(), two_boards()
    assert first.summary.equals(second.summary)
    assert isinstance(first.attempts, pl.DataFrame)


def test_differences_by_hand() -> None:
    generator = np.random.default_rng(1)
    first, second = [np.array([1.0, 2.0, 3.0])], [np.array([1.0, 1.0, 1.0])]
    errors = difference_errors(first, second, 200_000, generator)
    assert np.quantile(errors, 0.975) == pytest.approx(4.302653 / 3**0.5, rel=0.02)
    lone = difference_errors(first, [np.array([5.0])], 200_000, generator)
    assert np.quantile(lone, 0.975) == pytest.approx(4.302653 * (1 + 1 / 3) ** 0.5, rel=0.02)
    assert np.ptp(difference_errors([np.array([1.0])], [np.array([5.0])], 100, generator)) == 0
    tiny = difference_errors([np.array([0.0, 1e-155])], [np.array([0.0])], 100, generator)
    assert np.isfinite(tiny).all()
