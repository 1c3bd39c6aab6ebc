"""Figures of images: reconstructions and their errors, samples, classes, uncertainty, codes, data.

Images are [N, C, H, W] in [0, 1], C 1 or 3; any size is brought to one that can be seen. Errors and
deviations are in the same unit: 1 is from black to white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.figures import style
from vaelab.figures.sheets import GAP, LINE, NORMAL, Sheet, fitted, in_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
GRID = "#C8C8C8"
BLOCK = 14
"""Pixels of white between blocks of rows that belong together."""


@style.styled
def reconstructions(images: Tensor, made: Tensor, columns: int = COLUMNS) -> Figure:
    """Draws images above their reconstructions above |difference|, a mean over channels; the MSE on top.

    images, made: [N, C, H, W]. The scale of the differences goes from 0 to the largest, rounded up.
    """
    images, made = _plain(images), _plain(made)
    difference = (images - made).abs().mean(1)
    top = _rounded_up(difference.max().item())
    mse = (images - made).square().flatten(1).mean(1)
    rows = {"image": images, "reconstruction": made, "|difference|": _shades(difference / top)}
    sheet = _blocks(rows, columns, [f"{value:#.3g}" for value in mse.tolist()])
    sheet.scale(2, _ramp(), top)
    return sheet.figure("Reconstructions, with the mean squared error per pixel")


@style.styled
def uncertainty(images: Tensor, means: Tensor, deviations: Tensor) -> Figure:
    """Draws images above the mean and the standard deviation of decoded draws from their posterior.

    All [N, C, H, W]; deviations: per pixel, shown as the mean over channels, on a scale from 0 to the
    largest, rounded up.
    """
    spread = _plain(deviations).mean(1)
    top = _rounded_up(spread.max().item())
    rows = {"image": _plain(images), "mean": _plain(means), "standard deviation": _shades(spread / top)}
    sheet = _blocks(rows, COLUMNS)
    sheet.scale(2, _ramp(), top)
    return sheet.figure("Decoded draws from the posterior: mean and standard deviation")


@style.styled
def code_maps(images: Tensor, made: Tensor, maps: dict[str, Tensor], num_embeddings: int) -> Figure:
    """Draws images above their reconstructions above the codes they are made from, each code in its colour.

    images, made: [N, C, H, W]. maps: by level, indices of codes, [N, h, w], of num_embeddings each. Codes of
    neighbouring numbers have unlike colours: likeness means nothing.
    """
    rows, colours = {"image": _plain(images), "reconstruction": _plain(made)}, _code_colours(num_embeddings)
    for name, indices in maps.items():
        pictures = colours[indices.cpu()].permute(0, 3, 1, 2)
        rows[name] = F.interpolate(pictures, tuple(images.shape[2:]), mode="nearest-exact")
    sheet = _blocks(rows, COLUMNS)
    sizes = {" × ".join(map(str, indices.shape[1:])) for indices in maps.values()}
    size = f"{sizes.pop()} codes per image" if len(maps) == 1 else f"Codes of {len(maps)} levels"
    used = sum(len(indices.unique()) for indices in maps.values())
    of = f"{used} of {num_embeddings * len(maps)} codes in these images"
    return sheet.figure(f"{size}, a colour each: {of}")


@style.styled
def levels(images: Tensor, made: dict[str, Tensor]) -> Figure:
    """Draws images above what is decoded of more and more of their levels, with the mean squared error of each row.

    images: [N, C, H, W]. made: by the last level that counts, [N, C, H, W].
    """
    rows = {"image": _plain(images)}
    for number, (name, picture) in enumerate(made.items()):
        error = (picture - images).square().mean().item()
        rows[f"{'and ' * (number > 0)}{name}\nerror {error:#.2g}"] = _plain(picture)
    return _blocks(rows, COLUMNS).figure("Decoded from the first levels of codes, the others zero")


@style.styled
def errors(mse: Tensor) -> Figure:
    """Draws a histogram of the images' errors, with mean and median.

    mse: [N], per pixel; what is not finite is left out.
    """
    mse = mse.detach().double().cpu().flatten()
    finite = mse[mse.isfinite()]
    figure, axes = style.new(6, 3.2)
    axes.set(xlabel="mean squared error per pixel", ylabel="images")
    axes.set_title(f"Errors of the reconstructions of {len(finite):,} images")
    if not len(finite):
        return figure
    low, high = finite.min().item(), finite.max().item()
    if high - low <= 1e-6 * high:
        low, high = 0.0, 2 * high or 1.0
    axes.hist(finite.numpy(), min(60, max(10, math.isqrt(len(finite)))), (low, high), color=style.SKY)
    for name, value, colour, line in (
        ("mean", finite.mean().item(), style.VERMILION, "-"),
        ("median", finite.quantile(0.5).item(), style.BLACK, "--"),
    ):
        axes.axvline(value, color=colour, linestyle=line, label=f"{name} {value:#.3g}")
    axes.legend()
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    return figure


@style.styled
def samples(images: Tensor, columns: int = COLUMNS, title: str | None = None) -> Figure:
    """Draws images [N, C, H, W], row by row."""
    columns = min(columns, len(images))
    return Sheet(in_rows(fitted(images, columns), columns)).figure(title)


@style.styled
def real_and_generated(real: Tensor, generated: Tensor, columns: int = COLUMNS, title: str | None = None) -> Figure:
    """Draws two sets of images, [N, C, H, W], side by side in up to `columns` columns each."""
    count = max(len(real), len(generated))
    columns = min(columns, _columns(count, columns))
    sides = [in_rows(fitted(images, 2 * columns), columns) for images in (real, generated)]
    rows = max(len(side) for side in sides)
    sides = [torch.cat([s, s.new_full((rows - len(s), *s.shape[1:]), 255)]) for s in sides]
    between = [0] + [GAP] * (columns - 1)
    sheet = Sheet(torch.cat(sides, 1), before=[*between, 24, *between[1:]])
    for name, column in (("real", 0), ("generated", columns)):
        sheet.say(sheet.lefts[column], -4, name, ha="left", va="bottom", fontsize=NORMAL)
    return sheet.figure(title)


@style.styled
def classes(
    images: Tensor, names: Sequence[str], title: str | None = None, columns: Sequence[str] | None = None
) -> Figure:
    """Draws a row of images per class, or of another kind, with its name. images: [K, n, C, H, W]. columns: names."""
    sheet = Sheet(fitted(images, images.shape[1]))
    sheet.name_rows(names)
    if columns:
        sheet.name_columns(columns)
    return sheet.figure(title)


@style.styled
def nearest(images: Tensor, neighbours: Tensor, distances: Tensor, title: str) -> Figure:
    """Draws images above their neighbours, [N, C, H, W] each, with the distance between them, [N]."""
    rows = {"sample": _plain(images), "nearest": _plain(neighbours)}
    sheet = _blocks(rows, COLUMNS + 2, [f"{value:.2f}" for value in distances.tolist()])
    return sheet.figure(title)


@style.styled
def data(images: Tensor, histograms: Tensor, names: Sequence[str]) -> Figure:
    """Draws a row per class: some of its images, and how often each level of its pixels occurs.

    images: [K, n, C, H, W]. histograms: counts of pixels in bins from 0 to 1, [K, bins]; they are drawn
    as log(1 + count), all on one scale, with a line at each hundredfold. names: [K].
    """
    from matplotlib.collections import PolyCollection

    sheet = Sheet(fitted(images, images.shape[1] + 3))
    sheet.name_rows(names)
    heights = histograms.detach().double().cpu().log1p()
    most = heights.max().clamp_min(1e-9)
    left, width = sheet.right + 28, max(150, 2 * sheet.width)
    edges = torch.linspace(left, left + width, heights.shape[1] + 1).double().repeat_interleave(2)
    outlines = []
    for row, top in zip(heights / most, sheet.tops, strict=True):
        y = top + sheet.height * (1 - F.pad(row.repeat_interleave(2), (1, 1)))
        outlines.append(torch.stack([edges, y], 1).numpy())
        sheet.block(left, top + sheet.height - 0.5, width, 1, style.GREY)
    sheet.add(PolyCollection(outlines, facecolor=style.BLUE, linewidth=0))
    for level in (0, 0.5, 1):
        sheet.say(left + level * width, sheet.bottom + 4, f"{level:g}", va="top")
    sheet.say(left + width / 2, sheet.bottom + LINE + 4, "level of a pixel", va="top", fontsize=NORMAL)
    written_up_to = LINE / 2  # height of the last label
    for power in range(1, int(math.log10(max(1.0, histograms.max().item()))) + 1, 2):
        up = sheet.height * math.log1p(10**power) / float(most)
        for top in sheet.tops:
            sheet.block(left, top + sheet.height - up, width, 1, GRID)
        if written_up_to + LINE <= up <= sheet.height - 1.5 * LINE:
            sheet.say(left + width + 5, sheet.tops[0] + sheet.height - up, f"{10**power:,}", ha="left")
            written_up_to = up
    sheet.say(left + width + 5, sheet.tops[0], f"{int(histograms.max()):,}", ha="left", va="top")
    sheet.say(left + width + 5, sheet.tops[0] + sheet.height, "0", ha="left", va="bottom")
    sheet.say(
        left, -4, "number of pixels, log(1 + count), one scale in all rows", ha="left", va="bottom", fontsize=NORMAL
    )
    return sheet.figure()


def _blocks(rows: dict[str, Tensor], columns: int, captions: Sequence[str] = ()) -> Sheet:
    """Lays out pictures that belong together one below the other, [N, C, H, W] each, in blocks of `columns`.

    captions: above the first row's pictures, [N].
    """
    count = len(next(iter(rows.values())))
    columns = min(columns, count)
    parts = [in_rows(fitted(pictures, columns), columns) for pictures in rows.values()]
    tiles = torch.stack(parts, 1).flatten(0, 1)
    head = LINE if captions else 0
    above = [head] + [GAP] * (len(parts) - 1)
    above += [head + BLOCK, *above[1:]] * (len(tiles) // len(parts) - 1)
    pitch = max((len(caption) for caption in captions), default=0) * 9  # a letter takes at most 9 pixels
    sheet = Sheet(tiles, above, [0] + [max(GAP, pitch - tiles.shape[-1])] * (columns - 1))
    sheet.name_rows([*rows] * (len(tiles) // len(parts)))
    for i, caption in enumerate(captions):
        top = sheet.tops[i // columns * len(parts)]
        sheet.say(sheet.centre(i % columns), top - 2, caption, va="bottom")
    return sheet


def _columns(count: int, most: int) -> int:
    """Returns the columns, up to `most`, of an about square picture whose last row is as full as can be."""
    least = math.isqrt(count - 1) + 1
    return min(range(least, max(least, min(most, int(1.5 * least))) + 1), key=lambda columns: -count % columns)


def _plain(images: Tensor) -> Tensor:
    return images.detach().float().cpu()


def _rounded_up(value: float) -> float:
    """Rounds up to two digits, 1 for 0: so a scale ends exactly at the number that it shows."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-6) * unit:.2g}")


def _ramp() -> Tensor:
    """Returns the colours of a scale, [256, 3] in [0, 1], from nothing (black) to the most."""
    import matplotlib
    import numpy as np

    return torch.from_numpy(matplotlib.colormaps["magma"](np.arange(256))[:, :3]).float()


def _shades(values: Tensor) -> Tensor:
    """Turns values [N, H, W] in [0, 1] into colours, [N, 3, H, W]."""
    return _ramp()[(values.clamp(0, 1) * 255).round().long()].permute(0, 3, 1, 2)


def _code_colours(count: int) -> Tensor:
    """Returns a colour for each code, [count, 3] in [0, 1].

    Hues turn by the golden ratio, which keeps the first n of them far apart for any n.
    """
    import numpy as np
    from matplotlib.colors import hsv_to_rgb

    i = np.arange(count)
    hues, saturations, values = i * 0.618034 % 1, np.array([0.85, 0.5, 0.95])[i % 3], np.array([0.95, 0.75])[i % 2]
    return torch.from_numpy(hsv_to_rgb(np.stack([hues, saturations, values], 1))).float()
