"""Style of every figure: colours, sizes, fonts; and its output: a file, or pixels.

Colours are those of Okabe & Ito, which people with any colour vision can tell apart. A metric has
one colour in all figures, and a part of the data one line style.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from vaelab.core.files import whole
from vaelab.core.metrics import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TRAINING,
    VERMILION,
    YELLOW,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Given = ParamSpec("Given")
Made = TypeVar("Made")

COLOURS = {metric.name: metric.colour for metric in TRAINING if metric.colour}
"""Colours of metrics, by name."""
CYCLE = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY, BLACK, YELLOW]
"""Colours of what has none of its own: classes, runs."""
LINES: dict[str, Any] = {"train": "-", "val": (0, (4, 1.5)), "test": (0, (1, 1))}
"""Line style of each part of the data."""
DPI = 120
EMPTY = (4.2, 2.7)
"""Width and height of a figure that has nothing to show, inches."""

STYLE: dict[Any, Any] = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "svg.fonttype": "none",
}


def colour_of(place: int, count: int) -> Any:
    """Chooses the colour of one of `count` lines: of the cycle, or of a map where there are more."""
    from matplotlib import colormaps

    return CYCLE[place] if count <= len(CYCLE) else colormaps["viridis"](0.92 * place / (count - 1))


def styled(draw: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorates a function so that the titles and legends it makes have the lab's style, and not the figure alone."""

    @wraps(draw)
    def drawn(*given: Given.args, **named: Given.kwargs) -> Made:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*given, **named)

    return drawn


@styled
def new(width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """Makes a figure of width x height inches and its axes, as `Figure.subplots` gives them.

    It belongs to nobody: there is no pyplot, no window and no state to clean up.
    layout: further arguments of `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **layout)


def ticks(integer: bool = False) -> Any:
    """Returns a locator of few ticks: most of the time that a figure takes is theirs."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=integer, min_n_ticks=1 if integer else 2, steps=[1, 2, 2.5, 5, 10])


@styled
def empty(title: str, why: str) -> Figure:
    """Makes a figure that says why there is nothing in it."""
    figure, axes = new(*EMPTY)
    axes.set_title(title)
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GREY)
    return figure


@styled
def save(figure: Figure, path: Path, about: str | None = None) -> None:
    """Writes a figure whole or not at all, in the format that the suffix names: .png, .pdf or .svg.

    about: a word on it that the file keeps, a PNG as its description, as `page.description` reads it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".").lower() or "png"
    metadata = {"Subject" if kind == "pdf" else "Description": about} if about else None
    _lay_out(figure)
    with whole(path) as partial:
        figure.savefig(partial, format=kind, metadata=metadata)


def _lay_out(figure: Figure) -> None:
    """Gives everything its place for good: matplotlib would find it in each of the two times that it draws a figure."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)


@styled
def rendered(figure: Figure) -> Tensor:
    """Renders the figure as a picture, [H, W, 3] uint8."""
    import numpy as np

    canvas: Any = figure.canvas
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
