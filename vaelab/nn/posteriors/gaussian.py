"""Gaussians: with independent dimensions (Kingma & Welling 2014), and with any covariance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.types import PositiveInt
from vaelab.nn.gaussian import kl_to_standard_normal, reparameterise
from vaelab.nn.posteriors.base import KL, Head, Posterior, Usage
from vaelab.nn.priors import Prior, StandardNormal


@dataclass(eq=False)
class Gaussian(Posterior):
    """Base class of the Gaussian posteriors: N(mean, L L^T), L lower triangular, with exp(logvar / 2) on its diagonal.

    mean, logvar: [B, d]; logvar is the natural logarithm of the variance that each dimension has given those before it.
    """

    mean: Tensor
    logvar: Tensor

    @property
    def code(self) -> Tensor:
        return self.mean

    def has_kl(self, prior: Prior) -> bool:
        return isinstance(prior, StandardNormal)

    def kl(self, prior: Prior) -> KL:
        if not self.has_kl(prior):
            return super().kl(prior)
        per_dim = self.kl_per_dim()
        return KL(per_dim.sum(-1), per_dim, exact=True)

    def kl_per_dim(self) -> Tensor:
        """Computes KL(q(z_j|x, z before it) || N(0, 1)) of each dimension, [B, d], nats: they sum to that of z."""
        raise NotImplementedError

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes log q(z|x) from the noise, which loses nothing where the variance is small."""
        z = self.rsample(noise)
        half_log_det = 0.5 * self.logvar.sum(-1)
        if isinstance(prior, StandardNormal):  # its constants cancel with those of q
            return z, 0.5 * (noise.square() - z.square()).sum(-1) + half_log_det
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return z, prior.log_prob(z, labels) + 0.5 * noise.square().sum(-1) + half_log_det + constant

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        """Computes the KL to N(0, I) in closed form less that by this draw: noise, if the prior is near it."""
        if self.has_kl(prior):
            return 0.0
        squares = (self.rsample(noise).square() - noise.square()).sum(-1)
        return (self.kl_per_dim() + 0.5 * self.logvar).sum(-1) - 0.5 * squares

    def usage(self, prior: Prior | None) -> Usage:
        """Measures the mean KL of each dimension, nats."""
        if prior is None or not self.has_kl(prior):
            return super().usage(prior)
        return Usage(self.kl_per_dim().mean(0), "KL", "nats", DEAD_DIMENSION)


@dataclass(eq=False)
class DiagonalGaussian(Gaussian):
    """Posterior N(mean, diag(exp(logvar))). mean, logvar: [B, d]; logvar is the natural logarithm of the variance."""

    name = "gaussian"

    def rsample(self, noise: Tensor) -> Tensor:
        return reparameterise(self.mean, self.logvar, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        standardised = (z - self.mean) / (0.5 * self.logvar).exp()
        return -0.5 * (standardised.square() + self.logvar + math.log(2 * math.pi)).sum(-1)

    def kl_per_dim(self) -> Tensor:
        return kl_to_standard_normal(self.mean, self.logvar)

    @property
    def factorised(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.logvar


Floor = Annotated[float, Field(ge=0, le=10)]
"""Nats under the KL of a dimension; 10 have its standard deviation below 3e-5, which float32 hardly tells from none."""


class Diagonal(Head):
    """Makes a diagonal Gaussian of an encoder's output (Kingma & Welling 2014, appendix C.2).

    latent_dim: number d of latent dimensions. least_kl: nats of KL to N(0, 1) that each dimension has whatever the
    encoder says, by a greatest variance: a posterior that cannot collapse (Razavi et al. 2019, delta-VAE, section 2.1,
    with the independent prior).
    """

    def __init__(self, latent_dim: PositiveInt, least_kl: Floor = 0.0):
        super().__init__()
        self.features = 2 * latent_dim
        self.most_logvar = _logvar_of(least_kl) if least_kl else None

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Makes the posterior of features, [B, 2d], means then log-variances; float32 from here on under autocast."""
        mean, logvar = features.float().chunk(2, 1)
        if self.most_logvar is not None:
            logvar = self.most_logvar - F.softplus(self.most_logvar - logvar)
        return DiagonalGaussian(mean, logvar)


def _logvar_of(kl: float) -> float:
    """Solves (exp(L) - 1 - L) / 2 = kl for L < 0, by Newton's method from the left, where it cannot overshoot."""
    logvar = -2 * kl - 1
    for _ in range(50):
        logvar -= (math.expm1(logvar) - logvar - 2 * kl) / math.expm1(logvar)
    return logvar


@dataclass(eq=False)
class FullGaussian(Gaussian):
    """Posterior N(mean, L L^T) with a full covariance. mean, logvar: [B, d], twice the logarithm of L's diagonal.

    below: [B, d (d - 1) / 2], what L has below its diagonal, row after row.
    """

    below: Tensor
    name = "full gaussian"

    @property
    def factor(self) -> Tensor:
        """The Cholesky factor L of the covariance, [B, d, d]."""
        return self._below + (0.5 * self.logvar).exp().diag_embed()

    @property
    def _below(self) -> Tensor:
        size = self.mean.shape[-1]
        place = torch.zeros(size, size, dtype=torch.int64)
        rows, columns = torch.tril_indices(size, size, -1)
        place[rows, columns] = 1 + torch.arange(len(rows))
        return F.pad(self.below, (1, 0))[..., place.to(self.below.device)]  # what is not below is the 0 in front

    def rsample(self, noise: Tensor) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            return self.mean + torch.einsum("bij,...bj->...bi", self.factor, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        away = (z - self.mean).flatten(0, -3) if z.ndim > 2 else (z - self.mean)[None]
        standardised = torch.linalg.solve_triangular(self.factor, away.permute(1, 2, 0), upper=False)
        squares = standardised.square().sum(1).t().reshape(z.shape[:-1])
        return -0.5 * (squares + (self.logvar + math.log(2 * math.pi)).sum(-1))

    def kl_per_dim(self) -> Tensor:
        """By the chain rule: z_j has variance exp(logvar_j) given those before it, and its mean moves with them."""
        return kl_to_standard_normal(self.mean, self.logvar) + 0.5 * self._below.square().sum(-1)


class Full(Head):
    """Makes a Gaussian with a full covariance of an encoder's output (Kingma & Welling 2019, section 2.5.1).

    latent_dim: number d of latent dimensions.
    """

    def __init__(self, latent_dim: PositiveInt):
        super().__init__()
        self.latent_dim, self.features = latent_dim, 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, features: Tensor) -> FullGaussian:
        """Makes the posterior of features, [B, 2d + d (d - 1) / 2]: means, log-variances, what is below the diagonal.

        All is float32 from here on under any autocast.
        """
        return FullGaussian(*features.float().tensor_split((self.latent_dim, 2 * self.latent_dim), 1))
