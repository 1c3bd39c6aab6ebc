"""Figures of a codebook: which codes are in use, when, where they lie and what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vaelab.figures import latents, series, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RARE, OFTEN = 0.03, 30.0
"""Ends of the scale of how often a code is chosen, in units of what each has where all are chosen alike: what lies
beyond has the colour of the end."""


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
        np.where(cells == 0, RARE / 2, np.maximum(alike, RARE))[:, order].T,  # below the scale it is white
        cmap=colormaps["viridis"].with_extremes(under="white"),
        norm=LogNorm(RARE, OFTEN),
        aspect="auto",
        interpolation="nearest",
        extent=(first + 0.5, first + len(cells) + 0.5, size - 0.5, -0.5),
    )
    before = f"; {left} others were before" if left else ""
    axes.set_title(f"Codes chosen in training: {used} of {size} in the last epoch{before}")
    axes.set(xlabel="epoch", ylabel="codes, by their use in the last epoch")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _scale(figure, axes, picture)
    return figure


@style.styled
def vectors(codes: Tensor, counts: Tensor, of: str) -> Figure:
    """Draws where the codes lie: their first two principal components, coloured by how often each was chosen.

    codes: [K, D]. counts: [K]; a code that was never chosen is a hollow grey mark. of: what chose, in words.
    """
    from matplotlib.colors import LogNorm

    points, explained = latents.principal_components(codes)
    uses = counts.detach().cpu().double()
    used = uses > 0
    figure, plane = style.new(6.4, 5)
    others = "" if used.all() else ", the hollow ones by none"
    plane.set_title(f"{len(uses):,} code vectors: {int(used.sum()):,} chosen by {of}{others}")
    plane.set(**{f"{axis}label": latents.component(i, explained) for i, axis in enumerate("xy")})
    plane.set_aspect("equal", adjustable="datalim")
    area = float(np.clip(latents.AREA / len(uses), 4, 40))
    plane.scatter(*points[~used].T, s=area, facecolors="none", edgecolors="0.6", linewidths=0.8)
    alike = (uses / uses.sum().clamp_min(1) * len(uses))[used]
    marks = plane.scatter(*points[used].T, s=area, c=alike, norm=LogNorm(RARE, OFTEN), cmap="viridis", linewidths=0)
    _scale(figure, plane, marks)
    return figure


def _scale(figure: Figure, axes: Any, marks: Any) -> None:
    """Draws the scale of how often a code is chosen."""
    bar = figure.colorbar(marks, ax=axes, pad=0.01, extend="both")
    bar.set_label("times as often as if all were alike", fontsize=9)
    bar.ax.tick_params(labelsize=9)
