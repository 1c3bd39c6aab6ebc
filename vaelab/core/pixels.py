"""Pixel values: from the range that a model sees to [0, 1], and to bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor, pixel_range: tuple[float, float], clamp: bool = True) -> Tensor:
    """Maps images from the data's range to [0, 1], float, any shape.

    Values outside are clamped unless `clamp` is false: the mean of a Gaussian likelihood is not bound
    to the range.
    """
    low, high = pixel_range
    unit = (images.float() - low) / (high - low)
    return unit.clamp(0, 1) if clamp else unit


def to_bytes(unit: Tensor) -> Tensor:
    """Converts images in [0, 1] to uint8 on the CPU, any shape."""
    return unit.mul(255).round().to(torch.uint8).cpu()
