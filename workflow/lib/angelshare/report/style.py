"""How pipelines and stages look in every figure: one palette, safe for colour-blind readers.

Okabe and Ito's colours; pipelines differ in marker too, so nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from angelshare.accounting.names import KNOWN_PIPELINES

VIEW_TITLES = {
    "student_only": "Student only",
    "one_off": "One-off",
    "amortized": "Amortised",
}
VIEW_CAPTIONS = {
    "student_only": "training and evaluation of the student; the teacher is not counted",
    "one_off": "every upstream artifact charged whole to every run",
    "amortized": "every upstream artifact shared by the runs that really read it",
}

INK, FAINT = "#1f2328", "#8a9099"


class Look(NamedTuple):
    """A pipeline's colour and markers (Matplotlib's and Plotly's names for the same shape)."""

    color: str
    marker: str
    symbol: str


_LOOKS = (
    Look("#4d4d4d", "o", "circle"),
    Look("#0072b2", "s", "square"),
    Look("#d55e00", "^", "triangle-up"),
    Look("#009e73", "D", "diamond"),
    Look("#cc79a7", "v", "triangle-down"),
    Look("#e69f00", "P", "cross"),
    Look("#56b4e9", "X", "x"),
    Look("#332288", "p", "pentagon"),
    Look("#999933", "h", "hexagon"),
)

_STAGE_COLORS = {
    "preprocess": "#c8ccd2",
    "teacher_logits": "#882255",
    "teacher_generation": "#aa4499",
    "teacher_hidden": "#cc6677",
    "teacher_embeddings": "#ddaa99",
    "teacher_evaluate": "#eeccbb",
    "teacher_online": "#661100",
    "assistant_train": "#332288",
    "student_train": "#0072b2",
    "evaluate": "#88ccee",
    "judge": "#44aa99",
}
"""Stages in the order of a bar, upstream first."""


def looks(pipelines: Iterable[str]) -> dict[str, Look]:
    """A look for every pipeline, the same whatever else is shown: known ones have fixed places."""
    others = sorted(set(pipelines) - set(KNOWN_PIPELINES))
    names = [name for name in KNOWN_PIPELINES if name in set(pipelines)] + others
    free = _LOOKS[len(KNOWN_PIPELINES) :]
    fixed = dict(zip(KNOWN_PIPELINES, _LOOKS, strict=False))
    return {name: fixed.get(name) or free[others.index(name) % len(free)] for name in names}


def stage_color(stage: str) -> str:
    """The colour of a stage."""
    return _STAGE_COLORS.get(stage, "#999933")


def stage_order(stages: Iterable[str]) -> list[str]:
    """Stages as they are stacked: upstream first, the student's own last."""
    order = list(_STAGE_COLORS)
    return sorted(
        set(stages), key=lambda stage: (order.index(stage) if stage in order else -1, stage)
    )
