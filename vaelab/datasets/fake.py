"""Made-up images of any shape, for tests and for trying things out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vaelab.core.types import PositiveInt, Shape
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import TensorSplit


@dataclass(kw_only=True, eq=False)
class Fake(ImageData):
    """One soft blob per image, the same ones every time; the class says where about it lies.

    image_shape: (channels, height, width). size: training images, validation included; there are
    a fifth as many to test on. classes: number of classes, or None for images without labels.
    """

    image_shape: Shape
    size: PositiveInt
    classes: PositiveInt | None

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Draws the training and the test images."""
        return self._draw(self.size, seed=1), self._draw(-(-self.size // 5), seed=2)

    @property
    def num_classes(self) -> int | None:
        return self.classes

    def _draw(self, count: int, seed: int) -> TensorSplit:
        """Draws blobs on a circle around the centre, at the angle of their class, each a little off."""
        channels, height, width = self.image_shape
        generator = torch.Generator().manual_seed(seed)
        spots = self.classes or count
        labels = torch.arange(count) % spots
        angle = labels * (2 * math.pi / spots)
        off = 0.05 * torch.randn(2, count, generator=generator)
        y = (0.5 + 0.3 * angle.sin() + off[0])[:, None, None] - (torch.arange(height)[:, None] + 0.5) / height
        x = (0.5 + 0.3 * angle.cos() + off[1])[:, None, None] - (torch.arange(width) + 0.5) / width
        blobs = torch.exp((y.square() + x.square()) / (-2 * 0.12**2))
        strength = 0.5 + 0.5 * torch.rand(count, channels, 1, 1, generator=generator)
        images = (255 * strength * blobs[:, None]).round().to(torch.uint8)
        return TensorSplit(images, labels if self.classes else None)
