"""The FactorVAE: a discriminator of the aggregate posterior from the product of its marginals (Kim & Mnih 2018)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vaelab.core.batch import Batch
from vaelab.core.distributed import all_rows
from vaelab.core.errors import UserError
from vaelab.core.types import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, Shape
from vaelab.core.words import Finding
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.aggregate import permuted
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior

TOLD_APART = 0.8
"""Accuracy of the discriminator from which on the aggregate posterior is far from the product of its marginals."""


class FactorVAE(VAE):
    """Minimises the negative ELBO + gamma TC(z), with the total correlation as a discriminator sees it (eq. 2 and 3).

    The discriminator tells draws of z from such whose dimensions are shuffled over the batch; the logarithm of the
    odds that it gives is that of q(z) to the product of its marginals. Deviations: it learns in the same step as the
    VAE, from the same batch, where the paper takes a second one and one step after the other; what it is shuffled
    from are the images of all processes.

    gamma: weight of the total correlation, where no schedule sets it. discriminator_dims: sizes of its layers.
    discriminator_lr, discriminator_betas: learning rate and moving averages of its own in the optimiser.
    """

    least_batch = 2
    scalars = {"beta": 1.0, "gamma": 0.0}
    gamma: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        gamma: NonNegativeFloat,
        discriminator_dims: list[PositiveInt],
        discriminator_lr: PositiveFloat,
        discriminator_betas: tuple[Decay, Decay],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        if self.layout.spherical:
            raise UserError(
                "model=factor: codes whose dimensions are shuffled do not lie on a sphere: use posterior=diagonal "
                "prior=standard"
            )
        self.gamma.fill_(gamma)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([latent_dim, *discriminator_dims]):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear([latent_dim, *discriminator_dims][-1], 1))
        self.own_options = {"discriminator": {"lr": discriminator_lr, "betas": tuple(discriminator_betas)}}

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise twice: for z, and for the order that each dimension is shuffled to."""
        return torch.stack([super().noise(count), super().noise(count)])

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds to the terms of the VAE the log-odds of z, and the discriminator's loss and accuracy."""
        assert noise is not None
        terms, _, z = self.measured(batch, noise[0])
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        odds = functional_call(self.discriminator, frozen, z).float().squeeze(1)
        everywhere, share = permuted(all_rows(z.detach(), batch.share), all_rows(noise[1], batch.share)), batch.share
        shuffled = everywhere if share is None else everywhere[share.offset : share.offset + share.count]
        real, fake = self.discriminator(torch.cat([z.detach(), shuffled])).float().squeeze(1).chunk(2)
        right = (real.detach() > 0).float() + (fake.detach() < 0).float()
        return terms | {
            "total_correlation": odds,
            "discriminator": 0.5 * (F.softplus(-real) + F.softplus(fake)),
            "discriminator_accuracy": 0.5 * right,
        }

    def objective(self, terms: Terms) -> Tensor:
        own = super().objective(terms) + self.gamma * terms["total_correlation"].mean()
        return own + terms["discriminator"].mean()

    def diagnose(self, figures: dict[str, float]) -> list[Finding]:
        accuracy = figures["discriminator_accuracy"]
        if accuracy < TOLD_APART:
            return []
        evidence = f"the discriminator tells {accuracy:.0%} of the draws: the dimensions of z hang together"
        return [
            Finding("codes_not_factorised", evidence, "a larger model.gamma; if the loss swings, a lower rate for both")
        ]
