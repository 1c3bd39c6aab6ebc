"""The beta-TCVAE: the KL in three parts (Chen, Li, Grosse & Duvenaud 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import all_rows
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.aggregate import log_aggregate, minibatch_weighted, stratified
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior

PARTS = ("kl_index_code_mi", "kl_total_correlation", "kl_dimension_wise")
"""Names of the three parts of the KL, in the order of the weights; those of an evaluation."""


class TCVAE(VAE):
    """Minimises E_q[-log p(x|z)] + alpha I(x; z) + beta TC(z) + gamma sum_j KL(q(z_j) || p(z_j)) (eq. 4).

    The three are what the average KL is the sum of: index-code mutual information, total correlation, dimension-wise
    KL. They are estimated from the batch, with one draw of z per image: `weighted` as published, or `stratified`,
    whose q(z) is unbiased. Deviation: the objective is written as reconstruction + KL + (alpha - 1) I + (beta - 1) TC
    + (gamma - 1) ..., the same in expectation, with the KL in closed form: with all weights at 1 it is the VAE's.

    alpha, beta, gamma: the weights, where no schedule sets them. sampling: `weighted` or `stratified`.
    """

    least_batch = 2
    scalars = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    alpha: Tensor
    gamma: Tensor
    num_images: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        gamma: NonNegativeFloat,
        sampling: Literal["weighted", "stratified"],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        for name, value in {"alpha": alpha, "beta": beta, "gamma": gamma}.items():
            getattr(self, name).fill_(value)
        self.sampling = sampling
        self.register_buffer("num_images", torch.tensor(1.0))
        if self.posterior.example().factorised is None:
            raise UserError("posterior: the total correlation needs the density of each dimension: use diagonal")

    def start_from(self, mean_image: Tensor, spread: float, count: int) -> None:
        super().start_from(mean_image, spread, count)
        self.num_images.fill_(count)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds the three parts of the KL, each the estimate of the global batch, to the terms of the VAE."""
        terms, posterior, z = self.measured(batch, noise)
        assert posterior.factorised is not None
        mean, logvar = posterior.factorised
        each = posterior.log_prob(z), self.prior.log_prob(z, batch.labels)
        columns = all_rows(torch.cat([z, mean, logvar, torch.stack(each, 1)], 1), batch.share)
        z, mean, logvar, own, prior = columns.split((*3 * (self.latent_dim,), 1, 1), 1)
        weights = minibatch_weighted if self.sampling == "weighted" else stratified
        joint, marginals = log_aggregate(z, mean, logvar, weights(len(z), self.num_images))
        parts = own[:, 0] - joint, joint - marginals, marginals - prior[:, 0]
        return terms | {name: part.mean().expand(len(each[0])) for name, part in zip(PARTS, parts, strict=True)}

    def objective(self, terms: Terms) -> Tensor:
        weights = zip((self.alpha, self.beta, self.gamma), PARTS, strict=True)
        change = torch.stack([(weight - 1) * terms[name].mean() for weight, name in weights]).sum()
        return terms["reconstruction"].mean() + terms["kl"].mean() + change
