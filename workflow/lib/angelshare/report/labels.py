"""Direct labels that do not lie on points, on the frontier's line or on each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox


class Label(NamedTuple):
    """A text for a point in data coordinates; earlier labels choose their place first."""

    x: float
    y: float
    text: str
    color: str
    bold: bool = False


_DISTANCES_PT = (6.0, 10.0, 15.0, 22.0, 30.0, 40.0)
_DIRECTIONS = (
    *((1, 0.6), (1, -0.2), (-1, 0.6), (1, -0.8), (-1, -0.2), (-1, -0.8)),
    *((0, 1), (0, -1), (1, 1.6), (1, -1.8), (-1, -1.8)),
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
    takes the place with the least overlap.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    reach = 4 * figure.dpi / 72
    blocked = [Bbox.from_extents(*(at - reach), *(at + reach)) for at in _pixels(axes, points)]
    corners = _pixels(axes, line)
    for start, end in pairwise(corners):
        low, high = np.minimum(start, end), np.maximum(start, end)
        blocked.append(Bbox.from_extents(*(low - 1), *(high + 1)))
    taken: list[Bbox] = []
    for label in labels:
        taken.append(_place_one(axes, label, blocked, taken, renderer))


def _place_one(
    axes: Axes,
    label: Label,
    blocked: Sequence[Bbox],
    taken: Sequence[Bbox],
    renderer: RendererAgg,
) -> Bbox:
    """Try places from near to far and keep the first free one, else the least covered."""
    frame = axes.get_window_extent()
    best: tuple[float, Annotation, Bbox] | None = None
    for distance in _DISTANCES_PT:
        for direction in _DIRECTIONS:
            note = _annotate(axes, label, direction, distance)
            box = _extent(note, renderer)
            cost = _cost(box, blocked, taken, frame) + 0.02 * distance
            if best is not None and cost >= best[0]:
                note.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (cost, note, box)
        if best is not None and best[0] < 1:
            break
    assert best is not None
    return best[2]


def _extent(note: Annotation, renderer: RendererAgg) -> Bbox:
    """Where the text will stand; without its leader, which starts at the point."""
    note.update_positions(renderer)
    return Text.get_window_extent(note, renderer)


def _annotate(
    axes: Axes, label: Label, direction: tuple[float, float], distance: float
) -> Annotation:
    dx, dy = direction
    leader = {"arrowstyle": "-", "lw": 0.5, "color": label.color, "shrinkA": 1, "shrinkB": 3}
    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(dx * distance, dy * distance),
        textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="bottom" if dy > 0.5 else "top" if dy < -0.5 else "center",
        fontsize=7.5,
        color=label.color,
        fontweight="bold" if label.bold else "normal",
        arrowprops=leader if distance > _DISTANCES_PT[1] else None,
        path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        zorder=6,
    )
    note.set_in_layout(False)
    return note


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> np.ndarray:
    return axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))


def _cost(box: Bbox, blocked: Sequence[Bbox], taken: Sequence[Bbox], frame: Bbox) -> float:
    """1 per covered point or piece of line, 2 per covered label, 3 for leaving the axes."""
    cost = float(sum(box.overlaps(other) for other in blocked))
    cost += 2.0 * sum(box.overlaps(other) for other in taken)
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return cost + (0.0 if inside else 3.0)
