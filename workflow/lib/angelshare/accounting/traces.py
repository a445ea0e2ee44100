"""Power over time of some attempts, thinned out for drawing: watts by component and seconds.

The longest successful attempts of each stage are shown. Power is the difference of cumulative
counters over the time between them (GPUs: the driver's energy counter, else its power reading). A
processor that is estimated has no power of its own; the CPU time that its estimate follows is shown
instead, as busy threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

PER_STAGE = 2
POINTS = 240
"""Points of a line, each the mean of an equal stretch of time."""

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("id", "job", "stage", "component", "unit"), pl.String),
    **dict.fromkeys(("t_s", "value"), pl.Float64),
}
"""Columns of `traces.parquet`; `unit` is `W` or `busy threads`."""


def trace_table(attempts: pl.DataFrame) -> pl.DataFrame:
    """`traces.parquet` from the trace files beside the records; empty where there are none."""
    chosen = (
        attempts.filter((pl.col("status") == "ok") & pl.col("duration_s").is_not_null())
        .sort("duration_s", "id", descending=[True, False])
        .group_by("stage", maintain_order=True)
        .head(PER_STAGE)
        .sort("stage", "id")
    )
    frames = [
        lines.select(
            pl.lit(row["id"]).alias("id"),
            pl.lit(row["job"]).alias("job"),
            pl.lit(row["stage"]).alias("stage"),
            *("component", "unit", "t_s", "value"),
        )
        for row in chosen.select("id", "job", "stage", "record").rows(named=True)
        if (lines := _lines(Path(row["record"]))) is not None
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)


def _lines(record: Path) -> pl.DataFrame | None:
    """The lines of one attempt; None where its trace is missing or cannot be read."""
    path = record.with_suffix(".trace.parquet")
    try:
        trace = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return None
    if trace.height < 3:
        return None
    t_s = (trace["t_ns"].to_numpy() - trace["t_ns"][0]) / 1e9
    found = [
        _rate(component, unit, t_s, trace[column], scale)
        for column in trace.columns
        if (named := _counter(column)) is not None
        for component, unit, scale in [named]
    ]
    known = {component for line in found for component in line["component"].unique()}
    found += [
        _mean(column.removesuffix("_usage_mw"), t_s, trace[column])
        for column in trace.columns
        if column.endswith("_usage_mw") and column.removesuffix("_usage_mw") not in known
    ]
    return pl.concat(found) if found else None


def _counter(column: str) -> tuple[str, str, float] | None:
    """Component, unit and scale of a cumulative column; None for any other."""
    if column == "cpu_s":
        return "job", "busy threads", 1.0
    if column.endswith("_counter_mj"):
        return column.removesuffix("_counter_mj"), "W", 1e-3
    if column.endswith("_uj"):
        return column.removesuffix("_uj"), "W", 1e-6
    return None


def _rate(
    component: str, unit: str, t_s: np.ndarray, counter: pl.Series, scale: float
) -> pl.DataFrame:
    """What a counter grew by per second, in equal stretches."""
    at, values = _known(t_s, counter)
    if len(at) < 3 or at[-1] <= at[0]:
        return pl.DataFrame(schema=_LINE)
    edges = np.linspace(at[0], at[-1], min(POINTS, len(at) - 1) + 1)
    rates = scale * np.diff(np.interp(edges, at, values)) / np.diff(edges)
    return _line(component, unit, (edges[:-1] + edges[1:]) / 2, rates)


def _mean(component: str, t_s: np.ndarray, milliwatts: pl.Series) -> pl.DataFrame:
    """Power readings of a board without an energy counter, thinned out."""
    at, values = _known(t_s, milliwatts)
    stretches = [part for part in np.array_split(np.arange(len(at)), POINTS) if len(part)]
    times, watts = (
        np.array([series[part].mean() for part in stretches]) for series in (at, values / 1e3)
    )
    return _line(component, "W", times, watts)


def _known(t_s: np.ndarray, series: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    values = series.cast(pl.Float64).to_numpy()
    known = np.isfinite(values)
    return t_s[known], values[known]


def _line(component: str, unit: str, t_s: np.ndarray, values: np.ndarray) -> pl.DataFrame:
    columns = {"component": component, "unit": unit, "t_s": t_s, "value": np.maximum(values, 0.0)}
    return pl.DataFrame(columns, schema=_LINE)


_LINE = {name: SCHEMA[name] for name in ("component", "unit", "t_s", "value")}
