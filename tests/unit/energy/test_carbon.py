"""CO2e and cost against sums by hand; PUE once; unknown places refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import ValidationError

from angelshare.energy.carbon import carbon_of, cost_of, plan_carbon, read_series
from angelshare.energy.measures import Interval
from angelshare.energy.settings import CarbonSettings
from angelshare.errors import AngelshareError

KWH = Interval(value=3.6e6, low=3.24e6, high=3.96e6)
BY_HAND = CarbonSettings(grid_g_per_kwh=400.0, grid_source="by hand", pue=1.25)


def even(a: float, b: float) -> float:
    """3.6 MJ spread evenly over two hours from 1 January 2026."""
    return 3.6e6 * (b - a) / 7200


START_S = 1_767_225_600.0
BOUNDS = (START_S, START_S + 7200)


def test_one_kilowatt_hour() -> None:
    carbon = carbon_of(plan_carbon(BY_HAND), KWH, BOUNDS, even)
    assert carbon.co2e_g is not None
    assert carbon.co2e_g.value == pytest.approx(500.0)
    assert (carbon.co2e_g.low, carbon.co2e_g.high) == pytest.approx((450.0, 550.0))
    (grid,) = carbon.grid or []
    assert (grid.start_utc, grid.source) == ("2026-01-01T00:00:00.000Z", "by hand")


def series(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "grid.csv"
    path.write_text("\n".join(["start_utc,end_utc,g_per_kwh", *rows]) + "\n")
    return path


HOURS = (
    "2026-01-01T00:00:00Z,2026-01-01T01:00:00Z,100",
    "2026-01-01T01:00:00Z,2026-01-01T02:00:00Z,700",
)


def test_an_hourly_grid_is_integrated_over_the_use(tmp_path: Path) -> None:
    path = series(tmp_path, *HOURS)
    settings = BY_HAND.model_copy(update={"grid_csv": path})
    plan = plan_carbon(settings, START_S)

    def late(a: float, b: float) -> float:
        """A quarter of the energy in the first hour."""
        first = max(0.0, min(b, START_S + 3600) - a) / 3600
        second = max(0.0, b - max(a, START_S + 3600)) / 3600
        return 3.6e6 * (0.25 * first + 0.75 * second)

    carbon = carbon_of(plan, KWH, BOUNDS, late)
    assert carbon.co2e_g is not None
    assert carbon.co2e_g.value == pytest.approx((0.25 * 100 + 0.75 * 700) * 1.25)
    assert [grid.estimated for grid in carbon.grid or []] == [False, False]


def test_what_the_series_does_not_cover_is_estimated(tmp_path: Path) -> None:
    settings = BY_HAND.model_copy(update={"grid_csv": series(tmp_path, HOURS[0])})
    carbon = carbon_of(plan_carbon(settings, START_S), KWH, BOUNDS, even)
    assert carbon.co2e_g is not None
    assert carbon.co2e_g.value == pytest.approx((0.5 * 100 + 0.5 * 400) * 1.25)
    assert [grid.estimated for grid in carbon.grid or []] == [False, True]


@effort(deadline=None)
@given(rates=st.lists(st.floats(0, 1000), min_size=2, max_size=2), cut=st.floats(0.01, 0.99))
def test_cutting_the_time_never_changes_a_constant_grid(rates: list[float], cut: float) -> None:
    middle = START_S + cut * 7200
    source = {"source": "x", "dataset_version": "1"}
    rows: list[dict[str, Any]] = [
        {"start_s": START_S, "end_s": middle, "g_per_kwh": rates[0], **source},
        {"start_s": middle, "end_s": START_S + 7200, "g_per_kwh": rates[0], **source},
    ]
    plan = {**plan_carbon(BY_HAND), "series": rows}
    carbon = carbon_of(plan, KWH, BOUNDS, even)
    assert carbon.co2e_g is not None
    assert carbon.co2e_g.value == pytest.approx(rates[0] * 1.25)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["2026-01-01T00:00:00Z,2026-01-01T01:00:00Z,-5"], "line 2"),
        ([HOURS[0], "soon,2026-01-01T01:00:00Z,5"], "line 3"),
        ([HOURS[0], HOURS[0]], "overlap"),
    ],
)
def test_a_bad_series_is_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(AngelshareError, match=said):
        read_series(series(tmp_path, *rows))
    with pytest.raises(AngelshareError, match="No such file"):
        read_series(tmp_path / "none.csv")


def test_codecarbons_own_data() -> None:
    grid = plan_carbon(CarbonSettings(country_iso="FRA"))["grid"]
    assert grid["zone"] == "FRA"
    assert 10 < grid["g_per_kwh"] < 150
    assert "codecarbon" in grid["dataset_version"]
    region = plan_carbon(CarbonSettings(country_iso="USA", region="california"))["grid"]
    assert region["zone"] == "USA-california"
    world = plan_carbon(CarbonSettings())["grid"]
    assert world["zone"] == "world"
    assert world["estimated"] is True


def test_unknown_places_are_refused() -> None:
    with pytest.raises(AngelshareError, match="no country 'XYZ'"):
        plan_carbon(CarbonSettings(country_iso="XYZ"))
    with pytest.raises(AngelshareError, match="'atlantis'"):
        plan_carbon(CarbonSettings(country_iso="USA", region="atlantis"))
    with pytest.raises(AngelshareError, match="'bavaria'"):
        plan_carbon(CarbonSettings(country_iso="DEU", region="bavaria"))


PRICED = BY_HAND.model_copy(update={"price_per_kwh": 0.3, "price_source": "a contract"})


def test_cost_includes_the_building() -> None:
    cost = cost_of(plan_carbon(PRICED), KWH, BOUNDS, even)
    assert cost is not None
    assert cost.amount.value == pytest.approx(0.375)
    assert cost.price.unit == "EUR/kWh"
    assert cost.tariffs is None
    assert cost_of(plan_carbon(BY_HAND), KWH, BOUNDS, even) is None


def test_a_price_that_changes_is_paid_when_the_energy_is_used(tmp_path: Path) -> None:
    path = tmp_path / "price.csv"
    rows = ["2026-01-01T00:00:00Z,2026-01-01T00:30:00Z,-0.1", HOURS[1].rpartition(",")[0] + ",0.5"]
    path.write_text("\n".join(["start_utc,end_utc,price_per_kwh", *rows]) + "\n")
    plan = plan_carbon(PRICED.model_copy(update={"price_csv": path}), START_S)
    cost = cost_of(plan, KWH, BOUNDS, even)
    assert cost is not None
    # A quarter at -0.1, a quarter that no row covers at 0.3, half at 0.5; the building's 25 %.
    assert cost.price.value == pytest.approx(-0.025 + 0.075 + 0.25)
    assert cost.amount.value == pytest.approx(1.25 * 0.3)
    assert [tariff.estimated for tariff in cost.tariffs or []] == [False, True, False]
    assert (cost.tariffs or [])[1].dataset_version is None
    assert str((cost.tariffs or [])[0].dataset_version).startswith("sha256:")
    path.write_text("start_utc,end_utc,price_per_kwh\n2026-01-01,2026-01-02,nan\n")
    with pytest.raises(AngelshareError, match=r"carbon\.price_csv.*line 2"):
        plan_carbon(PRICED.model_copy(update={"price_csv": path}))
    with pytest.raises(ValidationError, match="price_csv needs price_per_kwh"):
        CarbonSettings(price_csv=path)


@pytest.mark.parametrize("figure", [{"grid_g_per_kwh": 5}, {"price_per_kwh": 5}, {"pue": 0.9}])
def test_figures_need_sources_and_sense(figure: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CarbonSettings.model_validate(figure)
