"""A variant of one's own: a VAE whose KL may be anything from 0 to `nats`, and no more.

A variant says what is measured of a batch (`terms`) and what is minimised (`objective`), in nats per image. The
networks, the likelihood, the posterior and the prior are chosen in YAML or on the command line, and so are schedules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class Mine(VAE):
    """Minimises the reconstruction plus the KL above `nats` (the "free nats" of Kingma et al. 2016).

    nats: what the KL may be without a price. Annotations are checked before training: a negative number is refused.
    """

    nats: Tensor
    scalars = {**VAE.scalars, "nats": 0.0}  # a schedule may set these: schedule.nats={...}

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        nats: NonNegativeFloat,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        self.nats.fill_(nats)

    def objective(self, terms: Terms) -> Tensor:
        """Computes the loss, a scalar. terms: `reconstruction` and `kl`, [B] each, and what `terms` adds."""
        return terms["reconstruction"].mean() + self.beta * torch.relu(terms["kl"].mean() - self.nats)
