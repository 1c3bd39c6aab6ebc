"""The InfoVAE: less weight on the KL, more on the aggregate posterior's distance to the prior (Zhao et al. 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import all_rows
from vaelab.core.types import NonNegativeFloat, PositiveInt, Real, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.aggregate import mmd
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class InfoVAE(VAE):
    """Minimises E_q[-log p(x|z)] + (1 - alpha) KL(q(z|x) || p(z)) + (alpha + weight - 1) MMD(q(z), p(z)) (eq. 6).

    The squared maximum mean discrepancy is estimated, without bias, between the draws of z of a batch and as many draws
    from the prior. With alpha = 1 no KL is left (the MMD-VAE), with alpha = 0 and weight = 1 it is the VAE. A learned
    prior learns from the KL alone.

    alpha: how much of the mutual information is given back, at most 1. weight: lambda of the paper. kernel: `rbf` as
    published, or `imq`. Both weights are those where no schedule sets them.
    """

    monitor = "loss"
    best = "min"
    least_batch = 2
    scalars = {"alpha": 0.0, "weight": 1.0}
    alpha: Tensor
    weight: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        alpha: Real,
        weight: NonNegativeFloat,
        kernel: Literal["rbf", "imq"],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        self.alpha.fill_(alpha)
        self.weight.fill_(weight)
        self.kernel = kernel

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise, and latents from the prior: [2, count, d]."""
        return torch.stack([super().noise(count), self.prior.sample(count)])

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds the discrepancy of the global batch to the terms of the VAE."""
        assert noise is not None
        terms, _, z = self.measured(batch, noise[0])
        distance = mmd(all_rows(z, batch.share), all_rows(noise[1], batch.share), self.kernel)
        return terms | {"mmd": distance.expand(len(z))}

    def objective(self, terms: Terms) -> Tensor:
        kl, distance = terms["kl"].mean(), terms["mmd"].mean()
        return terms["reconstruction"].mean() + (1 - self.alpha) * kl + (self.alpha + self.weight - 1) * distance
