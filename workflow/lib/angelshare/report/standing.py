"""Where settings stand: on the frontier of each view or not, and which dominates which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from angelshare.accounting.dominance import LISTED_FROM, SURE
from angelshare.accounting.findings import chance, percent
from angelshare.accounting.names import VIEW_NAMES, pretty
from angelshare.accounting.order import ordered_settings
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.accounting.units import energy_unit, number
from angelshare.report.display import DASH, Cell, Table, ranged, scaled, table

MOST_COMPARED = 24
"""More settings than these make no legible matrix: those most often on a frontier are shown."""


_WASTED = ("wasted_j", "wasted_low_j", "wasted_high_j")


@dataclass(frozen=True, slots=True)
class Mark:
    """A cell of the matrix: its text, how dark it is (0 to 5), and what the mouse is told."""

    text: str
    shade: int = 0
    told: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """How probably the row's setting dominates the column's, under one view."""

    view: str
    caption: str
    settings: tuple[str, ...]
    rows: tuple[tuple[Mark, ...], ...]


def memberships(tables: Tables) -> Table | None:
    """Every setting's place on the frontier of each view, and what beats it when amortised."""
    places = {(row["view"], row["setting"]): row for row in tables.frontier.rows(named=True)}
    unit = energy_unit(tables.frontier["wasted_j"])
    rows = []
    for setting in ordered_settings(tables):
        shown: dict[str, Any] = {"Setting": pretty(setting)}
        for view in VIEWS:
            shown[_title(view)] = _membership(places.get((view, setting)))
        amortized = places.get(("amortized", setting))
        shown["Beaten, when amortised, by"], shown["How surely"] = _beaten(amortized)
        wasted_j, low_j, high_j = (amortized[name] if amortized else None for name in _WASTED)
        shown[f"Wasted a run ({unit.name})"] = ranged(wasted_j, low_j, high_j, unit.factor)
        rows.append(shown)
    caption = (
        "Whether a setting is on the frontier of each view, and in brackets how often it is in "
        "joint draws of repeat spread, meter errors and benchmark errors. Where others dominate it "
        f"with {percent(SURE)} or more, the one of them that saves the most is named, and the "
        "energy wasted beside it with its 95 % interval; else the cheapest that beats its means."
    )
    return table("memberships", caption, rows) if tables.frontier.height else None


def _title(view: str) -> str:
    name = VIEW_NAMES[view]
    return name[0].upper() + name[1:]


def _membership(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(DASH)
    said = "yes" if row["on_frontier"] else "no"
    probability = row["membership_probability"]
    if probability is None:
        return Cell(said, float(row["on_frontier"]))
    return Cell(f"{said} ({chance(probability)})", probability)


def _beaten(row: Mapping[str, Any] | None) -> tuple[str, Cell]:
    """By whom a setting is beaten, and how surely."""
    name, probability = dominator(row) if row else (None, None)
    return pretty(name or DASH), _probability(probability)


def dominator(row: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Of a row of `frontier` the setting that beats it, and how probably: the sure one, if any."""
    if row["sure_dominator"] is not None:
        return row["sure_dominator"], row["sure_probability"]
    return row["dominated_by"], row["dominated_probability"]


def _probability(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(chance(value), value)


def compared(tables: Tables) -> list[str]:
    """The settings of the matrices, in the order of every table: all of them, or those most often
    on a frontier."""
    on_means = pl.col("on_frontier").cast(pl.Float64)
    chances = dict(
        tables.frontier.group_by("setting")
        .agg(pl.col("membership_probability").fill_null(on_means).max())
        .rows()
    )
    scored = [setting for setting in ordered_settings(tables) if setting in chances]
    most = sorted(scored, key=lambda setting: -chances[setting])[:MOST_COMPARED]
    return [setting for setting in scored if setting in set(most)]


def matrices(tables: Tables) -> list[Matrix]:
    """One matrix per view; none where there are no two settings to compare."""
    settings = compared(tables)
    if len(settings) < 2:
        return []
    among = _among(tables, settings)
    unit = energy_unit(among["saved_j"].abs())
    found = []
    for view in VIEWS:
        pairs = {
            (row["setting"], row["dominated"]): row
            for row in among.filter(view=view).rows(named=True)
        }
        rows = tuple(
            tuple(
                Mark("") if one == other else _mark(pairs.get((one, other)), unit)
                for other in settings
            )
            for one in settings
        )
        caption = (
            f"{_title(view)}: how often the setting of a row dominates that of a column (costs no "
            f"more, is no worse, and is better in one), in % of the draws. A dot is less than "
            f"{percent(LISTED_FROM)}{_not_sure(among)}{_left_out(tables, settings)}."
        )
        found.append(Matrix(view, caption, tuple(map(pretty, settings)), rows))
    return found


def _not_sure(among: pl.DataFrame) -> str:
    if not among["probability"].null_count():
        return ""
    return "; “yes” is in the means, where nothing is known of the uncertainty"


def _left_out(tables: Tables, settings: list[str]) -> str:
    total = tables.frontier["setting"].n_unique()
    if total == len(settings):
        return ""
    return (
        f". Shown are the {len(settings)} of {total} settings that are most often on a frontier; "
        "the table dominance has all"
    )


def _among(tables: Tables, settings: Iterable[str]) -> pl.DataFrame:
    inside = list(settings)
    pairs = tables.dominance
    return pairs.filter(pl.col("setting").is_in(inside), pl.col("dominated").is_in(inside))


def _mark(row: Mapping[str, Any] | None, unit: Any) -> Mark:
    if row is None:
        return Mark("·")
    more = "less" if row["saved_j"] >= 0 else "more"
    better = "better" if row["quality_gain"] >= 0 else "worse"
    means = (
        f"in the means {number(abs(row['saved_j']) / unit.factor)} {unit.name} {more} a run and "
        f"{number(abs(row['quality_gain']))} {better}"
    )
    names = f"{pretty(row['setting'])} dominates {pretty(row['dominated'])}"
    probability = row["probability"]
    if probability is None:
        return Mark("yes", 3, f"{names}: {means}; how surely is not known")
    return Mark(
        _whole(probability), _shade(probability), f"{names}: {chance(probability)}; {means}"
    )


def _whole(probability: float) -> str:
    """Per cent without the sign; draws never show a certainty."""
    return chance(probability).removesuffix(" %").replace(" ", "")


def _shade(probability: float) -> int:
    steps = (LISTED_FROM, 0.25, 0.5, 0.75, SURE)
    return sum(probability >= step for step in steps)


def pairs(tables: Tables) -> Table | None:
    """The pairs of the matrices as a list, the three views side by side."""
    among = _among(tables, compared(tables))
    unit = energy_unit(among["saved_j"].abs())
    order = {setting: index for index, setting in enumerate(ordered_settings(tables))}
    by_pair: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in among.rows(named=True):
        by_pair.setdefault((row["setting"], row["dominated"]), {})[row["view"]] = row
    rows = []
    for one, other in sorted(by_pair, key=lambda pair: (order[pair[1]], order[pair[0]])):
        views = by_pair[one, other]
        shown: dict[str, Any] = {"Setting": pretty(one), "Dominates": pretty(other)}
        for view in VIEWS:
            shown[_title(view)] = _listed(views.get(view))
        amortized = views.get("amortized")
        shown[f"Saves, amortised ({unit.name})"] = scaled(
            amortized["saved_j"] if amortized else None, unit.factor
        )
        shown["Quality gained"] = scaled(next(iter(views.values()))["quality_gain"])
        rows.append(shown)
    caption = (
        "The pairs of the matrices, the three views side by side: the probability that the first "
        "setting dominates the second, and how much less it costs and how much better it is in "
        "the means."
    )
    return table("dominance-pairs", caption, rows)


def _listed(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(f"< {percent(LISTED_FROM)}", 0.0)
    if row["probability"] is None:
        return Cell("yes", 1.0)
    return _probability(row["probability"])
