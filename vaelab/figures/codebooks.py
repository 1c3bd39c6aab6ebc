"""Figures of a codebook: which codes are in use, when, where they lie and what they stand for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.figures import latents, series, style
from vaelab.figures.sheets import GAP, LINE, Sheet, fitted, in_rows
from vaelab.nn.quantizers import perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RARE, OFTEN = 0.03, 30.0
"""Ends of the scale of how often a code is chosen, in units of what each has where all are chosen alike: what lies
beyond has the colour of the end."""
COLUMNS, LEVELS, WIDE = 16, 4, 2
"""Patches, levels, and levels with an axis of their own, in a row."""
WRITTEN = 100
"""Most positions of a map whose losses are written as numbers, too."""


@style.styled
def usage(epochs: Tensor, counts: Mapping[str, Tensor]) -> Figure:
    """Draws which codes are in use, and when: a heat map, on a logarithmic scale, that is white where one is not.

    epochs: [E], whole numbers from 0; of one that is there twice the last counts, and those that are missing are
    grey. counts: how often each code was chosen in an epoch, [E, K], in any unit, by level. Codes are rows, those
    chosen most in the last epoch on top, and those that it does not choose by when they were chosen last.
    """
    size, several = max(level.shape[1] for level in counts.values()), len(counts) > 1
    figure, panels = _panels(len(counts), 7, min(6.0, max(3.2 if several else 2.6, 1.5 + 0.02 * size)))
    for (name, level), axes in zip(counts.items(), panels, strict=True):
        picture, said = _calendar(axes, epochs, level)
        axes.set_title(f"{name}: {said}" if several else f"Codes chosen in training: {said}")
        _scale(figure, axes, picture)
    if several:
        figure.suptitle("Codes chosen in training, by level", fontsize=10)
    return figure


def _calendar(axes: Any, epochs: Tensor, counts: Tensor) -> tuple[Any, str]:
    """Draws a level's use of its codes over time. Returns the picture, and how many are in use, in words."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    first, cells = series.calendar(epochs, counts)
    chosen = np.nan_to_num(cells) > 0
    size, latest = cells.shape[1], len(cells) - chosen[::-1].argmax(0)
    order = np.lexsort((-np.nan_to_num(cells[-1]), -np.where(chosen.any(0), latest, 0)))
    used, left = chosen[-1].sum(), (chosen.any(0) & ~chosen[-1]).sum()

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
    before = f"; {left} more before" if left else ""
    axes.set(xlabel="epoch", ylabel="codes, by their use in the last epoch")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    return picture, f"{used} of {size} in the last epoch{before}"


@style.styled
def vectors(codes: Mapping[str, Tensor], counts: Tensor, of: str) -> Figure:
    """Draws where the codes lie: their first two principal components, coloured by how often each was chosen.

    codes: [K, D], by level. counts: [L, K]; a code that was never chosen is a hollow grey mark. of: what chose, in
    words.
    """
    figure, panels = _panels(len(codes), 6.4, 5)
    for (name, level), uses, plane in zip(codes.items(), counts.cpu().double(), panels, strict=True):
        _scale(figure, plane, _map(plane, level, uses))
        size, used = len(uses), int((uses > 0).sum())
        others = "" if used == size else "\nhollow: chosen by none"
        several = f"{name}: {used:,} of {size:,} chosen{others}"
        plane.set_title(several if len(codes) > 1 else f"{size:,} code vectors: {used:,} chosen by {of}{others}")
    if len(codes) > 1:
        figure.suptitle(f"Code vectors, chosen by {of}, by level", fontsize=10)
    return figure


def _map(plane: Any, codes: Tensor, uses: Tensor) -> Any:
    """Draws a level's codes as points, and returns the marks of those that are in use."""
    from matplotlib.colors import LogNorm

    points, explained = latents.principal_components(codes)
    used = uses > 0
    plane.set(**{f"{axis}label": latents.component(i, explained) for i, axis in enumerate("xy")})
    plane.set_aspect("equal", adjustable="datalim")
    area = float(np.clip(latents.AREA / len(uses), 4, 40))
    plane.scatter(*points[~used].T, s=area, facecolors="none", edgecolors="0.6", linewidths=0.8)
    alike = (uses / uses.sum().clamp_min(1) * len(uses))[used]
    return plane.scatter(*points[used].T, s=area, c=alike, norm=LogNorm(RARE, OFTEN), cmap="viridis", linewidths=0)


@style.styled
def levels(counts: Tensor, names: Sequence[str], of: str) -> Figure:
    """Draws how often the codes of each level were chosen, by frequency: a panel per level.

    counts: [L, K]. names: of the levels. of: what chose, in words.
    """
    columns = min(LEVELS, len(names))
    rows = -(-len(names) // columns)
    figure, grid = style.new(2.6 * columns + 0.6, 2.5 * rows + 0.4, rows, columns, sharex=True, squeeze=False)
    size = counts.shape[1]
    for name, uses, panel in zip(names, counts.cpu().double(), grid.flat, strict=False):
        alike = (uses / uses.sum().clamp_min(1) * size).sort(descending=True).values
        panel.fill_between(np.arange(size), alike.numpy(), step="mid", color=style.BLUE, linewidth=0)
        panel.axhline(1, color=style.GREY, linestyle=(0, (4, 2)), linewidth=1)
        panel.set(xlim=(-0.5, size - 0.5), ylim=(0, None))
        panel.set_title(f"{name}: {int((uses > 0).sum())} of {size},\nperplexity {perplexity(uses).item():.1f}")
    for panel in grid.flat[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("codes, by frequency", fontsize=9)
    figure.supylabel("times as often as if all were alike", fontsize=9)
    figure.suptitle(f"Codes chosen by {of}, by level", fontsize=10)
    return figure


@style.styled
def patches(pictures: Mapping[str, Tensor], codes: Mapping[str, Tensor], title: str) -> Figure:
    """Draws a patch for each of some codes, with the code's number above it, row by row and level by level.

    pictures: [n, C, H, W] in [0, 1], as `mean_patches` gives them, by level; all are drawn in one size. codes: [n],
    by level.
    """
    columns = min(COLUMNS, max(len(own) for own in codes.values()))
    size = max(tuple(own.shape[2:]) for own in pictures.values())
    blocks = [fitted(F.interpolate(own, size, mode="nearest-exact"), columns) for own in pictures.values()]
    blocks = [in_rows(block, columns) for block in blocks]
    tiles = torch.cat(blocks)
    sheet = Sheet(tiles, [LINE] + [LINE + GAP] * (len(tiles) - 1))
    names: list[str] = []
    for (name, own), block in zip(codes.items(), blocks, strict=True):
        for i, code in enumerate(own.tolist()):
            top = sheet.tops[len(names) + i // columns]
            sheet.say(sheet.centre(i % columns), top - 2, str(code), va="bottom")
        names += [name] + [""] * (len(block) - 1)
    if len(codes) > 1:
        sheet.name_rows(names)
    return sheet.figure(title)


def mean_patches(images: Tensor, maps: Tensor, codes: Tensor) -> Tensor:
    """Averages what images show around each of some codes, over all places where a map has the code.

    A patch is what a position of the map covers, and as much on each of its sides; what lies outside of the images
    does not count, and is white where nothing else lies there.

    images: [N, C, H, W] in [0, 1], that maps of codes, [N, h, w], stand for. codes: those wanted, [n]. Returns
    [n, C, 3 H/h, 3 W/w], the quotients rounded up.
    """
    (height, width), (rows, columns) = images.shape[2:], maps.shape[1:]
    tall, wide = -(-height // rows), -(-width // columns)
    place = torch.full((int(max(maps.max(), codes.max())) + 1,), len(codes))  # all other codes share the last place
    place[codes] = torch.arange(len(codes))
    around = (wide, 2 * wide, tall, 2 * tall)
    padded, inside = F.pad(images, around), F.pad(torch.ones(1, 1, height, width), around)
    sums = torch.zeros(len(codes) + 1, images.shape[1], 3 * tall, 3 * wide)
    seen = torch.zeros(len(codes) + 1, 1, 3 * tall, 3 * wide)
    for row in range(rows):
        for column in range(columns):
            top, left, of = row * height // rows, column * width // columns, place[maps[:, row, column]]
            part = (..., slice(top, top + 3 * tall), slice(left, left + 3 * wide))
            sums.index_add_(0, of, padded[part])
            seen.index_add_(0, of, inside[part].expand(len(of), -1, -1, -1))
    return torch.where(seen > 0, sums / seen.clamp_min(1), 1.0)[:-1]


@style.styled
def position_losses(image: Tensor, nats: Mapping[str, Tensor], title: str) -> Figure:
    """Draws what each position of maps of codes costs under a prior, beside the mean image that they are of.

    image: [C, H, W] in [0, 1]. nats: -log p(code | codes before it), a mean over images, [h, w], of each level by name.
    """
    columns = min(LEVELS, len(nats) + 1)
    rows = -(-(len(nats) + 1) // columns)
    figure, grid = style.new(4 * columns, 3.3 * rows + 0.3, rows, columns, squeeze=False)
    left, *panels = grid.flat
    ratio, most = image.shape[1] / image.shape[2], max(float(level.max()) for level in nats.values())
    pixels = image.detach().cpu().movedim(0, -1).squeeze(-1).numpy()
    left.imshow(pixels, vmin=0, vmax=1, extent=_extent(*next(iter(nats.values())).shape), aspect="auto")
    left.set_title("mean image")
    for (name, level), panel in zip(nats.items(), panels, strict=False):
        values = level.detach().cpu().double().numpy()
        heat = panel.imshow(values, cmap="Blues", vmin=0, vmax=most, extent=_extent(*values.shape), aspect="auto")
        panel.set_title("mean loss of each position, nats" if len(nats) == 1 else f"{name}: {values.sum():.2f} nats")
        if values.size <= WRITTEN:
            for (row, column), value in np.ndenumerate(values):
                colour = "white" if value > 0.6 * most else style.BLACK
                panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(heat, ax=panel, pad=0.02).ax.tick_params(labelsize=9)
    for panel in grid.flat:
        panel.set_box_aspect(ratio)
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(nats) :]:
        panel.set_visible(False)
    figure.suptitle(textwrap.fill(title, 110), x=0.01, ha="left", fontsize=9)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Makes a figure of `count` panels of a size in inches, WIDE of them in a row."""
    columns = min(WIDE, count)
    rows = -(-count // columns)
    figure, grid = style.new(width * columns, height * rows, rows, columns, squeeze=False)
    for panel in grid.flat[count:]:
        panel.set_visible(False)
    return figure, list(grid.flat[:count])


def _extent(rows: int, columns: int) -> tuple[float, float, float, float]:
    """The edges of a picture whose pixels' centres are whole numbers."""
    return -0.5, columns - 0.5, rows - 0.5, -0.5


def _scale(figure: Figure, axes: Any, marks: Any) -> None:
    """Draws the scale of how often a code is chosen."""
    bar = figure.colorbar(marks, ax=axes, pad=0.01, extend="both")
    bar.set_label("times as often as if all were alike", fontsize=9)
    bar.ax.tick_params(labelsize=9)
