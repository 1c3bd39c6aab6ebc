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


def proportional_integral(
    summed: Tensor, error: Tensor, proportional: float, integral: float, least: float, most: float
) -> tuple[Tensor, Tensor]:
    """Returns the next value, and the next sum of errors times the integral gain; all 0-dim tensors.

    The value is least + proportional * sigmoid(error) + the sum, between `least` and `most`; where it would leave
    them the sum stands still, so that it finds back at once (Shao et al. 2020, algorithm 1).
    """
    moved = summed + integral * error
    value = least + proportional * error.sigmoid() + moved
    within = (value >= least) & (value <= most)
    return value.clamp(least, most), torch.where(within, moved, summed)
