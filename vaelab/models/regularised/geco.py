"""GECO: the least rate at a given reconstruction, with beta found by training (Rezende & Viola 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import global_mean
from vaelab.core.types import Decay, Growth, PositiveFloat, PositiveInt, Real, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.regularised.held import Held, Holding
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.controllers import multiplicative
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior

MOST = 1e4
"""Greatest value of beta, and the inverse of the least: a factor brings it back from neither zero nor infinity."""
PRICE = 10.0
"""What a nat off the constraint costs, in nats of the objective, where epochs are compared to choose the best."""

HELD = Held(
    "target_missed", "reconstruction", "target", "the reconstruction", "its target",
    below="more epochs or a larger model.rate; a smaller model.target if beta is still rising and the KL near 0",
    above="more epochs or a larger model.rate; a larger model.target if beta is near 0: the network does not reach it",
)  # fmt: skip


class GECO(Holding, VAE):
    """Minimises the KL subject to a mean reconstruction of at most `target` nats per image (algorithm 1).

    The Lagrangian is KL + lambda (reconstruction - target). It is minimised divided by lambda, as reconstruction +
    beta KL with beta = 1 / lambda, so that the value that is found can be held against a beta-VAE's. Deviations: the
    constraint is the negative log-likelihood itself, in the place of a squared error below a tolerance; beta moves in
    every step.

    target: nats per image. rate: relative growth of beta per step and nat that the moving average of the
    reconstruction is below its target. decay: of the moving average. beta: what it starts from.
    """

    monitor = "constrained"
    best = "min"
    scalars = {"beta": 1.0, "target": 0.0, "rate": 0.0}
    held = HELD
    target: Tensor
    rate: Tensor
    room: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        target: Real,
        rate: Growth,
        decay: Decay,
        beta: PositiveFloat,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        for name, value in {"target": target, "rate": rate, "beta": beta}.items():
            getattr(self, name).fill_(value)
        self.decay = decay
        self.register_buffer("room", torch.tensor(0.0))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds to the terms of the VAE how far the mean reconstruction over all processes is below its target."""
        terms = super().terms(batch, noise)
        mean = global_mean(terms["reconstruction"].mean(), batch.share)
        return terms | {"room": self.target - mean.detach()}

    def observe(self, batch: Batch, terms: Terms) -> Tensor:
        return terms["room"]

    def learn(self, observed: Sequence[Tensor]) -> None:
        """Moves beta by the moving average of how far the mean reconstruction is below its target."""
        now = torch.stack(list(observed)).mean()
        self.room.copy_(self.decay * self.room + (1 - self.decay) * now)
        most = torch.full_like(self.beta, MOST)
        self.beta.copy_(multiplicative(self.beta, self.room, self.rate, 1 / MOST, most))

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        gap = means["reconstruction"] - means["target"]
        return super().derived(means, vectors) | {"target_gap": gap, "constrained": means["kl"] + PRICE * abs(gap)}
