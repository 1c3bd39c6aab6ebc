"""The beta-VAE (Higgins et al. 2017)."""

from __future__ import annotations

from typing import Literal

from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class BetaVAE(VAE):
    """Minimises E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)) with beta as given or scheduled (eq. 4).

    Both terms are sums over pixels and dimensions, as in the paper's equation. With terms averaged
    over D pixels and d dimensions, as many code bases do, the same beta weighs D / d times more.

    beta: weight of the KL, where no schedule sets it. estimator, free_bits: as in `VAE`.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        beta: NonNegativeFloat,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
        estimator: Literal["closed", "draws", "stl"] = "closed",
        free_bits: NonNegativeFloat = 0.0,
    ):
        parts = network, likelihood, latent_dim, posterior, prior, condition
        super().__init__(shape, num_classes, *parts, estimator, free_bits)
        self.beta.fill_(beta)
