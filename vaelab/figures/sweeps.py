"""Figures of several runs: rate against distortion, and a sweep's settings and metrics side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vaelab.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = -0.12
"""Height at which a line passes an axis that it has no value on: below the lower end, which is at 0."""
LOGARITHMIC = 100.0
"""Ratio of its ends above which an axis of positive numbers is logarithmic."""
MOST_TICKS = 6
"""Most values of a numeric axis that are all named; of more, round numbers are."""
LABELLED = 12
"""Most points that have their labels beside them; more have numbers, and a key."""
WRAP, LONGEST = 15, 22
"""Most characters of a line of a column's name, and of a category."""

Cell = float | str | bool | None
Point = tuple[str, float, float, str]
"""A point of a curve: label, rate, distortion, colour."""


@style.styled
def rate_distortion(
    curves: Sequence[Sequence[tuple[str, float, float, bool]]], title: str = "Rate and distortion"
) -> Figure:
    """Draws rate against distortion (Alemi et al. 2018, figure 1), a line and a colour for each curve.

    curves: sets of (label, rate, distortion, dominated), nats per image; one alone in its set has no line.
    A dominated model, than which another has neither more rate nor more distortion, is a hollow mark off
    the line. On the dotted line, rate + distortion, the negative ELBO, is as small as that of the best
    model here.
    """
    figure, axes = style.new(7, 5)
    points: list[Point] = []
    lines: list[Line] = []
    axes.set_title(title)
    axes.set(xlabel="rate: KL, nats per image", ylabel="distortion: −log p(x|z), nats per image")
    for number, curve in enumerate(curves):
        colour = style.CYCLE[number % len(style.CYCLE)]
        known = sorted((p for p in curve if math.isfinite(p[1]) and math.isfinite(p[2])), key=lambda p: p[1:3])
        front, beaten = ([(r, d) for _, r, d, worse in known if worse is which] for which in (False, True))
        axes.plot([r for r, _ in front], [d for _, d in front], "-o", color=colour, linewidth=1.2, markersize=5)
        axes.plot([r for r, _ in beaten], [d for _, d in beaten], "o", color=colour, mfc="white", markersize=5)
        lines.append(front)
        points += [(text, r, d, colour) for text, r, d, _ in known]
    axes.margins(0.14, 0.1)
    if len(points) > LABELLED:
        _key(figure, points)
        points = [(str(number), *rest) for number, (_, *rest) in enumerate(points, 1)]  # type: ignore[misc]
    if points:
        best = min(r + d for _, r, d, _ in points)
        lines.append(_diagonal(axes, best))
        _place_labels(figure, axes, points, lines)
    return figure


@style.styled
def parallel(columns: Sequence[str], rows: Sequence[Sequence[Cell]], colour_by: int, of: str = "") -> Figure:
    """Draws a sweep's parallel coordinates: an axis for each setting or metric, a line for each run.

    columns: names of the axes. rows: of each run its values on them. An axis with numbers alone runs
    from the least to the greatest, logarithmically if they are positive and the greatest is more than
    LOGARITHMIC times the least; others have their values one above the other, the first one lowest.
    A constant lies in the middle. A line passes below an axis on which it has no finite value.
    colour_by: index of the column that colours the lines; a run without value there is grey.
    of: what the title begins with.
    """
    from matplotlib.collections import LineCollection

    scales = [Scale([row[i] for row in rows]) for i in range(len(columns))]
    heights = [[scale.height(cell) for scale, cell in zip(scales, row, strict=True)] for row in rows]
    colours = _colours(scales[colour_by], [row[colour_by] for row in rows])
    figure, axes = style.new(min(18.0, max(3.6, 1.3 + 1.35 * len(columns))), 4.4)
    axes.set_axis_off()
    runs = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    axes.set_title(f"{of}{runs}, coloured by {columns[colour_by]}")
    axes.set(xlim=(-0.45, len(columns) - 0.55), ylim=(MISSING - 0.06, 1.28))
    places = range(len(columns))
    lines = [list(zip(places, heights_, strict=True)) for heights_ in heights]
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.6, alpha=0.8), autolim=False)
    for line, colour in zip(lines, colours, strict=True):
        axes.plot(*zip(*line, strict=True), "o", color=colour, markersize=4, clip_on=False)
    for place, (name, scale) in enumerate(zip(columns, scales, strict=True)):
        _axis(axes, place, name, scale, marked=place == colour_by)
    return figure


class Scale:
    """Heights in [0, 1] for the values of one axis, MISSING for missing values.

    cells: the values of all runs. Numbers alone make a numeric axis, anything else one of categories.
    """

    def __init__(self, cells: Sequence[Cell]):
        known: list[Any] = [cell for cell in cells if not _missing(cell)]
        self.incomplete = len(known) < len(cells)
        self.numeric = bool(known) and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in known)
        self.values: list[Any] = (
            sorted(set(map(float, known))) if self.numeric else list(dict.fromkeys(map(str, known)))
        )
        low, high = (self.values[0], self.values[-1]) if self.numeric else (0, 0)
        self.logarithmic = self.numeric and low > 0 and high > LOGARITHMIC * low

    def height(self, cell: Cell) -> float:
        """Returns the height of a value that is among the axis' cells, or of a number between its ends."""
        if _missing(cell):
            return MISSING
        if not self.numeric:
            return self._between(0, self.values.index(str(cell)), len(self.values) - 1)
        low, value, high = self.values[0], float(cell), self.values[-1]  # type: ignore[arg-type]
        if self.logarithmic:
            low, value, high = math.log(low), math.log(value), math.log(high)
        return self._between(low, value, high)

    @staticmethod
    def _between(low: float, value: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Returns heights and texts of all values, or of the ends and round numbers if there are many."""
        if not self.numeric:
            return [(self.height(v), v if len(v) <= LONGEST else v[: LONGEST - 1] + "…") for v in self.values]
        values = self.values
        if len(values) > MOST_TICKS:
            ends = (values[0], values[-1])
            between = [v for v in self._round() if all(abs(self.height(v) - self.height(end)) > 0.09 for end in ends)]
            values = [ends[0], *between, ends[1]]
        apart: list[float] = []
        for value in values:
            if not apart or self.height(value) - self.height(apart[-1]) > 0.045:
                apart.append(value)
        return [(self.height(v), f"{v:.4g}") for v in apart]

    def _round(self) -> list[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        low, high = self.values[0], self.values[-1]
        locator = LogLocator(numticks=MOST_TICKS) if self.logarithmic else MaxNLocator(nbins=5)
        return [float(v) for v in locator.tick_values(low, high) if low < v < high]


def _missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))


def _colours(scale: Scale, cells: Sequence[Cell]) -> list[Any]:
    """Returns a colour for each run: from a map for numbers, from the cycle for categories."""
    from matplotlib import colormaps

    if scale.numeric:
        return [style.GREY if _missing(c) else colormaps["viridis"](0.92 * scale.height(c)) for c in cells]
    where = [None if _missing(cell) else scale.values.index(str(cell)) for cell in cells]
    return [style.GREY if i is None else style.CYCLE[i % len(style.CYCLE)] for i in where]


def _axis(axes: Any, place: int, name: str, scale: Scale, marked: bool) -> None:
    """Draws an upright axis with its name above and its values at its left; `marked` if it colours the lines."""
    axes.plot([place, place], [0, 1], color="black", linewidth=2.2 if marked else 0.9, zorder=1)
    weight = "bold" if marked else "normal"
    unit = "\n(log)" if scale.logarithmic else ""
    axes.text(place, 1.06, _wrapped(name) + unit, ha="center", va="bottom", fontsize=9, fontweight=weight)
    ticks = scale.ticks() + ([(MISSING, "none")] if scale.incomplete else [])
    for height, text in ticks:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        axes.text(place - 0.05, height, text, ha="right", va="center", fontsize=8, bbox=box, zorder=4)


def _wrapped(name: str) -> str:
    """Wraps a key into lines of at most WRAP characters, if its parts are short enough."""
    lines = [""]
    for part in name.replace("/", "/\0").replace(".", ".\0").replace("_", "_\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > WRAP:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _diagonal(axes: Any, best: float) -> Line:
    """Draws the line rate + distortion = best, within the limits that the points set. Returns its ends."""
    (left, right), limits = axes.get_xlim(), axes.get_ylim()
    label = f"rate + distortion = {best:,.1f}, the least"
    axes.plot([left, right], [best - left, best - right], ":", color=style.GREY, linewidth=1, zorder=1, label=label)
    axes.set(xlim=(left, right), ylim=limits)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return [(left, best - left), (right, best - right)]


def _key(figure: Figure, points: Sequence[Point]) -> None:
    """Adds a key of the points' numbers and labels, beside the axes."""
    from matplotlib.lines import Line2D

    colours = [colour for *_, colour in points]
    handles = [Line2D([], [], linestyle="", label=f"{number}  {text}") for number, (text, *_) in enumerate(points, 1)]
    figure.set_figheight(max(5.0, 0.5 + 0.17 * len(points)))
    where: dict[str, Any] = {"loc": "outside right upper", "handlelength": 0, "labelspacing": 0.25, "fontsize": 8}
    figure.legend(handles=handles, labelcolor=colours, **where)


def _place_labels(figure: Figure, axes: Any, points: Sequence[Point], lines: Sequence[Line]) -> None:
    """Places each point's label where it covers no other label, point or line: near, else further off with a line."""
    width, height = 72 * figure.get_figwidth() * 0.85, 72 * figure.get_figheight() * 0.8
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()

    def at(rate: float, distortion: float) -> tuple[float, float]:
        return (rate - left) / (right - left) * width, (distortion - low) / (high - low) * height

    where = [at(r, d) for _, r, d, _ in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in where] + [(0.55 * width, 0.94 * height, width, height)]
    taken += _outside(width, height)
    beads = [box for line in lines for a, b in pairwise(line) for box in _beads(at(*a), at(*b))]
    directions = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
    for (text, rate, distortion, colour), (x, y) in zip(points, where, strict=True):
        size = (4.6 * len(text) + 2, 11.0)
        options = [(far * dx, far * dy) for far in FAR for dx, dy in directions]
        boxes = [_box(x + dx, y + dy, dx, dy, size) for dx, dy in options]
        costs = [10 * sum(_overlap(b, t) for t in taken) + sum(_overlap(b, line) for line in beads) for b in boxes]
        chosen = min(range(len(options)), key=lambda i: (costs[i], i))
        (dx, dy), far = options[chosen], chosen >= len(directions)
        taken.append(boxes[chosen])
        axes.annotate(
            *(text, (rate, distortion), (dx, dy)),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="bottom" if dy > 0 else "top" if dy < 0 else "center",
            arrowprops={"arrowstyle": "-", "color": style.GREY, "linewidth": 0.6} if far else None,
        )


FAR = (6, 16, 30)
"""Distances between a mark and its label to try, in typographic points, the nearest first."""
Line = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]


def _beads(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Covers a line with small boxes."""
    (x, y), count = start, 1 + int(math.dist(start, end) / 3)
    steps = [((end[0] - x) * i / count, (end[1] - y) * i / count) for i in range(count + 1)]
    return [(x + dx - 2, y + dy - 2, x + dx + 2, y + dy + 2) for dx, dy in steps]


def _box(x: float, y: float, dx: float, dy: float, size: tuple[float, float]) -> Box:
    """Returns left, bottom, right, top of a text whose near corner or side is at (x, y)."""
    left = x if dx > 0 else x - size[0] if dx < 0 else x - size[0] / 2
    low = y if dy > 0 else y - size[1] if dy < 0 else y - size[1] / 2
    return left, low, left + size[0], low + size[1]


def _outside(width: float, height: float) -> list[Box]:
    far = 1e4
    return [(-far, -far, 0, far), (width, -far, far, far), (-far, -far, far, 0), (-far, height, far, far)]


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
