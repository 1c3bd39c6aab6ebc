"""Diagonal Gaussians: draws, and KLs to a standard normal and to each other."""

from __future__ import annotations

import torch
from torch import Tensor


def reparameterise(mean: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draws z = mean + sigma * eps, eps ~ N(0, I), through which gradients flow.

    mean, logvar: [B, d]; logvar is the natural logarithm of the variance. noise: eps, [..., B, d]; drawn
    here if None. Returns [..., B, d]. Kingma & Welling 2014, section 2.4.
    """
    return torch.addcmul(mean, (0.5 * logvar).exp(), torch.randn_like(mean) if noise is None else noise)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Computes KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, [B, d], nats.

    Kingma & Welling 2014, appendix B: (mean^2 + variance - 1 - logvar) / 2.
    """
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar)


def kl_of_normals(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    """Computes KL(N(mean, exp(logvar)) || N(other_mean, exp(other_logvar))) of each dimension, [B, d], nats."""
    ratio = (logvar - other_logvar).exp() + (mean - other_mean).square() * (-other_logvar).exp()
    return 0.5 * (ratio - 1 + other_logvar - logvar)
