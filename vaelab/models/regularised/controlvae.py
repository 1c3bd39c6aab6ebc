"""The ControlVAE: a KL of C nats, with beta moved by a PI controller (Shao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import global_mean
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.regularised.geco import PRICE
from vaelab.models.regularised.held import Held, Holding
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.controllers import proportional_integral
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior

HELD = Held(
    "capacity_missed", "kl", "capacity", "KL", "C",
    below="more epochs or a larger model.integral; if beta is at model.beta_min, a smaller model.capacity",
    above="more epochs or a larger model.integral; if beta is at model.beta_max, a larger one",
)  # fmt: skip


class ControlVAE(Holding, VAE):
    """Minimises E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), with beta such that the mean KL is C (algorithm 1).

    C may follow a schedule. The derivative term of a PID controller is 0 in the paper, and left out here.

    capacity: C in nats, where no schedule sets it. proportional, integral: the gains K_p, and K_i per step and nat.
    beta_min, beta_max: the range of beta, which starts at beta_min + K_p / 2.
    """

    monitor = "constrained"
    best = "min"
    scalars = {"beta": 1.0, "capacity": 0.0}
    held = HELD
    capacity: Tensor
    summed: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        capacity: NonNegativeFloat,
        proportional: NonNegativeFloat,
        integral: PositiveFloat,
        beta_min: NonNegativeFloat,
        beta_max: PositiveFloat,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        if beta_min >= beta_max:
            raise UserError(f"model.beta_min={beta_min}: must be below model.beta_max={beta_max}")
        self.gains, self.range = (proportional, integral), (beta_min, beta_max)
        self.capacity.fill_(capacity)
        self.beta.fill_(beta_min + proportional / 2)
        self.register_buffer("summed", torch.tensor(0.0))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds to the terms of the VAE how far the mean KL over all processes is above C."""
        terms = super().terms(batch, noise)
        return terms | {"excess": global_mean(terms["kl"].mean(), batch.share).detach() - self.capacity}

    def observe(self, batch: Batch, terms: Terms) -> Tensor:
        return terms["excess"]

    def learn(self, observed: Sequence[Tensor]) -> None:
        """Moves beta by how far the mean KL is above C."""
        excess = torch.stack(list(observed)).mean()
        beta, summed = proportional_integral(self.summed, excess, *self.gains, *self.range)
        self.beta.copy_(beta)
        self.summed.copy_(summed)

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        gap = means["kl"] - means["capacity"]
        constrained = means["reconstruction"] + PRICE * abs(gap)
        return super().derived(means, vectors) | {"capacity_gap": gap, "constrained": constrained}
