"""Tables as the report shows them: one unit per table, readable numbers, values to sort by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from angelshare.accounting.attempts import WASTED
from angelshare.accounting.efficiency import per_phase
from angelshare.accounting.findings import percent, t_star_text
from angelshare.accounting.names import VIEW_NAMES, pretty, stage_name
from angelshare.accounting.order import ordered_settings
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.accounting.units import energy_unit, number

DASH = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and, for numbers, the value that sorting compares."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report: its id, caption, header, and rows of cells."""

    id: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...]


def table(table_id: str, caption: str, rows: Iterable[Mapping[str, Any]]) -> Table | None:
    """Rows of equal keys as a display table, without the columns of which nothing is known; None
    where there is no row."""
    listed = [{name: _cell(value) for name, value in row.items()} for row in rows]
    if not listed:
        return None
    header = tuple(
        name for name in listed[0] if any(row[name].text not in ("", DASH) for row in listed)
    )
    numeric = tuple(any(row[name].value is not None for row in listed) for name in header)
    return Table(
        table_id,
        caption,
        header,
        tuple(tuple(row[name] for name in header) for row in listed),
        numeric,
    )


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell(DASH)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        return Cell(f"{value:,}" if isinstance(value, int) else number(value), float(value))
    return Cell(str(value))


def scaled(value: float | None, factor: float = 1.0, digits: int = 3) -> Cell:
    """A number in a unit."""
    return Cell(DASH) if value is None else Cell(number(value / factor, digits), value)


def ranged(value: float | None, low: float | None, high: float | None, factor: float = 1.0) -> Cell:
    """`4.1 (3.9 to 4.4)`: a number with its 95 % interval, as far as it is known."""
    if value is None:
        return Cell(DASH)
    text = number(value / factor)
    if low is not None and high is not None:
        text += f" ({number(low / factor)} to {number(high / factor)})"
    return Cell(text, value)


def share(value: float | None) -> Cell:
    """A probability or fraction."""
    return Cell(DASH) if value is None else Cell(percent(value), value)


def summary(tables: Tables) -> Table | None:
    """Every setting with its three energies, quality, and place on the frontiers."""
    unit = energy_unit(tables.summary["one_off_j"])
    by_setting = {row["setting"]: row for row in tables.summary.rows(named=True)}
    rows = []
    for setting in ordered_settings(tables):
        row = by_setting[setting]
        shown: dict[str, Any] = {"Setting": pretty(setting), "n": row["n"]}
        for view in VIEWS:
            name = f"{VIEW_NAMES[view]} ({unit.name})"
            mean, low, high = (row[f"{view}_j{end}"] for end in ("", "_low", "_high"))
            shown[name[0].upper() + name[1:]] = ranged(mean, low, high, unit.factor)
        bound_j = row["one_off_j_u95"]
        shown["Meter ±"] = share(None if bound_j is None else bound_j / row["one_off_j"])
        shown["Quality"] = ranged(row["quality"], row["quality_low"], row["quality_high"])
        shown["J per token"] = scaled(row["j_per_token"])
        shown["Note"] = row["note"] or ""
        rows.append(shown)
    caption = (
        "Means over datasets and seeds with the 95 % t-interval of the repeats in brackets; "
        "“Meter ±” is the 95 % measurement bound of the one-off energy, which repeats do not "
        "reduce. J per token: one-off energy over trained tokens."
    )
    return table("summary", caption, rows)


def break_even(tables: Tables) -> Table | None:
    """N* and T* of every distilling pipeline and student."""
    unit = energy_unit(tables.break_even["teacher_j"])
    rows = [
        {
            "Pipeline and student": pretty(row["setting"]),
            f"Teacher ({unit.name})": ranged(
                row["teacher_j"], row["teacher_low_j"], row["teacher_high_j"], unit.factor
            ),
            f"Baseline student ({unit.name})": scaled(row["baseline_student_j"], unit.factor),
            f"Distilled student ({unit.name})": scaled(row["distilled_student_j"], unit.factor),
            f"Saved per student ({unit.name})": ranged(
                row["gap_j"], row["gap_low_j"], row["gap_high_j"], unit.factor
            ),
            "N*": _n_star(row),
            "Never": share(row["never_probability"]),
            "Runs now": row["consumers"],
            "Reached": row["reached"],
            "Note": row["note"] or "",
        }
        for row in _by_setting(tables, tables.break_even)
    ]
    caption = (
        "N* = teacher / (baseline student − distilled student), student-only energies, matched on "
        "student and dataset: how many runs must share the teacher's work before distilling costs "
        "less than the baseline. “Never”: the probability that there is no such number."
    )
    return table("break-even", caption, rows)


def t_star(tables: Tables) -> Table | None:
    """T* of every distilling pipeline and student, with its reference."""
    rows = [
        {
            "Pipeline and student": pretty(row["setting"]),
            "T*": t_star_text(row),
            "Against": pretty(row["t_star_reference"] or DASH),
        }
        for row in _by_setting(tables, tables.break_even)
    ]
    caption = (
        "T*: tokens served until the distilled student's one-off energy is paid back by cheaper "
        "serving, against the reference named. Joules per served token are those of evaluation."
    )
    return table("t-star", caption, rows)


def _by_setting(tables: Tables, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table with a `setting`, in the order settings are shown everywhere."""
    order = ordered_settings(tables)
    return sorted(frame.rows(named=True), key=lambda row: order.index(row["setting"]))


def _n_star(row: Mapping[str, Any]) -> Cell:
    low, high = row["n_star_low"], row["n_star_high"]
    interval = ""
    if low is not None:
        interval = f" ({number(low)} to {'never' if high is None else number(high)})"
    if row["n_star"] is None:
        return Cell(f"{row['n_star_status']}{interval}", float("inf"))
    return Cell(f"{number(row['n_star'])}{interval}", row["n_star"])


def ledger(tables: Tables) -> Table | None:
    """Every shared artifact: cost, size, who used it, what sharing saved."""
    unit = energy_unit(tables.artifacts["energy_j"])
    users = dict(
        tables.shares.group_by("kind", "key", "team")
        .agg(pl.len().alias("runs"))
        .sort("team")
        .group_by("kind", "key", maintain_order=True)
        .agg(pl.format("{}: {}", "team", "runs").str.join(", ").alias("teams"))
        .select(pl.concat_str("kind", "key", separator="/"), "teams")
        .rows()
    )
    rows = [
        {
            "Artifact": row["label"],
            "Kind / key": f"{row['kind']} / {row['key'][:12]}",
            f"Energy ({unit.name})": scaled(row["energy_j"], unit.factor),
            f"Failed attempts ({unit.name})": scaled(row["wasted_j"], unit.factor),
            "Tokens": row["tokens"] or None,
            "MB": scaled(row["bytes"] / 1e6 if row["bytes"] else None),
            "Runs by team": users.get(f"{row['kind']}/{row['key']}", DASH),
            f"Shared out ({unit.name})": scaled(row["shared_j"], unit.factor),
            f"On nobody's bill ({unit.name})": scaled(row["unallocated_j"], unit.factor),
            f"Saved by sharing ({unit.name})": scaled(row["saved_j"], unit.factor),
        }
        for row in tables.artifacts.rows(named=True)
    ]
    policies = tables.shares["policy"].unique().to_list() or ["none"]
    policy = str(policies[0]).replace("_", " ")
    caption = (
        "Every artifact is one bill, failed attempts included, split over all runs of all teams "
        f"that read it (policy: {policy}). “Saved by sharing” is what making it once per run would "
        "have cost more."
    )
    return table("ledger", caption, rows)


def attempts_by_stage(tables: Tables) -> Table | None:
    """What each stage cost, and what of it went into attempts that failed."""
    lost = pl.col("status").is_in(WASTED)
    stages = (
        tables.attempts.group_by("stage")
        .agg(
            attempts=pl.len(),
            lost=lost.sum(),
            energy_j=pl.col("energy_j").sum(),
            wasted_j=pl.col("energy_j").filter(lost).sum(),
            duration_s=pl.col("duration_s").sum(),
            tokens=pl.col("tokens").sum(),
        )
        .sort("energy_j", descending=True)
    )
    unit = energy_unit(stages["energy_j"])
    done = tables.attempts.filter(pl.col("status") == "ok")
    phases = {row["stage"]: row for row in per_phase(done, "stage").rows(named=True)}
    rows = [
        {
            "Stage": stage_name(row["stage"]),
            "Attempts": row["attempts"],
            "Failed or stopped": row["lost"],
            f"Energy ({unit.name})": scaled(row["energy_j"], unit.factor),
            f"Of it in vain ({unit.name})": scaled(row["wasted_j"], unit.factor),
            "Hours": scaled(row["duration_s"], 3600.0) if row["duration_s"] else Cell(DASH),
            "Tokens": row["tokens"] or None,
            "J per token": scaled(row["energy_j"] / row["tokens"]) if row["tokens"] else Cell(DASH),
            "J per prompt token": scaled(phases.get(row["stage"], {}).get("prefill_j_per_token")),
            "J per generated token": scaled(phases.get(row["stage"], {}).get("decode_j_per_token")),
        }
        for row in stages.rows(named=True)
    ]
    caption = (
        "All attempts of all jobs, stages stated apart included. Reading prompts and writing "
        "answers stand apart where the jobs marked them: not with vLLM, which mixes them."
    )
    return table("attempts", caption, rows)


def meters(tables: Tables) -> Table | None:
    """How each kind of device was metered, and how much of the energy it saw."""
    grouped = (
        tables.components.group_by("kind", "quality", "method")
        .agg(
            records=pl.len(),
            energy_j=pl.col("energy_j").sum(),
            unknown=pl.col("energy_j").is_null().sum(),
            checked=pl.col("crosscheck_ok").count(),
            agreed=pl.col("crosscheck_ok").sum(),
        )
        .sort("energy_j", descending=True)
    )
    total_j = float(grouped["energy_j"].sum())
    unit = energy_unit(grouped["energy_j"])
    rows = [
        {
            "Device": str(row["kind"]).replace("_", " "),
            "Quality": row["quality"],
            "Method": str(row["method"]).replace("_", " "),
            "Records": row["records"],
            f"Energy ({unit.name})": scaled(row["energy_j"], unit.factor),
            "Of all": share(row["energy_j"] / total_j if total_j else None),
            "Without a value": row["unknown"],
            "Cross-checks passed": f"{row['agreed']} of {row['checked']}"
            if row["checked"]
            else DASH,
        }
        for row in grouped.rows(named=True)
    ]
    caption = "Energies by device and by how they were obtained. Missing is missing, never 0 J."
    return table("meters", caption, rows)


def carbon(tables: Tables) -> Table | None:
    """Grams of CO2e per setting under each view, where records carry them."""
    known = tables.runs.filter(pl.col("co2e_g").is_not_null())
    means = known.group_by("setting").agg(
        pl.col("student_only_co2e_g", "co2e_g", "amortized_co2e_g").mean()
    )
    by_setting = {row["setting"]: row for row in means.rows(named=True)}
    rows = [
        {
            "Setting": pretty(setting),
            "Student only (g)": scaled(by_setting[setting]["student_only_co2e_g"]),
            "One-off (g)": scaled(by_setting[setting]["co2e_g"]),
            "Amortised (g)": scaled(by_setting[setting]["amortized_co2e_g"]),
        }
        for setting in ordered_settings(tables)
        if setting in by_setting
    ]
    factors = tables.attempts.select("pue", "grid_g_per_kwh", "grid_source").drop_nulls().unique()
    said = "; ".join(
        f"PUE {number(pue)}, {number(grid)} g/kWh ({source})"
        for pue, grid, source in factors.sort(factors.columns).head(4).rows()
    )
    caption = f"CO2e per run = device energy × PUE × grid intensity. Used: {said or 'not stated'}."
    return table("carbon", caption, rows)
