"""The report: one HTML file that needs nothing else, made from the accounting tables alone.

Findings in words, the interactive frontier, stages, break-even, every table with a download, and
how well things were measured. Plotly's script is inlined once; no request leaves the page.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import angelshare
from angelshare.accounting.findings import findings
from angelshare.accounting.tables import TABLE_NAMES, Tables
from angelshare.files import publish_bytes
from angelshare.report import display, measures, standing
from angelshare.report.charts import chart_data
from angelshare.report.style import VIEW_CAPTIONS, VIEW_TITLES

MOST_DOWNLOAD_ROWS = 20_000
"""Longer tables are not copied into the page; the Parquet file beside it holds them."""


@dataclass(frozen=True, slots=True)
class Download:
    """A table as a CSV data URI, or only its size where it is too long for the page."""

    name: str
    rows: int
    uri: Markup | None


def write_report(
    tables: Tables,
    path: Path,
    *,
    title: str = "Energy and quality of distillation",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Publish the report at `path`. `facts` are lines about the study (team, revision, host)."""
    publish_bytes(path, render(tables, title=title, facts=facts or {}).encode())


def render(tables: Tables, *, title: str, facts: Mapping[str, str]) -> str:
    """The page as text; equal tables and facts give equal text."""
    environment = Environment(
        loader=PackageLoader("angelshare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = lambda name: Markup(_asset(name))
    return environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        version=angelshare.__version__,
        findings=findings(tables),
        traced=tables.traces.height > 0,
        views=[(view, VIEW_TITLES[view], VIEW_CAPTIONS[view]) for view in VIEW_TITLES],
        shown={
            "summary": display.summary(tables),
            "memberships": standing.memberships(tables),
            "pairs": standing.pairs(tables),
            "break_even": display.break_even(tables),
            "t_star": display.t_star(tables),
            "ledger": display.ledger(tables),
            "attempts": display.attempts_by_stage(tables),
            "meters": display.meters(tables),
            "carbon": display.carbon(tables),
            "benchmarks": measures.benchmarks(tables, benchmarks(tables)),
            "efficiency": measures.efficiency(tables),
            "sensitivity": measures.sensitivity(tables),
            "predictions": measures.predictions(tables),
        },
        matrices=standing.matrices(tables),
        data=_script_json(chart_data(tables, benchmarks(tables))),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        downloads=[_download(name, getattr(tables, name)) for name in TABLE_NAMES],
    )


def benchmarks(tables: Tables) -> list[str]:
    """The benchmark columns: those between `benchmarks_missing` and the energies' bounds."""
    names = tables.runs.columns
    return names[names.index("benchmarks_missing") + 1 : names.index("student_only_low_j")]


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return Markup(text.replace("<", "\\u003c"))


def _download(name: str, frame: pl.DataFrame) -> Download:
    if frame.height > MOST_DOWNLOAD_ROWS:
        return Download(name, frame.height, None)
    encoded = base64.b64encode(frame.write_csv().encode()).decode()
    return Download(name, frame.height, Markup(f"data:text/csv;charset=utf-8;base64,{encoded}"))
