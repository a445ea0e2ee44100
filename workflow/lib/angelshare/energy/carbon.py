"""Grams of CO2 equivalent and money: energy times PUE times a rate, applied once, with provenance.

1 kWh = 3.6e6 J. The rate is one figure, or a series in time that is integrated over the window's
energy as it was used; stretches that the series does not cover take the one figure and say
``estimated``. The bounds are those of the energy; rates and PUE carry none here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from angelshare.energy.constants import intensity
from angelshare.energy.measures import Interval
from angelshare.energy.settings import CarbonSettings
from angelshare.energy.sidecar import Carbon, Cost, Factor, Grid
from angelshare.errors import AngelshareError
from angelshare.files import sha256_file

JOULES_PER_KWH = 3.6e6
SERIES_DAYS = 14
COLUMNS = ("start_utc", "end_utc", "g_per_kwh")

EnergyBetween = Callable[[float, float], float]
"""Joules of the window between two moments, in seconds since the epoch."""


def plan_carbon(settings: CarbonSettings, start_s: float | None = None) -> dict[str, Any]:
    """What a closing window needs, as plain values: PUE, intensity and price with their sources.

    ``start_s`` (seconds since the epoch) selects the days of a series that are kept. Raises
    AngelshareError for an unknown country or region and for a series that cannot be read.
    """
    pue = Factor(value=settings.pue, unit="1", source=settings.pue_source, kind=settings.pue_kind)
    series = read_series(settings.grid_csv) if settings.grid_csv else []
    if start_s is not None:
        end_s = start_s + SERIES_DAYS * 86400
        series = [row for row in series if row["end_s"] > start_s and row["start_s"] < end_s]
    price = None
    if settings.price_per_kwh is not None:
        price = Factor(
            value=settings.price_per_kwh,
            unit=f"{settings.currency}/kWh",
            source=settings.price_source or "",
            kind="declared",
        ).model_dump(mode="json")
    return {
        "pue": pue.model_dump(mode="json"),
        "grid": _constant(settings),
        "series": series,
        "series_source": _series_source(settings),
        "price": price,
    }


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


def _series_source(settings: CarbonSettings) -> dict[str, Any] | None:
    if settings.grid_csv is None:
        return None
    return {
        "source": settings.grid_source or settings.grid_csv.name,
        "dataset_version": f"sha256:{sha256_file(settings.grid_csv)}",
    }


def read_series(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV with start_utc, end_utc (ISO 8601) and g_per_kwh: start_s, end_s, g_per_kwh.

    Raises AngelshareError naming the file and the row.
    """
    rows = []
    number = 1
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                number += 1
                start_s, end_s = (_epoch_s(row[name]) for name in COLUMNS[:2])
                rate = float(row[COLUMNS[2]])
                if rate < 0 or end_s <= start_s:
                    raise ValueError("a negative rate or an empty stretch")
                rows.append({"start_s": start_s, "end_s": end_s, "g_per_kwh": rate})
    except OSError as error:
        raise AngelshareError(f"carbon.grid_csv: {path}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise AngelshareError(
            f"carbon.grid_csv: {path}, line {number}: {error}. "
            f"The columns are {', '.join(COLUMNS)}; times in ISO 8601."
        ) from error
    rows.sort(key=lambda row: row["start_s"])
    for before, after in pairwise(rows):
        if after["start_s"] < before["end_s"]:
            raise AngelshareError(
                f"carbon.grid_csv: {path}: two rows overlap at {_iso(after['start_s'])}."
            )
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
    stretches = list(_stretches(plan, bounds_s))
    used_j = between(*bounds_s)
    weighted = sum(between(a, b) * grid["g_per_kwh"] for a, b, grid in stretches)
    mean_g = weighted / used_j if used_j > 0 else stretches[0][2]["g_per_kwh"]
    rate = pue.value * mean_g / JOULES_PER_KWH
    return Carbon(
        pue=pue,
        grid=[
            Grid(start_utc=_iso(a), end_utc=_iso(b), basis="average", **grid)
            for a, b, grid in stretches
        ],
        co2e_g=_times(energy, rate),
    )


def cost_of(plan: dict[str, Any], energy: Interval) -> Cost | None:
    """What the energy cost at the plan's price, PUE included; None without a price."""
    if plan["price"] is None:
        return None
    price = Factor.model_validate(plan["price"])
    rate = plan["pue"]["value"] * price.value / JOULES_PER_KWH
    return Cost(price=price, amount=_times(energy, rate))


def _times(energy: Interval, rate: float) -> Interval:
    return Interval(value=energy.value * rate, low=energy.low * rate, high=energy.high * rate)


def _stretches(
    plan: dict[str, Any], bounds_s: tuple[float, float]
) -> list[tuple[float, float, dict[str, Any]]]:
    """The window cut at the series' rows: start, end, and the grid that holds there."""
    at_s, end_s = bounds_s
    fallback = {**plan["grid"], "estimated": bool(plan["series"]) or plan["grid"]["estimated"]}
    found: list[tuple[float, float, dict[str, Any]]] = []
    for row in plan["series"]:
        if row["end_s"] <= at_s or row["start_s"] >= end_s:
            continue
        if row["start_s"] > at_s:
            found.append((at_s, row["start_s"], fallback))
        low, high = max(at_s, row["start_s"]), min(end_s, row["end_s"])
        grid = {
            "g_per_kwh": row["g_per_kwh"],
            "zone": plan["grid"]["zone"],
            "estimated": False,
            **plan["series_source"],
        }
        found.append((low, high, grid))
        at_s = high
    if at_s < end_s or not found:
        found.append((at_s, end_s, fallback))
    return found
