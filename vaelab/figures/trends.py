"""Figures of a sweep: metrics against a setting that was swept, and training curves on top of one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaelab.core.metrics import metric
from vaelab.figures import style
from vaelab.figures.sweeps import Cell, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (3.6, 3.0)
"""Width and height of a panel, inches."""
NAMED = 12
"""Most lines that a legend names."""

Point = tuple[Cell, float, float | None, float | None]
"""A configuration on a line: the setting, and the mean over seeds with the ends of its interval, None for one seed."""
Curve = tuple[str, np.ndarray, np.ndarray]
"""A run's curve: its configuration, epochs from 1, and values."""


@style.styled
def against(key: str, panels: Mapping[str, Mapping[str, Sequence[Point]]], title: str) -> Figure:
    """Draws metrics against a setting: a panel for each metric, a line for each set of the other settings.

    panels: by metric, the lines by their labels. Bars are the intervals over seeds. The axis of the setting is one of
    `Scale`: numbers, logarithmic where they span much, or words.
    """
    scale = Scale([x for lines in panels.values() for points in lines.values() for x, *_ in points])
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    figure, grid = style.new(PANEL[0] * len(panels), PANEL[1], 1, len(panels), squeeze=False)
    for axes, (name, lines) in zip(grid.flat, panels.items(), strict=True):
        for label, points in lines.items():
            x, mean = [scale.height(point[0]) for point in points], [point[1] for point in points]
            ends = [[0.0 if end is None else abs(end - m) for m, end in zip(mean, side, strict=True)]
                    for side in zip(*(point[2:] for point in points), strict=True)]  # fmt: skip
            order = np.argsort(x)
            look = {
                "color": style.colour_of(labels.index(label), len(labels)),
                "capsize": 3,
                "markersize": 4,
                "linewidth": 1.2,
            }
            axes.errorbar(*(np.asarray(v)[..., order] for v in (x, mean, ends)), fmt="-o", label=label, **look)
        ticks = scale.ticks()
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        axes.margins(x=0.08)
        axes.set(
            xlabel=key + (" (log)" if scale.logarithmic else ""), title=metric(name).label, ylabel=metric(name).unit
        )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    _legend(figure, grid.flat[0], labels)
    return figure


@style.styled
def overlaid(panels: Mapping[str, Sequence[Curve]], title: str) -> Figure:
    """Draws the curves of runs on top of one another: a panel for each metric, a colour for each configuration."""
    from matplotlib.ticker import MaxNLocator

    labels = list(dict.fromkeys(label for curves in panels.values() for label, *_ in curves))
    figure, grid = style.new(PANEL[0] * len(panels), PANEL[1], 1, len(panels), squeeze=False)
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=True):
        for label, x, y in curves:
            axes.plot(
                x, y, color=style.colour_of(labels.index(label), len(labels)), label=label, linewidth=1, alpha=0.85
            )
        axes.set(xlabel="epoch", title=metric(name).label, ylabel=metric(name).unit)
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    _legend(figure, grid.flat[0], labels)
    return figure


def _legend(figure: Figure, axes: Any, labels: Sequence[str]) -> None:
    """Names the lines below the panels, each once, if there are several and not too many."""
    if 1 < len(labels) <= NAMED:
        handles, names = axes.get_legend_handles_labels()
        by_name = dict(zip(names, handles, strict=True))
        figure.legend(
            by_name.values(), by_name.keys(), loc="outside lower center", ncols=min(4, len(by_name)), fontsize=8
        )
