"""Figures of rows and of sequences: marginals and correlations of columns, and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaelab.figures import style
from vaelab.nn.likelihoods.columns import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS, ACROSS, BINS = 40, 6, 20
"""Most columns that are drawn, panels in a row, and bins of a column of numbers."""
MOST_VALUES, LETTERS = 12, 24
"""Most values of a category that have a bar, and most letters of a name."""
BELOW_TITLE = 0.1
"""Inches between the title of a figure and its panels."""
MOST_LINES, CHANNELS = 6, 4
"""Most examples that are drawn as lines, and most channels of each."""


@style.styled
def marginals(fields: Sequence[Column], real: Sequence[np.ndarray], generated: Sequence[np.ndarray]) -> Figure:
    """Draws how the values of each column are spread, real beside generated: as shares of all rows.

    real, generated: cells of each column, [N] and [M], numbers with NaN for what is missing, or texts with "" for it.
    """
    shown = min(len(fields), MOST_COLUMNS)
    across = min(shown, ACROSS)
    rows = -(-shown // across)
    figure, grid = style.new(max(4.0, 2.2 * across), 1.9 * rows + 0.4, rows, across, squeeze=False)
    for axes, field, own, made in zip(grid.flat, fields, real, generated, strict=False):
        (_spread if field.numeric else _shares)(axes, field, own, made)
        axes.set_title(_cut(field.name), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    for axes in list(grid.flat)[shown:]:
        axes.remove()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    more = f", the first {shown} of {len(fields)} columns" if shown < len(fields) else ""
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    figure.suptitle(f"Marginals{more}", x=0.01, ha="left")
    return figure


def _spread(axes: Any, field: Column, real: np.ndarray, generated: np.ndarray) -> None:
    real, generated = (np.asarray(x, float)[np.isfinite(np.asarray(x, float))] for x in (real, generated))
    low, high = np.quantile(real, [0, 1])
    margin = 0.1 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    for name, values, colour, filled in (("real", real, style.GREY, True), ("generated", generated, style.BLUE, False)):
        counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(1, len(values))
        axes.stairs(counts, edges, color=colour, fill=filled, alpha=0.5 if filled else 1, label=name, linewidth=1.3)


def _shares(axes: Any, field: Column, real: np.ndarray, generated: np.ndarray) -> None:
    values = field.values[:MOST_VALUES]
    places = np.arange(len(values))
    for name, cells, colour, at in (("real", real, style.GREY, -0.2), ("generated", generated, style.BLUE, 0.2)):
        known = cells[cells != ""]
        axes.bar(places + at, [(known == value).mean() for value in values], 0.4, color=colour, label=name)
    axes.set_xticks(places, [_cut(value, 8) for value in values], rotation=0 if len(values) < 4 else 60)


@style.styled
def correlations(names: Sequence[str], real: np.ndarray, generated: np.ndarray) -> Figure:
    """Draws the correlation of each pair of columns, of real and of generated rows.

    names: of the columns. real, generated: numbers, [N, D] and [M, D], NaN for what is missing, which leaves a row out
    of the pairs that it concerns.
    """
    matrices = [correlation(x) for x in (real, generated)]
    gap = np.abs(matrices[0] - matrices[1]).mean()
    side = min(9.0, max(3.2, 0.16 * len(names) + 1.2))
    figure, panels = style.new(2 * side + 1.6, side + 1.4, 1, 2)
    picture: Any = None
    for axes, title, matrix in zip(panels, ("real", "generated"), matrices, strict=True):
        picture = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(title)
        ticks = range(0, len(names), max(1, len(names) // 40))
        axes.set_xticks(ticks, [_cut(names[i], 16) for i in ticks], rotation=90, fontsize=6)
        axes.set_yticks(ticks, [_cut(names[i], 16) for i in ticks] if title == "real" else [], fontsize=6)
    figure.colorbar(picture, ax=list(panels), shrink=0.6).ax.tick_params(labelsize=7)
    title = figure.suptitle(f"Correlations of columns, which differ by {gap:.2f} on average", x=0.01, ha="left")
    figure.draw_without_rendering()  # places the panels: square, with what height they leave above and below them
    top = max(axes.get_tightbbox().y1 for axes in panels)
    left_over = (title.get_window_extent().y0 - top) / figure.dpi - BELOW_TITLE
    figure.set_figheight(figure.get_figheight() - 2 * max(0.0, left_over))
    return figure


def correlation(x: np.ndarray) -> np.ndarray:
    """Computes correlations of columns, [D, D], each over the rows that have both; 0 where one does not vary."""
    there = np.isfinite(x).astype(float)
    known = np.where(there > 0, x, 0.0).astype(float)
    known -= there * (known.sum(0) / np.maximum(there.sum(0), 1))
    count = np.maximum(there.T @ there, 1)
    mean = known.T @ there / count  # of a column over the rows that it shares with another
    covariance = known.T @ known / count - mean * mean.T
    variance = (known**2).T @ there / count - mean**2
    scale = np.sqrt(np.maximum(variance * variance.T, 0))
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)


@style.styled
def lines(originals: np.ndarray, reconstructions: np.ndarray, samples: np.ndarray | None) -> Figure:
    """Draws sequences: originals with their reconstructions, and samples below, if there is a prior.

    originals, reconstructions, samples: [N, C, L] each, NaN for what is missing. A panel has one of them, a line for
    each channel: of a colour for each channel, thin and grey below it where it is the original's.
    """
    across = min(MOST_LINES, len(originals))
    rows = 1 if samples is None else 2
    figure, grid = style.new(2.3 * across, 1.8 * rows + 0.3, rows, across, squeeze=False, sharey=True)
    for i, axes in enumerate(grid[0]):
        for channel, (own, made) in enumerate(zip(originals[i][:CHANNELS], reconstructions[i], strict=False)):
            axes.plot(own, color=style.GREY, linewidth=2.5, alpha=0.5)
            axes.plot(made, color=style.CYCLE[channel], linewidth=1)
    grid[0, 0].set_title("reconstructions, originals grey")
    for i, axes in enumerate(grid[1] if samples is not None else []):
        for channel, made in enumerate(samples[i][:CHANNELS] if samples is not None else []):
            axes.plot(made, color=style.CYCLE[channel], linewidth=1)
    if samples is not None:
        grid[1, 0].set_title("samples")
    for axes in grid.flat:
        axes.tick_params(labelsize=7)
    return figure


def _cut(name: str, letters: int = LETTERS) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
