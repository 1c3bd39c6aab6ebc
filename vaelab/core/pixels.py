"""Pixel values: from the range that a model sees to [0, 1], and to bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor, pixel_range: tuple[float, float], clamp: bool = True) -> Tensor:
    """Images in the data's range mapped to [0, 1], float, any shape.

    What lies outside is clamped unless `clamp` is false: the mean of a Gaussian likelihood is not bound
    to the range.
    """
    low, high = pixel_range
    unit = (images.float() - low) / (high - low)
    return unit.clamp(0, 1) if clamp else unit


def to_bytes(unit: Tensor) -> Tensor:
    """Images in [0, 1] as uint8 on the processor, any shape."""
    return unit.mul(255).round().to(torch.uint8).cpu()
