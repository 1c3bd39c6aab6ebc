"""The beta-VAE with controlled capacity (Burgess et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import global_mean
from vaelab.core.types import Growth, NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.regularised.held import Held, Holding
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.controllers import multiplicative
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior

LEAST = 1e-6
"""Smallest value of the multiplier: a factor cannot bring it back from zero, where a C out of reach leads it."""

HELD = Held(
    "capacity_missed", "kl", "capacity", "KL", "C",
    below="a slower ramp (schedule.capacity.over), or a smaller model.capacity or larger model.latent_dim",
    above="a slower ramp (schedule.capacity.over), or a larger model.penalty or model.gamma",
)  # fmt: skip


class CapacityVAE(Holding, VAE):
    """Minimises E_q[-log p(x|z)] subject to mean KL = C, with C scheduled (eq. 8).

    The paper's loss is reconstruction + gamma |KL - C|. Since gamma |g| is the maximum of
    multiplier * g over |multiplier| <= gamma, every gamma above the constraint's multiplier has the
    same minimiser, but gradient descent does not reach it at a large gamma: the penalty's gradient
    has the constant size gamma and drowns the reconstruction's. `lagrangian` solves the same
    saddle-point problem by an augmented Lagrangian, reconstruction
    + multiplier * ((KL - C) + penalty / 2 * (KL - C)^2), whose multiplier is adapted at every step:
    multiplier *= exp(rate * (KL - C)), at most gamma. The factor, as in GECO (Rezende & Viola 2018),
    suits a multiplier that falls from about 10 to 0.3 as C rises: an added term that is fast enough
    at the start is noise at the end.

    capacity: C in nats, where no schedule sets it. gamma: weight of the penalty (l1) or bound of
    the multiplier (lagrangian). constraint: `lagrangian`, or `l1` as published. penalty: weight of
    the quadratic relative to the multiplier, 1/nats. multiplier_rate: relative growth of the
    multiplier per step and nat.
    """

    scalars = {"capacity": 0.0, "gamma": 0.0, "multiplier": 1.0, "penalty": 0.0, "multiplier_rate": 0.0}
    held = HELD
    capacity: Tensor
    gamma: Tensor
    multiplier: Tensor
    penalty: Tensor
    multiplier_rate: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        capacity: NonNegativeFloat,
        gamma: NonNegativeFloat,
        constraint: Literal["l1", "lagrangian"],
        penalty: NonNegativeFloat,
        multiplier_rate: Growth,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        self.constraint = constraint
        self.capacity.fill_(capacity)
        self.gamma.fill_(gamma)
        self.penalty.fill_(penalty)
        self.multiplier_rate.fill_(multiplier_rate)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds to the terms of the VAE how far the mean KL over all processes is off C."""
        terms = super().terms(batch, noise)
        return terms | {"gap": global_mean(terms["kl"].mean(), batch.share) - self.capacity}

    def objective(self, terms: Terms) -> Tensor:
        gap = terms["gap"]
        if self.constraint == "l1":
            cost = self.gamma * gap.abs()
        else:
            cost = self.multiplier * (gap + 0.5 * self.penalty * gap.square())
        return terms["reconstruction"].mean() + cost

    def observe(self, batch: Batch, terms: Terms) -> Tensor:
        return terms["gap"].detach()

    def learn(self, observed: Sequence[Tensor]) -> None:
        """Moves the multiplier by how far the mean KL is off C."""
        gap = observed[0] if len(observed) == 1 else torch.stack(list(observed)).mean()
        if self.constraint == "l1":  # its multiplier is the slope of gamma |gap|
            self.multiplier.copy_(self.gamma * gap.sign())
        else:
            self.multiplier.copy_(multiplicative(self.multiplier, gap, self.multiplier_rate, LEAST, self.gamma))

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        return super().derived(means, vectors) | {"capacity_gap": means["kl"] - means["capacity"]}
