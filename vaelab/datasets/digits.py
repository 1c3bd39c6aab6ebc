"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vaelab.datasets.base import ImageData
from vaelab.datasets.sources import hold_out
from vaelab.datasets.splits import TensorSplit

TEST_FRACTION = 0.2
"""Fraction of the images of each class that is for testing."""


@dataclass(kw_only=True, eq=False)
class Digits(ImageData):
    """1,797 grey 8x8 images of the digits 0 to 9 by 43 people; a fifth of each class is for testing.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the
    test part, as shipped with scikit-learn. Its grey values 0..16 become 0..255.
    """

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Reads the images that come with scikit-learn."""
        from sklearn.datasets import load_digits

        grey, target = load_digits(return_X_y=True)
        images = torch.as_tensor(grey).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        whole = TensorSplit(images, torch.as_tensor(target, dtype=torch.int64))
        train, test = hold_out(torch.as_tensor(target), round(TEST_FRACTION * len(whole)))
        return whole.subset(train), whole.subset(test)

    @property
    def num_classes(self) -> int:
        return 10
