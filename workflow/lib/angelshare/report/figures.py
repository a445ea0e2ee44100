"""The figures as SVG, PDF and PNG: frontier, stage-wise breakdown, amortisation, sweeps.

Every figure is drawn from the tables alone. Energies share one unit per figure, chosen from the
largest value; equal tables give equal SVG bytes (no date, fixed ids).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from angelshare.accounting.tables import Tables
from angelshare.files import publishing
from angelshare.report.amortization_figure import amortization_figure
from angelshare.report.frontier_figure import frontier_figure
from angelshare.report.stages_figure import stages_figure
from angelshare.report.style import FAINT, INK
from angelshare.report.sweeps_figure import sweeps_figure

FORMATS = ("svg", "png", "pdf")

FIGURES: dict[str, Callable[[Tables], Figure | None]] = {
    "frontier": frontier_figure,
    "stages": stages_figure,
    "amortization": amortization_figure,
    "sweeps": sweeps_figure,
}
"""Every figure by the name of its files; None where the tables hold nothing to draw."""

_NEEDS = {
    "frontier": "needs runs with a score on every benchmark",
    "stages": "needs attempts that are charged to a run",
    "amortization": "needs distilled runs with a baseline to compare with",
    "sweeps": "needs settings that differ in one hyperparameter",
}

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "svg.hashsalt": "angelshare",
    "pdf.fonttype": 42,
}


def write_figures(tables: Tables, out_dir: Path) -> dict[str, dict[str, Path]]:
    """Draw every figure in every format; the paths by figure and format.

    A figure for which the tables hold nothing says so, so that the same files always exist.
    """
    paths: dict[str, dict[str, Path]] = {}
    for name, draw in FIGURES.items():
        with mpl.rc_context(_RC):
            figure = draw(tables) or _nothing(name)
            paths[name] = {kind: out_dir / f"{name}.{kind}" for kind in FORMATS}
            for kind, path in paths[name].items():
                _save(figure, path, kind)
    return paths


def _nothing(name: str) -> Figure:
    """A figure that says why it is empty."""
    figure = Figure(figsize=(5.0, 1.2))
    text = f"{name}: {_NEEDS[name]}, and this study has none."
    figure.text(0.5, 0.5, text, ha="center", va="center", color=INK)
    return figure


def _save(figure: Figure, path: Path, kind: str) -> None:
    undated: dict[str, dict[str, Any]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
    }
    with publishing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=200, metadata=undated[kind], facecolor="white")
