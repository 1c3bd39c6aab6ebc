"""A data set of one's own: bars, upright or lying, at a place of their own each.

A file of arrays needs no class (dataset=arrays), nor does a folder of images (dataset=folder) or a table
(dataset=table). A class is for what must be read, drawn or labelled in a way of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vaelab.core.types import PositiveInt
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import TensorSplit


@dataclass(kw_only=True, eq=False)
class Mine(ImageData):
    """Draws bars in square images. size: images to train on, validation included. side: pixels of a side."""

    size: PositiveInt
    side: PositiveInt

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Returns the images to train on, from which validation is taken, and those to test on."""
        return self._drawn(self.size, seed=0), self._drawn(self.size // 5 + 1, seed=1)

    def _drawn(self, count: int, seed: int) -> TensorSplit:
        generator = torch.Generator().manual_seed(seed)
        images = torch.zeros(count, 1, self.side, self.side, dtype=torch.uint8)
        labels = torch.randint(2, (count,), generator=generator)
        places = torch.randint(self.side, (count,), generator=generator)
        for image, upright, place in zip(images, labels.tolist(), places.tolist(), strict=True):
            (image[0, :, place] if upright else image[0, place]).fill_(255)
        return TensorSplit(images, labels)  # images [N, C, H, W], bytes or floats in [0, 1]; labels [N] int64, or None

    @property
    def num_classes(self) -> int:
        return 2

    @property
    def class_names(self) -> list[str]:
        return ["lying", "upright"]
