"""Lays out images in rows and columns with words beside them: every figure of images is made of these sheets."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, AREA = 1350, 2.5e6
"""Most pixels that the images of a row, and all images, fill, as long as a side stays within SMALLEST and LARGEST."""
SMALLEST, LARGEST = 48, 128
"""Limits of an image's side, pixels; for oblong ones, of the geometric mean of both. Enlarging is by whole factors."""
GAP = 4
"""Pixels between two images."""
LINE = 18
"""Pixels of a line of words between images."""
MARGIN = 8
"""Pixels of white around everything."""
SMALL, NORMAL, LARGE = 8, 9, 10
"""Font sizes, points: of words at images, at rows, of titles."""
LETTERS = 40
"""Most letters of a row's name that are written."""


def fitted(images: Tensor, columns: int) -> Tensor:
    """Scales images to the size in which `columns` of them are drawn side by side.

    images: [..., C, H, W] in [0, 1]. Small ones are enlarged by a whole factor, large ones
    reduced to the means of areas. Returns [..., 3, h, w] uint8, on the CPU.
    """
    images = images.detach().float().cpu()
    if images.shape[-3] not in (1, 3):  # no colours: the first channel, or without the fourth
        images = images[..., : 3 if images.shape[-3] > 3 else 1, :, :]
    height, width = images.shape[-2:]
    side, room = math.sqrt(height * width), math.sqrt(AREA / images[..., 0, 0, 0].numel())
    wanted = max(min(WIDTH / columns - GAP, room, LARGEST), SMALLEST)
    if side > wanted:
        size = (max(1, round(height * wanted / side)), max(1, round(width * wanted / side)))
        images = F.adaptive_avg_pool2d(images.flatten(0, -4), size).unflatten(0, images.shape[:-3])
    tiles = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    factor = max(1, int(wanted / side), math.ceil(SMALLEST / side))
    for axis in (-2, -1):
        tiles = tiles.repeat_interleave(factor, axis)
    return tiles.expand(*tiles.shape[:-3], 3, -1, -1)


def in_rows(tiles: Tensor, columns: int) -> Tensor:
    """Arranges images [N, C, h, w] uint8 as [rows, columns, C, h, w], with white ones to fill the last row."""
    white = tiles.new_full((-len(tiles) % columns, *tiles.shape[1:]), 255)
    return torch.cat([tiles, white]).unflatten(0, (-1, columns))


class Sheet:
    """A figure of images in rows and columns, to which words and marks are added.

    tiles: [R, S, 3, h, w] uint8. above: pixels of white above each row, [R]. before: pixels of white
    on the left of each column, [S]. Places are pixels right and down from the upper left corner; they may lie
    outside, as `figure` makes room for everything. A pixel of a tile is a pixel of the figure.
    """

    def __init__(self, tiles: Tensor, above: Sequence[int] | None = None, before: Sequence[int] | None = None):
        import numpy as np
        from matplotlib.image import PcolorImage

        rows, columns, _, self.height, self.width = tiles.shape
        self.tops = _starts(self.height, above or [0] + [GAP] * (rows - 1))
        self.lefts = _starts(self.width, before or [0] + [GAP] * (columns - 1))
        self.right, self.bottom = self.lefts[-1] + self.width, self.tops[-1] + self.height
        picture = torch.full((self.bottom, self.right, 3), 255, dtype=torch.uint8)
        for row, top in zip(tiles.permute(0, 1, 3, 4, 2), self.tops, strict=True):
            for tile, left in zip(row, self.lefts, strict=True):
                picture[top : top + self.height, left : left + self.width] = tile
        self._figure, self._axes = style.new(self.right / style.DPI, self.bottom / style.DPI)
        self._figure.set_layout_engine(None)  # all has its place
        self._axes.set_position((0, 0, 1, 1))
        self._axes.set_axis_off()
        edges = (np.arange(self.right + 1.0), np.arange(self.bottom + 1.0))
        self._axes.add_image(PcolorImage(self._axes, *edges, picture.numpy()))  # ten times as fast as imshow
        self._axes.set(xlim=(0, self.right), ylim=(self.bottom, 0))
        self._marks: list[Any] = []

    def centre(self, column: float) -> float:
        """Returns the middle of a column; a fraction lies between two columns."""
        i = min(int(column), max(len(self.lefts) - 2, 0))
        step = self.lefts[i + 1] - self.lefts[i] if len(self.lefts) > 1 else 0
        return self.lefts[i] + (column - i) * step + self.width / 2

    def say(self, x: float, y: float, words: str, ha: str = "center", va: str = "center", **look: Any) -> Any:
        """Writes words at a place, aligned as matplotlib does; look: further arguments of its `text`."""
        look = {"fontsize": SMALL, "color": style.BLACK, "family": "DejaVu Sans"} | look
        text = self._axes.text(x, y, words, ha=ha, va=va, parse_math=False, clip_on=False, **look)
        self._marks.append(text)
        return text

    def name_rows(self, names: Sequence[str]) -> None:
        """Writes the rows' names on the left, cut after LETTERS letters."""
        for name, top in zip(names, self.tops, strict=True):
            words = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
            self.say(-8, top + self.height / 2, words, ha="right", fontsize=NORMAL)

    def name_columns(self, names: Sequence[str], axis: str = "") -> None:
        """Writes the columns' names below, leaving out as many as needed, and below those the axis' name.

        They are written above, too, if the lower ones are far from the first rows.
        """
        sides = [(self.bottom + 4, "top")] + [(-4, "bottom")] * (len(self.tops) > 12)
        for y, va in sides:
            texts = [self.say(self.centre(i), y, name, va=va) for i, name in enumerate(names)]
            widest = max(self._box(text).width for text in texts) + 6
            pitch = min((b - a for a, b in zip(self.lefts, self.lefts[1:], strict=False)), default=widest)
            for i, text in enumerate(texts):
                text.set_visible(i % math.ceil(widest / pitch) == 0)
        if axis:
            self.say(self.right / 2, self.bottom + LINE + 4, axis, va="top", fontsize=NORMAL)

    def block(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draws a filled rectangle."""
        self._rectangle(x, y, width, height, facecolor=colour, linewidth=0)

    def arrow(self, x: float, y: float, colour: str) -> None:
        """Draws a triangle, 12 pixels high, whose tip points down to a place."""
        from matplotlib.patches import Polygon

        self.add(Polygon([(x, y), (x - 9, y - 12), (x + 9, y - 12)], facecolor=colour, linewidth=0))

    def frame(self, row: int, column: int, colour: str) -> None:
        """Draws a frame around an image, in the gap."""
        x, y = self.lefts[column] - 1.5, self.tops[row] - 1.5
        look = {"facecolor": "none", "edgecolor": colour, "linewidth": 3 * 72 / style.DPI, "snap": False}
        self._rectangle(x, y, self.width + 3, self.height + 3, **look)

    def scale(self, row: int, colours: Tensor, top: float) -> None:
        """Draws a bar of colours on the right of a row, from 0 to `top`. colours: [L, 3] in [0, 1]."""
        x, y = self.right + 8, self.tops[row]
        bar = (colours.flip(0)[:, None] * 255).round().to(torch.uint8)
        look: dict[str, Any] = {"interpolation": "nearest", "aspect": "auto", "clip_on": False}
        self._axes.imshow(bar.numpy(), extent=(x, x + 10, y + self.height, y), **look)
        self.say(x + 15, y, f"{top:g}", ha="left", va="top")
        self.say(x + 15, y + self.height, "0", ha="left", va="bottom")

    def add(self, artist: Any) -> None:
        """Adds anything else that matplotlib draws, in the sheet's places."""
        artist.set_clip_on(False)
        self._axes.add_artist(artist)
        self._marks.append(artist)

    def figure(self, title: str | None = None) -> Figure:
        """Returns the figure, as large as all that is on it, below its title."""
        boxes = [self._box(mark) for mark in self._marks]
        left, top = min([0, *(box.x0 for box in boxes)]), min([0, *(self.bottom - box.y1 for box in boxes)])
        right = max([self.right, *(box.x1 for box in boxes)])
        bottom = max([self.bottom, *(self.bottom - box.y0 for box in boxes)])
        if title:
            words = textwrap.fill(title, max(32, int((right - left) / 9)))
            box = self._box(self.say(left, top - 8, words, ha="left", va="bottom", fontsize=LARGE))
            right, top = max(right, box.x1), self.bottom - box.y1
        before, over = math.ceil(-left) + MARGIN, math.ceil(-top) + MARGIN
        width, height = math.ceil(right) + before + MARGIN, math.ceil(bottom) + over + MARGIN
        self._figure.set_size_inches(width / style.DPI, height / style.DPI)
        below = height - over - self.bottom
        self._axes.set_position((before / width, below / height, self.right / width, self.bottom / height))
        self._axes.set(xlim=(0, self.right), ylim=(self.bottom, 0))
        return self._figure

    def _box(self, artist: Any) -> Any:
        canvas: Any = self._figure.canvas
        return artist.get_window_extent(canvas.get_renderer())

    def _rectangle(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        from matplotlib.patches import Rectangle

        self.add(Rectangle((x, y), width, height, **look))


def _starts(size: int, gaps: Sequence[int]) -> list[int]:
    """Returns the starts of things of one size that stand in a line, each after its gap."""
    return list(accumulate((size + gap for gap in gaps[1:]), initial=gaps[0]))
