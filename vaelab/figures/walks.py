"""Figures of paths through latent space: along single dimensions, between two images, among four.

Images are [..., C, H, W] in [0, 1], C 1 or 3; any size is brought to one that can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from vaelab.figures import style
from vaelab.figures.sheets import GAP, LINE, Sheet, fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART = 14
"""Pixels between decoded pictures and the images themselves."""
MOST = 21
"""Most pictures of a row: of more steps some are left out."""
LEAST = 11
"""Least pictures that a row keeps if steps are left out."""
ARROW = 15
"""Pixels between rows, for the arrows that mark a code's own value."""
PLAIN, DEVIATIONS = "value of the dimension", "standard deviations from the mean code"
"""Units of the values of a traversal, in words."""


@style.styled
def traversals(
    images: Tensor,
    values: Tensor | Sequence[float],
    names: Sequence[str],
    title: str | None = None,
    start: Tensor | Sequence[float] | None = None,
    unit: str = PLAIN,
) -> Figure:
    """Draws a row per dimension: decoded codes that differ in it alone, with the values of the columns.

    images: [R, S, C, H, W]. values: [S], ascending. names: of the dimensions, [R]. start: the value of
    each in the code that is changed, [R]; None: 0, the prior's mean. An arrow above the row points to it,
    also between two columns; there is none to what lies beyond the first or the last. unit: of values and start.
    Of more than MOST values, some are shown.
    """
    shown = _thinned(len(values))
    ticks = [float(values[i]) for i in shown]
    images = images[:, shown]
    starts = [0.0] * len(images) if start is None else [float(value) for value in start]
    sheet = Sheet(fitted(images, len(ticks)), above=[ARROW] + [ARROW + 2] * (len(images) - 1))
    sheet.name_rows(names)
    sheet.name_columns(_short(ticks), unit + _left_out(shown, len(values)))
    places = [_place(value, ticks) for value in starts]
    for top, place in zip(sheet.tops, places, strict=True):
        if place is not None:
            sheet.arrow(sheet.centre(place), top - 2, style.VERMILION)
    if any(place is not None for place in places):
        y = sheet.bottom + 2 * LINE + 16
        sheet.arrow(sheet.lefts[0] + 9, y + 5, style.VERMILION)
        sheet.say(sheet.lefts[0] + 24, y, "the code's own value", ha="left", color=style.VERMILION)
    return sheet.figure(title)


@style.styled
def interpolations(images: Tensor, names: Sequence[str], ends: bool = True) -> Figure:
    """Draws a row per pair of images: what is decoded on the way from the one's code to the other's.

    images: [R, S, C, H, W]. ends: the first and the last column hold the images themselves, and stand
    apart; what is between them starts at the first code and ends at the second. Of more than MOST steps,
    some are shown.
    """
    between = images.shape[1] - 2 * ends
    shown = _thinned(between)
    labels = [_exact(i / max(1, between - 1)) for i in shown]
    images = images[:, [0, *(1 + i for i in shown), -1] if ends else shown]
    steps = images.shape[1]
    before = [0] + [GAP] * (steps - 1)
    if ends:
        before[1] = before[-1] = APART
        labels = ["image", *labels, "image"]
    sheet = Sheet(fitted(images, steps), before=before)
    sheet.name_rows(names)
    sheet.name_columns(labels, "way from the first code to the second" + _left_out(shown, between))
    return sheet.figure()


@style.styled
def between_four(images: Tensor) -> Figure:
    """Draws what is decoded among four codes, which are in the framed corners. images: [n, n, C, H, W]."""
    sheet = Sheet(fitted(images, images.shape[1]))
    last = len(images) - 1
    for row in {0, last}:
        for column in {0, last}:
            sheet.frame(row, column, style.VERMILION)
    return sheet.figure()


@style.styled
def manifold(images: Tensor, values: Tensor | Sequence[float], names: tuple[str, str], title: str) -> Figure:
    """Draws what is decoded over a plane of codes (Kingma & Welling 2014, figure 4).

    images: [n, n, C, H, W], the first row of the least value of the second dimension, which is drawn lowest. values:
    of both dimensions, [n], ascending. names: of the two dimensions.
    """
    sheet = Sheet(fitted(images.flip(0), images.shape[1]))
    ticks = _short([float(value) for value in values])
    rows = list(reversed(ticks))
    rows[len(rows) // 2] = f"{names[1]}  {rows[len(rows) // 2]}"
    sheet.name_rows(rows)
    sheet.name_columns(ticks, names[0])
    return sheet.figure(title)


def _thinned(steps: int) -> list[int]:
    """Chooses the steps that are shown: the first, the last and some between, evenly where it can be."""
    if steps <= MOST:
        return list(range(steps))
    for stride in range(2, steps):
        if (steps - 1) % stride == 0 and LEAST <= (steps - 1) // stride + 1 <= MOST:
            return list(range(0, steps, stride))
    return [round(i * (steps - 1) / (MOST - 1)) for i in range(MOST)]


def _left_out(shown: Sequence[int], steps: int) -> str:
    return f" ({len(shown)} of {steps} steps are shown)" if len(shown) < steps else ""


def _exact(t: float) -> str:
    """Writes a number with at most three decimals, and nothing if it would have to be rounded."""
    text = f"{t:.3f}".rstrip("0").rstrip(".")
    return text if math.isclose(float(text), t, abs_tol=1e-9) else ""


def _place(value: float, ticks: Sequence[float]) -> float | None:
    """Returns the column at which a value lies among ascending ones, a fraction between two; None beyond them."""
    for i, tick in enumerate(ticks):
        if math.isclose(value, tick, rel_tol=1e-6, abs_tol=1e-6):
            return i
        if i and ticks[i - 1] < value < tick:
            return i - 1 + (value - ticks[i - 1]) / (tick - ticks[i - 1])
    return None


def _short(values: Sequence[float]) -> list[str]:
    """Writes numbers with two decimals, or more where it takes them to tell values apart, with a true minus."""
    step = min((b - a for a, b in pairwise(values) if b > a), default=1.0)
    decimals = max(2, 1 - math.floor(math.log10(step)))
    return [f"{round(value, decimals) + 0.0:g}".replace("-", "−") for value in values]
