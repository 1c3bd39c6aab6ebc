"""Controllers: scalars of a model that follow what training measures, as schedules follow its progress.

A controller gives the next value from the present one and a measured error. The value is a buffer of
the model, so it is saved and resumed like a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiplicative(value: Tensor, error: Tensor, rate: Tensor, least: float, most: Tensor) -> Tensor:
    """Returns the value times exp(rate * error), between `least` and `most`; all 0-dim tensors.

    It suits a positive value of unknown size, as in GECO (Rezende & Viola 2018, algorithm 1): an added term
    that is fast enough while the value is large is noise once it is small.
    """
    return torch.minimum((value * (rate * error).exp()).clamp(min=least), most)
