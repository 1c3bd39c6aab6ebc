"""Diagonal Gaussians: the approximate posterior of every continuous variant."""

from __future__ import annotations

import torch
from torch import Tensor


def reparameterise(mean: Tensor, logvar: Tensor) -> Tensor:
    """A draw z = mean + sigma * eps, eps ~ N(0, I), through which gradients flow.

    mean, logvar: [B, d]; logvar is the natural logarithm of the variance. Returns [B, d].
    Kingma & Welling 2014, section 2.4.
    """
    return torch.addcmul(mean, (0.5 * logvar).exp(), torch.randn_like(mean))


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, [B, d], nats.

    Kingma & Welling 2014, appendix B: (mean^2 + variance - 1 - logvar) / 2.
    """
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar)
