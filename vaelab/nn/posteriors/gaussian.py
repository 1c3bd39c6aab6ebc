"""Diagonal Gaussians (Kingma & Welling 2014)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.types import PositiveInt
from vaelab.nn.gaussian import kl_to_standard_normal, reparameterise
from vaelab.nn.posteriors.base import KL, Head, Posterior, Usage
from vaelab.nn.priors import Prior, StandardNormal


@dataclass(eq=False)
class DiagonalGaussian(Posterior):
    """Posterior N(mean, diag(exp(logvar))). mean, logvar: [B, d]; logvar is the natural logarithm of the variance."""

    mean: Tensor
    logvar: Tensor
    name = "gaussian"

    @property
    def code(self) -> Tensor:
        return self.mean

    def rsample(self, noise: Tensor) -> Tensor:
        return reparameterise(self.mean, self.logvar, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        standardised = (z - self.mean) / (0.5 * self.logvar).exp()
        return -0.5 * (standardised.square() + self.logvar + math.log(2 * math.pi)).sum(-1)

    def has_kl(self, prior: Prior) -> bool:
        return isinstance(prior, StandardNormal)

    def kl(self, prior: Prior) -> KL:
        if not self.has_kl(prior):
            return super().kl(prior)
        per_dim = kl_to_standard_normal(self.mean, self.logvar)
        return KL(per_dim.sum(-1), per_dim, exact=True)

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes log q(z|x) from the noise, which loses nothing where the variance is small."""
        z = self.rsample(noise)
        half_log_det = 0.5 * self.logvar.sum(-1)
        if isinstance(prior, StandardNormal):  # its constants cancel with those of q
            return z, 0.5 * (noise.square() - z.square()).sum(-1) + half_log_det
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return z, prior.log_prob(z, labels) + 0.5 * noise.square().sum(-1) + half_log_det + constant

    def usage(self, prior: Prior | None) -> Usage:
        """Measures the mean KL of each dimension, nats."""
        if prior is None or not self.has_kl(prior):
            return super().usage(prior)
        return Usage(kl_to_standard_normal(self.mean, self.logvar).mean(0), "KL", "nats", DEAD_DIMENSION)

    @property
    def factorised(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.logvar


class Diagonal(Head):
    """Makes a diagonal Gaussian of an encoder's output (Kingma & Welling 2014, appendix C.2).

    latent_dim: number d of latent dimensions.
    """

    def __init__(self, latent_dim: PositiveInt):
        super().__init__()
        self.features = 2 * latent_dim

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Makes the posterior of features, [B, 2d], means then log-variances; float32 from here on under autocast."""
        mean, logvar = features.float().chunk(2, 1)
        return DiagonalGaussian(mean, logvar)
