"""What the interactive charts draw, as plain data for the page's script."""

from __future__ import annotations

from typing import Any

import polars as pl

from angelshare.accounting.findings import chance
from angelshare.accounting.names import pretty, stage_name
from angelshare.accounting.order import ordered_settings, students_by_size
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.accounting.units import energy_unit
from angelshare.report.amortization_figure import most_runs
from angelshare.report.stages_figure import stage_means
from angelshare.report.standing import dominator
from angelshare.report.style import VIEW_TITLES, looks, stage_color, stage_order


def chart_data(tables: Tables, benchmarks: list[str]) -> dict[str, Any]:
    """Points, stages and break-even rows with one energy unit for the page."""
    unit = energy_unit(tables.summary["one_off_j"])
    look = looks(tables.summary["pipeline"])
    return {
        "unit": {"name": unit.name, "factor": unit.factor},
        "views": [{"id": view, "name": VIEW_TITLES[view]} for view in VIEWS],
        "pipelines": {
            name: {"name": pretty(name), "color": s.color, "symbol": s.symbol}
            for name, s in look.items()
        },
        "students": students_by_size(tables),
        "metrics": ["quality", *benchmarks],
        "points": _points(tables, benchmarks),
        "stages": _stages(tables),
        "breakEven": _break_even(tables),
        "traces": _traces(tables),
        "mostRuns": most_runs(tables.break_even) if tables.break_even.height else 12.0,
    }


def _points(tables: Tables, benchmarks: list[str]) -> list[dict[str, Any]]:
    places = {(row["view"], row["setting"]): row for row in tables.frontier.rows(named=True)}
    chances = {place: row["membership_probability"] for place, row in places.items()}
    beaten = {place: _beaten(row) for place, row in places.items()}
    rows = {row["setting"]: row for row in tables.summary.rows(named=True)}
    artifacts = _lineage(tables)
    points = []
    for setting in ordered_settings(tables):
        row = rows[setting]
        points.append(
            {
                "setting": setting,
                "name": pretty(setting),
                "pipeline": row["pipeline"],
                "student": row["student"],
                "n": row["n"],
                "note": row["note"],
                "lineage": artifacts.get(setting, ""),
                "teacher": row["teacher_j"],
                "energy": {view: row[f"{view}_j"] for view in VIEWS},
                "low": {view: row[f"{view}_j_low"] for view in VIEWS},
                "high": {view: row[f"{view}_j_high"] for view in VIEWS},
                "meter": {view: row[f"{view}_j_u95"] for view in VIEWS},
                "beaten": {view: beaten.get((view, setting)) for view in VIEWS},
                "chance": {view: chances.get((view, setting)) for view in VIEWS},
                "score": {name: row[name] for name in ("quality", *benchmarks)},
                "scoreLow": {"quality": row["quality_low"]},
                "scoreHigh": {"quality": row["quality_high"]},
            }
        )
    return points


def _beaten(row: dict[str, Any]) -> str | None:
    """By whom a setting is beaten, as its point in the chart tells it."""
    name, probability = dominator(row)
    if name is None:
        return None
    return f"{pretty(name)}{'' if probability is None else f' ({chance(probability)})'}"


def _lineage(tables: Tables) -> dict[str, str]:
    """Per setting, the artifacts its runs stand on."""
    labels = tables.artifacts.select("kind", "key", "label")
    named = (
        tables.shares.filter("ours")
        .join(labels, on=["kind", "key"])
        .join(tables.runs.select("run", "setting"), on="run")
        .select("setting", pl.format("{} ({} {})", "label", "kind", pl.col("key").str.head(8)))
        .unique()
        .sort("setting", "label")
    )
    grouped = named.group_by("setting").agg(pl.col("label").str.join("; "))
    return dict(grouped.rows())


def _stages(tables: Tables) -> dict[str, Any]:
    means = stage_means(tables)
    order = stage_order(means["stage"])
    settings = ordered_settings(tables)
    values = {
        (row["view"], row["stage"], row["setting"]): row["energy_j"]
        for row in means.rows(named=True)
    }
    return {
        "settings": [pretty(setting) for setting in settings],
        "stages": [{"name": stage_name(s), "color": stage_color(s)} for s in order],
        "values": {
            view: [[values.get((view, stage, s), 0.0) for s in settings] for stage in order]
            for view in VIEWS
        },
    }


def _traces(tables: Tables) -> list[dict[str, Any]]:
    """One chart per attempt whose trace is kept: its lines with a second axis for busy threads."""
    found = []
    for (_, job, stage), group in tables.traces.group_by("id", "job", "stage", maintain_order=True):
        lines = [
            {
                "name": component,
                "unit": unit,
                "t": [round(value, 2) for value in line["t_s"]],
                "value": [round(value, 3) for value in line["value"]],
            }
            for (component, unit), line in group.group_by("component", "unit", maintain_order=True)
        ]
        found.append({"job": job, "stage": stage_name(str(stage)), "lines": lines})
    return found


def _break_even(tables: Tables) -> list[dict[str, Any]]:
    names = {
        "distilled": "distilled_student_j",
        "teacher": "teacher_j",
        "baseline": "baseline_student_j",
        "nStar": "n_star",
        "low": "n_star_low",
        "high": "n_star_high",
    }
    known = tables.break_even.filter(pl.col("distilled_student_j").is_not_null())
    order = ordered_settings(tables)
    return [
        {
            "name": pretty(row["setting"]),
            **{key: row[key] for key in ("pipeline", "student", "consumers")},
            **{key: row[column] for key, column in names.items()},
        }
        for row in sorted(known.rows(named=True), key=lambda row: order.index(row["setting"]))
    ]
