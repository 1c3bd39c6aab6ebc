"""DIP-VAE: an aggregate posterior with the covariance of the prior (Kumar, Sattigeri & Balakrishnan 2018)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import all_rows
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.aggregate import covariance
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class DIPVAE(VAE):
    """Minimises the negative ELBO + off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2 (eq. 6 and 7).

    C is a covariance over the batch: of the posterior means (`means`, DIP-VAE-I), or of z (`draws`, DIP-VAE-II), which
    is that of the means plus the average covariance of the posteriors.

    off_diagonal, diagonal: the weights, where no schedule sets them. moments: `means` or `draws`.
    """

    least_batch = 2
    scalars = {"beta": 1.0, "off_diagonal": 0.0, "diagonal": 0.0}
    off_diagonal: Tensor
    diagonal: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        off_diagonal: NonNegativeFloat,
        diagonal: NonNegativeFloat,
        moments: Literal["means", "draws"],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        self.off_diagonal.fill_(off_diagonal)
        self.diagonal.fill_(diagonal)
        self.moments = moments
        if self.posterior.example().factorised is None:
            raise UserError("posterior: the moments of z need a mean and a variance of each dimension: use diagonal")

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds the two sums of squares, each of the global batch, to the terms of the VAE."""
        terms, posterior, _ = self.measured(batch, noise)
        assert posterior.factorised is not None
        mean, logvar = (all_rows(values, batch.share) for values in posterior.factorised)
        moments = covariance(mean)
        if self.moments == "draws":
            moments = moments + logvar.exp().mean(0).diag()
        own = moments.diagonal()
        off_diagonal = moments.square().sum() - own.square().sum()
        count = len(batch.images)
        return terms | {
            "covariance_off_diagonal": off_diagonal.expand(count),
            "covariance_diagonal": (own - 1).square().sum().expand(count),
        }

    def objective(self, terms: Terms) -> Tensor:
        penalty = self.off_diagonal * terms["covariance_off_diagonal"] + self.diagonal * terms["covariance_diagonal"]
        return super().objective(terms) + penalty.mean()
