"""Made-up images of any shape, for tests and for trying things out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaelab.core.types import PositiveInt, Shape
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import TensorSplit


@dataclass(kw_only=True, eq=False)
class Fake(ImageData):
    """Soft blobs, the same ones every time: one per image, of which the class says where about it lies.

    image_shape: (channels, height, width). size: training images, validation included; there are
    a fifth as many to test on. classes: number of classes, or None for images without labels. label_names: names of
    attributes that a label has in the place of classes, each of which is there in half of the images, as a blob.
    """

    image_shape: Shape
    size: PositiveInt
    classes: PositiveInt | None
    label_names: list[str] | None = None

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Draws the training and the test images."""
        return self._draw(self.size, seed=1), self._draw(-(-self.size // 5), seed=2)

    @property
    def num_classes(self) -> int | None:
        return None if self.label_names else self.classes

    @property
    def found(self) -> dict[str, Any]:
        return {"label_names": self.label_names} if self.label_names else {}

    def _draw(self, count: int, seed: int) -> TensorSplit:
        """Draws blobs on a circle around the centre, at the angle of their class or attribute, each a little off."""
        generator = torch.Generator().manual_seed(seed)
        off = 0.05 * torch.randn(2, count, generator=generator)
        strength = 0.5 + 0.5 * torch.rand(count, self.image_shape[0], 1, 1, generator=generator)
        if self.label_names:
            labels = torch.randint(2, (count, len(self.label_names)), generator=generator).float()
            every = torch.arange(len(self.label_names)) * (2 * math.pi / len(self.label_names))
            blobs = (torch.stack([self._blobs(angle, off) for angle in every], 1) * labels[..., None, None]).amax(1)
        else:
            spots = self.classes or count
            labels = torch.arange(count) % spots
            blobs = self._blobs(labels * (2 * math.pi / spots), off)
        images = (255 * strength * blobs[:, None]).round().to(torch.uint8)
        return TensorSplit(images, labels if self.classes or self.label_names else None)

    def _blobs(self, angle: Tensor, off: Tensor) -> Tensor:
        """Draws a blob per image, [N, H, W], at an angle, [N] or [], and `off` its place, [2, N]."""
        _, height, width = self.image_shape
        y = (0.5 + 0.3 * angle.sin() + off[0])[:, None, None] - (torch.arange(height)[:, None] + 0.5) / height
        x = (0.5 + 0.3 * angle.cos() + off[1])[:, None, None] - (torch.arange(width) + 0.5) / width
        return torch.exp((y.square() + x.square()) / (-2 * 0.12**2))
