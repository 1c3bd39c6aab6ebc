"""Figures of a codebook: which codes are in use, when, where they lie and what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vaelab.figures import series, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RARE, OFTEN = 1e-2, 1e2
"""Ends of the scale of how often a code is chosen, in units of what each has where all are chosen alike."""


@style.styled
def usage(epochs: Tensor, counts: Tensor) -> Figure:
    """Draws which codes are in use, and when: a heat map, on a logarithmic scale, that is white where one is not.

    epochs: [E], whole numbers from 0; of one that is there twice the last counts, and those that are missing are
    grey. counts: how often each code was chosen in an epoch, [E, K], in any unit. Codes are rows, those chosen most
    in the last epoch on top, and those that it does not choose by when they were chosen last.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    first, cells = series.calendar(epochs, counts)
    chosen = np.nan_to_num(cells) > 0
    size, latest = cells.shape[1], len(cells) - chosen[::-1].argmax(0)
    order = np.lexsort((-np.nan_to_num(cells[-1]), -np.where(chosen.any(0), latest, 0)))
    used, left = chosen[-1].sum(), (chosen.any(0) & ~chosen[-1]).sum()

    figure, axes = style.new(7, min(6.0, max(2.6, 1.5 + 0.02 * size)))
    axes.set_facecolor("0.85")
    axes.spines[:].set_visible(True)
    alike = size * cells / np.maximum(cells.sum(1, keepdims=True), 1e-12)
    picture = axes.imshow(
        np.maximum(alike[:, order].T, RARE / 10),  # what is below the scale is white, what is missing is not drawn
        cmap=colormaps["viridis"].with_extremes(under="white"),
        norm=LogNorm(RARE, OFTEN),
        aspect="auto",
        interpolation="nearest",
        extent=(first + 0.5, first + len(cells) + 0.5, size - 0.5, -0.5),
    )
    no_more = f"; {left} others were before" if left else ""
    axes.set_title(f"Codes chosen in training: {used} of {size} in the last epoch{no_more}")
    axes.set(xlabel="epoch", ylabel="codes, by their use in the last epoch")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    bar = figure.colorbar(picture, ax=axes, pad=0.01)
    bar.set_label("times as often as if all were alike", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return figure
