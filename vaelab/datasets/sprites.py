"""Sprites like those of dSprites, drawn when they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.datasets.base import ImageData
from vaelab.datasets.sources import indices_to_factors, take_test
from vaelab.datasets.splits import Batch

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "position_x": 32, "position_y": 32}
"""The factors and their numbers of values; the last one varies fastest in the index of an image."""
SHAPES = ["square", "ellipse", "heart"]
"""Names of the shapes, which are the labels."""
SIZE = 64
"""Height and width of an image, in pixels."""
TOTAL = math.prod(FACTORS.values())
"""Number of images."""
CANVAS = SIZE - 32 + 1
"""Height and width of a prototype: at each of the 32 positions it lies wholly within the image."""
RADIUS = 16.0
"""Pixels from the centre of a shape of the largest scale to its farthest point."""


@dataclass(kw_only=True, eq=False)
class Sprites(ImageData):
    """737,280 binary 64x64 images: 3 shapes x 6 scales x 40 orientations x 32 x 32 positions.

    They are made after dSprites (Matthey et al., 2017), with these differences: the 40 orientations are
    k * 360/40 degrees, so that none is there twice; positions are one pixel apart; the constant
    colour is left out. A square looks the same after 90 degrees and an ellipse after 180, as in
    dSprites. The label is the shape: square, ellipse, heart.

    test_size: images in the test split, drawn at random once and for all.
    train_size: images to train on, validation included, drawn likewise; None for all the others.
    """

    test_size: PositiveInt
    train_size: PositiveInt | None

    def load(self) -> tuple[SpriteSplit, SpriteSplit]:
        """Chooses the images. Raises UserError if the sizes ask for more than there are."""
        rest, test = take_test(TOTAL, self.test_size)
        if self.train_size is not None:
            if self.train_size > len(rest):
                raise UserError(f"dataset.train_size={self.train_size}: only {len(rest)} images are not for testing")
            if self.train_size < len(rest):
                rest = rest[take_test(len(rest), self.train_size)[1]]
        return SpriteSplit(rest), SpriteSplit(test)

    @property
    def binary(self) -> bool:
        """True: the images are made so."""
        return True

    @property
    def num_classes(self) -> int:
        return FACTORS["shape"]

    @property
    def class_names(self) -> list[str]:
        return list(SHAPES)

    @property
    def factor_sizes(self) -> dict[str, int]:
        return dict(FACTORS)


class SpriteSplit:
    """A split of sprites by their index in the cartesian product of `FACTORS`.

    index: [N] int64 in 0..737,279; all of them if None.
    """

    shape = (1, SIZE, SIZE)
    nbytes = 0

    def __init__(self, index: Tensor | None = None, tape: Tensor | None = None):
        self.index = torch.arange(TOTAL) if index is None else index
        self._tape = _tape() if tape is None else tape

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, index: Tensor) -> SpriteSplit:
        return SpriteSplit(self.index[index.to(self.index.device)], self._tape)

    def to(self, device: torch.device) -> SpriteSplit:
        return SpriteSplit(self.index.to(device), self._tape.to(device))

    def batch(self, index: Tensor) -> Batch:
        factors = indices_to_factors(self.index[index.to(self.index.device)], FACTORS)
        return Batch(draw(self._tape, factors), factors[:, 0], factors)


def draw(tape: Tensor, factors: Tensor) -> Tensor:
    """Draws the images with the given factors, [B, 5] int64, as [B, 1, 64, 64] uint8 of 0 and 255.

    A sprite moved by (x, y) is the flattened image moved by 64 y + x bytes, because no row of a
    prototype is wide enough to run into the next one. So an image is a window of the tape.
    """
    shape, scale, orientation, x, y = factors.unbind(1)
    prototype = (shape * FACTORS["scale"] + scale) * FACTORS["orientation"] + orientation
    start = (prototype + 1) * SIZE**2 - SIZE * y - x
    windows = windows_by_copy if tape.device.type == "cpu" else windows_by_gather
    return windows(tape, start).view(-1, 1, SIZE, SIZE)


def windows_by_copy(tape: Tensor, start: Tensor) -> Tensor:
    """Reads the 4,096 bytes of the tape from each start on, [B] to [B, 4096]: one memcpy each on a CPU."""
    return tape.as_strided((len(tape) - SIZE**2 + 1, SIZE**2), (1, 1)).index_select(0, start)


def windows_by_gather(tape: Tensor, start: Tensor) -> Tensor:
    """Reads the same as `windows_by_copy`, on devices that might write out its overlapping view of 12 GB."""
    return tape[start[:, None] + torch.arange(SIZE**2, device=tape.device)]


@cache
def _tape() -> Tensor:
    """Lays the 720 prototypes out, each in the top left corner of a flattened image, after an empty image."""
    prototypes = draw_prototypes()
    images = torch.zeros(len(prototypes) + 1, SIZE, SIZE, dtype=torch.uint8)
    images[1:, :CANVAS, :CANVAS] = prototypes
    return images.flatten()


def draw_prototypes(supersampling: int = 4) -> Tensor:
    """Draws every shape, scale and orientation, centred: [720, 33, 33] uint8 of 0 and 255.

    A pixel is on if the shape covers at least half of it, judged at supersampling^2 points.
    """
    points = CANVAS * supersampling
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / supersampling - CANVAS / 2
    axis *= 1 - 1e-9  # a point on an outline is inside at every angle, whatever the rounding
    scales = torch.linspace(0.5, 1, FACTORS["scale"], dtype=torch.float64)
    angles = torch.arange(FACTORS["orientation"], dtype=torch.float64) * (2 * math.pi / FACTORS["orientation"])
    prototypes = []
    for inside in (_in_square, _in_ellipse, _in_heart):
        for scale in scales:
            for angle in angles:
                right, down = axis[None, :] / (RADIUS * scale), axis[:, None] / (RADIUS * scale)
                cos, sin = angle.cos(), angle.sin()
                covered = inside(cos * right + sin * down, cos * down - sin * right)
                share = covered.view(CANVAS, supersampling, CANVAS, supersampling).double().mean((1, 3))
                prototypes.append((share >= 0.5).to(torch.uint8) * 255)
    return torch.stack(prototypes)


# The shapes are in coordinates where the farthest point of each lies at distance 1 from the centre.


def _in_square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) <= math.sqrt(0.5)


def _in_ellipse(x: Tensor, y: Tensor) -> Tensor:
    return x.square() + (2 * y).square() <= 1


def _in_heart(x: Tensor, y: Tensor) -> Tensor:
    """Whether points are in the heart (u^2 + v^2 - 1)^3 = u^2 v^3, v upwards, shrunk into the unit circle."""
    u, v = 1.26 * x, 0.25 - 1.26 * y
    return (u.square() + v.square() - 1) ** 3 <= u.square() * v**3
