"""Grams of CO2 equivalent and money: energy times PUE times a rate, applied once, with provenance.

1 kWh = 3.6e6 J. The rate is one figure, or a series in time that is integrated over the window's
energy as it was used; stretches that the series does not cover take the one figure and say
``estimated``. Prices may be negative, intensities not. The bounds are those of the energy; rates
and PUE carry none here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from angelshare.energy.constants import intensity
from angelshare.energy.measures import Interval
from angelshare.energy.settings import CarbonSettings
from angelshare.energy.sidecar import Carbon, Cost, Factor, Grid, Tariff
from angelshare.errors import AngelshareError
from angelshare.files import sha256_file

JOULES_PER_KWH = 3.6e6
SERIES_DAYS = 14
TIMES = ("start_utc", "end_utc")
CARBON, PRICE = "g_per_kwh", "price_per_kwh"

EnergyBetween = Callable[[float, float], float]
"""Joules of the window between two moments, in seconds since the epoch."""


def plan_carbon(settings: CarbonSettings, start_s: float | None = None) -> dict[str, Any]:
    """What a closing window needs, as plain values: PUE, intensity and price with their sources.

    ``start_s`` (seconds since the epoch) selects the days of a series that are kept. Raises
    AngelshareError for an unknown country or region and for a series that cannot be read.
    """
    pue = Factor(value=settings.pue, unit="1", source=settings.pue_source, kind=settings.pue_kind)
    return {
        "pue": pue.model_dump(mode="json"),
        "grid": _constant(settings),
        "series": _series(settings.grid_csv, CARBON, settings.grid_source, start_s),
        "price": _price(settings),
        "prices": _series(settings.price_csv, PRICE, settings.price_source, start_s),
    }


def _series(
    path: Path | None, column: str, source: str | None, start_s: float | None
) -> list[dict[str, Any]]:
    """The rows of a series that a window from ``start_s`` may need, each with its provenance."""
    if path is None:
        return []
    said = {"source": source or path.name, "dataset_version": f"sha256:{sha256_file(path)}"}
    rows: list[dict[str, Any]] = [{**row, **said} for row in read_series(path, column)]
    if start_s is None:
        return rows
    end_s = start_s + SERIES_DAYS * 86400
    return [row for row in rows if row["end_s"] > start_s and row["start_s"] < end_s]


def _price(settings: CarbonSettings) -> dict[str, Any] | None:
    if settings.price_per_kwh is None:
        return None
    return Factor(
        value=settings.price_per_kwh,
        unit=f"{settings.currency}/kWh",
        source=settings.price_source or "",
        kind="declared",
    ).model_dump(mode="json")


def _constant(settings: CarbonSettings) -> dict[str, Any]:
    if settings.grid_g_per_kwh is not None:
        return {
            "g_per_kwh": settings.grid_g_per_kwh,
            "zone": settings.region or settings.country_iso,
            "source": settings.grid_source,
            "estimated": False,
        }
    known = intensity(settings.country_iso, settings.region)
    return {
        "g_per_kwh": known.g_per_kwh,
        "zone": known.zone,
        "source": known.source,
        "dataset_version": known.dataset_version,
        "estimated": known.estimated,
    }


def read_series(path: Path, column: str = CARBON) -> list[dict[str, float]]:
    """Rows of a CSV with start_utc, end_utc (ISO 8601) and ``column``: start_s, end_s, ``column``.

    Raises AngelshareError naming the setting, the file and the row.
    """
    setting = f"carbon.{'grid' if column == CARBON else 'price'}_csv: {path}"
    rows = []
    number = 1
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                number += 1
                start_s, end_s = (_epoch_s(row[name]) for name in TIMES)
                rate = float(row[column])
                if not isfinite(rate) or end_s <= start_s or (rate < 0 and column == CARBON):
                    raise ValueError("a rate that cannot be, or an empty stretch")
                rows.append({"start_s": start_s, "end_s": end_s, column: rate})
    except OSError as error:
        raise AngelshareError(f"{setting}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise AngelshareError(
            f"{setting}, line {number}: {error}. "
            f"The columns are {', '.join((*TIMES, column))}; times in ISO 8601."
        ) from error
    rows.sort(key=lambda row: row["start_s"])
    for before, after in pairwise(rows):
        if after["start_s"] < before["end_s"]:
            raise AngelshareError(f"{setting}: two rows overlap at {_iso(after['start_s'])}.")
    return rows


def _epoch_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _iso(epoch_s: float) -> str:
    moment = datetime.fromtimestamp(epoch_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def carbon_of(
    plan: dict[str, Any], energy: Interval, bounds_s: tuple[float, float], between: EnergyBetween
) -> Carbon:
    """The ``carbon`` block of a window from its plan, its joules and when they were used."""
    pue = Factor.model_validate(plan["pue"])
    constant = plan["grid"]
    fallback = {**constant, "estimated": bool(plan["series"]) or constant["estimated"]}
    found = {"zone": constant["zone"], "estimated": False}
    stretches = _stretches(plan["series"], CARBON, found, fallback, bounds_s)
    rate = pue.value * _mean(stretches, CARBON, bounds_s, between) / JOULES_PER_KWH
    return Carbon(
        pue=pue,
        grid=[
            Grid(start_utc=_iso(a), end_utc=_iso(b), basis="average", **grid)
            for a, b, grid in stretches
        ],
        co2e_g=_times(energy, rate),
    )


def cost_of(
    plan: dict[str, Any], energy: Interval, bounds_s: tuple[float, float], between: EnergyBetween
) -> Cost | None:
    """What the energy cost when it was used, PUE included; None without a price.

    Under a series, ``price`` is the mean that was paid and ``tariffs`` are what it is made of.
    """
    if plan["price"] is None:
        return None
    price = Factor.model_validate(plan["price"])
    tariffs = None
    if plan["prices"]:
        fallback = {PRICE: price.value, "source": price.source, "estimated": True}
        stretches = _stretches(plan["prices"], PRICE, {"estimated": False}, fallback, bounds_s)
        price.value = _mean(stretches, PRICE, bounds_s, between)
        tariffs = [Tariff(start_utc=_iso(a), end_utc=_iso(b), **row) for a, b, row in stretches]
    rate = plan["pue"]["value"] * price.value / JOULES_PER_KWH
    return Cost(price=price, amount=_times(energy, rate), tariffs=tariffs)


def _times(energy: Interval, rate: float) -> Interval:
    ends = sorted((energy.low * rate, energy.high * rate))
    return Interval(value=energy.value * rate, low=ends[0], high=ends[1])


Stretch = tuple[float, float, dict[str, Any]]


def _mean(
    stretches: list[Stretch], column: str, bounds_s: tuple[float, float], between: EnergyBetween
) -> float:
    """The rate over the window, each stretch weighted with the energy that was used in it."""
    used_j = between(*bounds_s)
    weighted = sum(between(a, b) * row[column] for a, b, row in stretches)
    return weighted / used_j if used_j > 0 else float(stretches[0][2][column])


def _stretches(
    series: list[dict[str, Any]],
    column: str,
    found: dict[str, Any],
    fallback: dict[str, Any],
    bounds_s: tuple[float, float],
) -> list[Stretch]:
    """The window cut at the series' rows: start, end, and what holds there.

    A row brings its rate and provenance and ``found``; between the rows there is ``fallback``.
    """
    at_s, end_s = bounds_s
    cut: list[Stretch] = []
    for row in series:
        if row["end_s"] <= at_s or row["start_s"] >= end_s:
            continue
        if row["start_s"] > at_s:
            cut.append((at_s, row["start_s"], fallback))
        low, high = max(at_s, row["start_s"]), min(end_s, row["end_s"])
        said = {name: row[name] for name in (column, "source", "dataset_version")}
        cut.append((low, high, {**found, **said}))
        at_s = high
    if at_s < end_s or not cut:
        cut.append((at_s, end_s, fallback))
    return cut
