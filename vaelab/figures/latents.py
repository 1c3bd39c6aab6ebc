"""Figures of a latent space: where codes lie, what each dimension carries, how a codebook is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vaelab.core.metrics import NATS
from vaelab.figures import series, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 20
"""Most classes with a legend: whole numbers of more values are a factor, with a colour bar."""
PALETTE = [
    *style.CYCLE,
    *("#6B2F00", "#80CFB9", "#4B0092", "#F3B6C9", "#787221", "#003959", "#F9D08B", "#7B2D5E", "#BBBBBB"),
    *("#005B43", "#B8DDF5"),
]
"""Colours of the classes: those of the style, then darker and lighter ones."""
AREA = 12_000.0
"""Area, in square points, that all marks of a scatter plot take together, within limits."""
LABELS = 25
"""Most dimensions that have a number each below their bars; of more, every second, third, ... has one."""
MAP_LABELS = 40
"""Most dimensions that have a number each beside their rows of a heat map."""
BELOW_LEGEND = 0.88
"""Fraction of a panel's height above which its legend begins."""
ENOUGH = 10
"""Codes drawn for each that there is, from which one that never came is called dead."""
NAMED = 12
"""Most dead codes, or ranges of them, that are named."""


@style.styled
def scatter(
    points: Tensor, values: Tensor | None, axes: tuple[str, str], title: str, names: Sequence[str] | None
) -> Figure:
    """Draws codes as points in a plane, coloured by class or by a factor.

    points: [N, 2]. values: [N] or None. Whole numbers of at most 20 values are classes, with a legend;
    all others a factor, with a colour bar; a point whose value is NaN is grey. axes: labels of x and y.
    names: of the classes, by value; for a factor, its name alone; None if there are none. One unit is
    as long on x as on y. Points that are not finite are left out.
    """
    from matplotlib.colors import to_rgba_array

    xy = points.detach().cpu().double().numpy()
    finite = np.isfinite(xy).all(1)
    xy = xy[finite]
    figure, plane = style.new(6.4, 5)
    plane.set(xlabel=axes[0], ylabel=axes[1])
    plane.set_title(title)
    plane.set_aspect("equal", adjustable="datalim")
    look: Any = {"s": float(np.clip(AREA / max(1, len(xy)), 3, 25)), "linewidths": 0, "alpha": 0.7}
    if values is None:
        plane.scatter(*xy.T, color=style.BLUE, **look)
        return figure
    level = values.detach().cpu().double().numpy()[finite]
    known = np.isfinite(level)
    plane.scatter(*xy[~known].T, color="0.8", **look)
    xy, level = xy[known], level[known]
    kinds = np.unique(level)
    if len(kinds) <= MOST_CLASSES and (kinds == kinds.round()).all():
        which = np.searchsorted(kinds, level)
        plane.scatter(*xy.T, color=to_rgba_array(PALETTE)[which], **look)
        _legend(figure, [_name(int(kind), names) for kind in kinds])
        return figure
    marks = plane.scatter(*xy.T, c=level, cmap="viridis", **look)
    bar: Any = figure.colorbar(marks, ax=plane, pad=0.02)
    bar.solids.set_alpha(1)
    bar.ax.tick_params(labelsize=9)
    bar.set_label(names[0] if names else "value", fontsize=9)
    return figure


@style.styled
def dimensions(kl: Tensor, variance_of_means: Tensor, mean_of_variances: Tensor, images: int | None = None) -> Figure:
    """Draws what each latent dimension carries, in the order of its KL, with its number below.

    kl: mean KL of each dimension, [d], nats. variance_of_means: Var_x E[z|x], [d]. mean_of_variances:
    E_x Var[z|x], [d]. images: the number that all are means over, for the title. The variances add up to that of
    the aggregate posterior, which is 1 where it is like the prior; a dimension that is not used has it all
    in the second.
    """
    order = torch.argsort(kl.detach().cpu().double().nan_to_num(nan=-1.0), descending=True, stable=True)
    carried, means, variances = (v.detach().cpu().double()[order] for v in (kl, variance_of_means, mean_of_variances))
    count = len(order)
    figure, (top, bottom) = style.new(min(9.0, max(6.5, 2.5 + 0.2 * count)), 4.6, 2, sharex=True)
    _bars(top, carried, style.COLOURS["kl"], "mean KL")
    above = int((carried >= 1).sum())
    over = "the images drawn" if images is None else f"{images:,} images"
    top.set_title(f"KL of each latent dimension over {over}: {above} of {count} above 1 nat")
    top.set_ylabel("nats per image")
    _bars(bottom, means, style.BLUE, "of the means")
    _bars(bottom, variances, style.SKY, "within posteriors", means)
    bottom.set_title("Variance of z: of the means, and within the posteriors")
    bottom.set_ylabel("variance")
    bottom.set_xlabel("dimension, by KL")
    every = -(-count // LABELS)
    numbers = [str(i) for i in order.tolist()[::every]]
    bottom.set_xticks(range(0, count, every), numbers, fontsize=7 if count > 16 else 9)
    bottom.set_xlim(-0.6, count - 0.4)
    for panel, heights, label in ((top, carried, "1 nat"), (bottom, means + variances, "the prior's")):
        panel.axhline(1, color=style.BLACK, linestyle=(0, (4, 2)), linewidth=1, label=label)
        panel.set_ylim(0, 1.06 * max(1.0, float(heights.nan_to_num(0, 0, 0).max())))
        panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return figure


@style.styled
def codebook(counts: Tensor, perplexity: float, of: str) -> Figure:
    """Draws how often each code was chosen: by frequency, and by index, with the codes that never were.

    counts: [K], of a whole split. perplexity: exp(entropy) of their frequencies, marked where it lies on
    the axis of codes: as many codes, used alike, have the same entropy. of: the images, in words. A code that they
    never choose is called dead only where ten were chosen for each that there is.
    """
    from matplotlib.patches import StepPatch
    from matplotlib.ticker import MaxNLocator

    uses = counts.detach().cpu().double().numpy()
    size, dead, most = len(uses), np.flatnonzero(uses == 0), max(1.0, uses.max())
    figure, panels = style.new(9, 3.3, 1, 2, sharey=True)
    edges = np.arange(size + 1) - 0.5
    for panel, heights in zip(panels, (np.sort(uses)[::-1], uses), strict=True):
        panel.add_artist(StepPatch(heights, edges, fill=True, facecolor=style.BLUE, linewidth=0))
        marks = np.where(heights == 0, -0.05 * most, 0)
        panel.add_artist(StepPatch(marks, edges, fill=True, facecolor=style.VERMILION, linewidth=0))
        panel.axhline(
            uses.sum() / size, color=style.GREY, linestyle=(0, (4, 2)), linewidth=1, label="if all were alike"
        )
        panel.set_xlim(edges[0], edges[-1])
        panel.set_ylim(-0.05 * most, 1.2 * most)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ranked, indexed = panels
    if perplexity > 0:
        look: dict[str, Any] = {"color": style.COLOURS["perplexity"], "linewidth": 1.4, "label": "perplexity"}
        ranked.axvline(perplexity - 0.5, ymax=BELOW_LEGEND, **look)
    ranked.set(xlabel="codes, by frequency", ylabel="times chosen")
    ranked.legend(frameon=False, fontsize=8, loc="upper right", ncols=2, borderaxespad=0)
    ranked.set_title(f"{size - len(dead)} of {size} codes chosen, perplexity {perplexity:.1f}\nby {of}")
    word = "dead" if uses.sum() >= ENOUGH * size else "not chosen"
    indexed.set_xlabel("index of the code")
    few = "" if word == "dead" else f":\ntoo few images to call any dead ({uses.sum():,.0f} codes drawn)"
    indexed.set_title(f"{len(dead) or 'No'} code{'s' * (len(dead) != 1)} {word}{few if len(dead) else ''}")
    if len(dead):
        figure.supxlabel(f"{word}: {_ranges(dead.tolist())}", fontsize=9, color=style.VERMILION)
    return figure


def principal_components(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the first two principal components.

    codes: [N, d], N and d at least 1. Returns the scores, [N, 2] in float64 on the CPU, and the
    fractions of the variance that they explain, [2]; zeros where there is no second component or no
    variance. A component's largest weight is positive, so that the picture does not flip between runs.
    Raises ValueError for codes that are not finite.
    """
    codes = codes.detach().cpu().double()
    if not codes.isfinite().all():
        raise ValueError(f"codes: {int((~codes.isfinite()).any(1).sum())} of {len(codes)} are not finite")
    centred = codes - codes.mean(0)
    _, singular, weights = torch.linalg.svd(centred, full_matrices=False)
    variance = singular.square()
    count = min(2, len(variance))
    axes = weights[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scores, explained = torch.zeros(len(codes), 2).double(), torch.zeros(2).double()
    scores[:, :count] = centred @ axes.T
    if variance.sum() > 0:
        explained[:count] = variance[:count] / variance.sum()
    return scores, explained


def component(index: int, explained: Tensor) -> str:
    """Names the axis of a principal component, with the fraction of the variance that it explains."""
    return f"principal component {index + 1} ({float(explained[index]):.0%} of the variance)"


def _bars(axes: Any, heights: Tensor, colour: str, label: str, bottom: Tensor | None = None) -> None:
    """Draws bars 0.8 wide at 0, 1, ...: one collection, as 200 bars of their own would take a second."""
    from matplotlib.collections import PolyCollection

    low = torch.zeros_like(heights) if bottom is None else bottom
    places = torch.arange(len(heights)).double()
    left, right, high = places - 0.4, places + 0.4, low + heights
    corners = [torch.stack(pair, -1) for pair in ((left, low), (left, high), (right, high), (right, low))]
    boxes: Any = torch.stack(corners, 1)[high.isfinite()].numpy()
    axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0, label=label), autolim=False)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=colour, label=label)
        for colour, label in zip(PALETTE, labels, strict=False)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9)


def _name(value: int, names: Sequence[str] | None) -> str:
    return names[value] if names and 0 <= value < len(names) else str(value)


def _ranges(numbers: Sequence[int]) -> str:
    """Writes ascending numbers as ranges, "0, 3–9, 12", up to NAMED of them."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(a) if a == b else f"{a}–{b}" for a, b in parts]
    return ", ".join(texts[:NAMED] + ["…"] * (len(texts) > NAMED))


@style.styled
def kl_per_dimension(epochs: Tensor, kl: Tensor) -> Figure:
    """Draws which latent dimensions came to carry information, and when: a heat map with a line around 1 nat.

    epochs: [E], whole numbers from 0; of one that is there twice the last counts, and those that are
    missing are grey. kl: [E, d], nats. Dimensions are rows, that with most KL at the end on top. The
    line runs between cells with less than 1 nat and cells with as much or more.
    """
    from matplotlib.collections import LineCollection

    first, cells = series.calendar(epochs, kl)
    last = np.nan_to_num(cells[np.isfinite(cells).any(1)][-1:], nan=-1.0)
    if not len(last):
        return style.empty("KL of each latent dimension", "no finite metrics yet")
    order = np.argsort(-last[0], kind="stable")
    cells, count = cells[:, order].T, len(order)
    left, right = first + 0.5, first + cells.shape[1] + 0.5
    finite = cells[np.isfinite(cells)]
    top = max(1.25, float(np.quantile(finite, 0.995)))  # the colour bar always reaches the 1-nat line

    figure, axes = style.new(7, min(7.0, max(2.6, 1.5 + 0.13 * count)))
    axes.set_facecolor("0.85")
    axes.spines[:].set_visible(True)
    extent = (left, right, count - 0.5, -0.5)
    picture = axes.imshow(cells, cmap="Blues", vmin=0, vmax=top, aspect="auto", extent=extent)
    sides: Any = _edges(cells >= 1, np.isfinite(cells), left)
    edges = LineCollection(sides, colors=style.VERMILION, linewidths=1.2 if count <= MAP_LABELS else 0.7)
    axes.add_collection(edges, autolim=False)
    above = int((last[0] >= 1).sum())
    axes.set_title(f"KL of each latent dimension in training: {above} of {count} above 1 nat (line) in the last epoch")
    axes.set_xlabel("epoch")
    axes.set_ylabel("dimension, by final KL")
    every = -(-count // MAP_LABELS)
    axes.set_yticks(range(0, count, every), [str(i) for i in order[::every]], fontsize=7 if count > 8 else 9)
    axes.xaxis.set_major_locator(style.ticks(integer=True))
    bar = figure.colorbar(picture, ax=axes, extend="max" if finite.max() > top else "neither", pad=0.01)
    bar.set_label(NATS, fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.ax.axhline(1, color=style.VERMILION, linewidth=1.5)
    return figure


def _edges(inside: np.ndarray, known: np.ndarray, left: float) -> np.ndarray:
    """Returns the sides between known cells inside and known cells outside.

    Columns are one wide from `left`, rows from -0.5. inside, known: [d, E]. Returns the ends of each side,
    [n, 2, 2]: end, (x, y).
    """
    across = (inside[1:] != inside[:-1]) & known[1:] & known[:-1]
    along = (inside[:, 1:] != inside[:, :-1]) & known[:, 1:] & known[:, :-1]
    i, j = np.nonzero(across)
    flat = np.array([[left + j, i + 0.5], [left + j + 1, i + 0.5]])
    i, j = np.nonzero(along)
    upright = np.array([[left + j + 1, i - 0.5], [left + j + 1, i + 0.5]])
    return np.concatenate([flat, upright], 2).transpose(2, 0, 1)
