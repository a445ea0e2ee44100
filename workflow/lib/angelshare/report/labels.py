"""Direct labels that do not lie on points, on the frontier's line or on each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox


class Label(NamedTuple):
    """A text for a point in data coordinates; earlier labels choose their place first."""

    x: float
    y: float
    text: str
    color: str
    bold: bool = False


_DISTANCES_PT = (6.0, 10.0, 15.0, 22.0, 30.0, 40.0)
_NEAR_PT = 12.0
"""Texts farther from their point than this get a leader."""

_DIRECTIONS = (
    *((1.0, 0.5), (1.0, -0.5), (-1.0, 0.5), (-1.0, -0.5), (0.0, 1.0), (0.0, -1.0)),
    *((1.0, 1.6), (1.0, -1.6), (-1.0, 1.6), (-1.0, -1.6)),
)


def place(
    axes: Axes,
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]],
) -> None:
    """Put each label at the nearest of a few places where it covers nothing.

    `points` and the corners of `line` (of horizontal and vertical pieces) are data coordinates
    that labels keep off. Labels that had to move away get a thin leader; one that fits nowhere
    takes the place with the least overlap. The figure must have been laid out (drawn) before.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame, per_point = axes.get_window_extent(), figure.dpi / 72
    marks = _pixels(axes, points)
    blocked = [Bbox.from_extents(*(at - 6), *(at + 6)) for at in marks]
    for start, end in pairwise(_pixels(axes, line)):
        low, high = np.minimum(start, end), np.maximum(start, end)
        blocked.append(Bbox.from_extents(*(low - 1), *(high + 1)))
    taken: list[Bbox] = []
    for label, at in zip(labels, _pixels(axes, [label[:2] for label in labels]), strict=True):
        note = _annotate(axes, label)
        size = note.get_window_extent(renderer)
        offset, box = min(
            (
                (np.array(direction) * distance, _box(at, direction, distance * per_point, size))
                for distance in _DISTANCES_PT
                for direction in _DIRECTIONS
            ),
            key=lambda place, at=at: (  # type: ignore[misc]
                _cost(place[1], blocked, taken, frame)
                + 0.7 * _mistakable(place[1], at, marks)
                + 0.02 * float(np.abs(place[0]).max())
            ),
        )
        far = float(np.abs(offset).max()) > _NEAR_PT
        _move(note, offset, leader=far or _mistakable(box, at, marks))
        taken.append(box)


def _annotate(axes: Axes, label: Label) -> Annotation:
    """The label at its point, without a leader yet."""
    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=7.5,
        color=label.color,
        fontweight="bold" if label.bold else "normal",
        path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": label.color, "shrinkA": 1, "shrinkB": 3},
        zorder=6,
    )
    note.set_in_layout(False)
    assert note.arrow_patch is not None
    note.arrow_patch.set_visible(False)
    return note


def _mistakable(box: Bbox, at: np.ndarray, marks: np.ndarray) -> bool:
    """Whether the text lies about as near to another point as to its own."""
    nearest = np.clip(marks, (box.x0, box.y0), (box.x1, box.y1))
    distances = np.hypot(*(marks - nearest).T)
    own = np.hypot(*(at - np.clip(at, (box.x0, box.y0), (box.x1, box.y1))))
    others = distances[np.abs(marks - at).max(axis=1) > 0.5]
    return bool((others < 1.3 * own + 1).any())


def _move(note: Annotation, offset: np.ndarray, *, leader: bool) -> None:
    """Put the text at its place."""
    dx, dy = (float(value) for value in offset)
    note.set_position((dx, dy))
    note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    note.set_verticalalignment("bottom" if dy > 0 else "top")
    assert note.arrow_patch is not None
    note.arrow_patch.set_visible(leader)


def _box(at: np.ndarray, direction: tuple[float, float], distance: float, size: Bbox) -> Bbox:
    """Where a text of this size lies when put off in a direction, in pixels."""
    (x, y), (dx, dy) = at, direction
    left = x + dx * distance - {1: 0.0, 0: size.width / 2, -1: size.width}[round(dx)]
    bottom = y + dy * distance - (0.0 if dy > 0 else size.height)
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> np.ndarray:
    return axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))


def _cost(box: Bbox, blocked: Sequence[Bbox], taken: Sequence[Bbox], frame: Bbox) -> float:
    """1 per covered point or piece of line, 2 per covered label, 3 for leaving the axes."""
    cost = float(sum(box.overlaps(other) for other in blocked))
    cost += 2.0 * sum(box.overlaps(other) for other in taken)
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return cost + (0.0 if inside else 3.0)
