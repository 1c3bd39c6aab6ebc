"""The hyperspherical VAE (Davidson, Falorsi, De Cao, Kipf & Tomczak 2018)."""

from __future__ import annotations

from typing import Literal

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import VMF, Head
from vaelab.nn.priors import Prior, UniformSphere


class SVAE(VAE):
    """The VAE with latents on the unit sphere: a von Mises-Fisher posterior, and a prior that is uniform there.

    The objective is that of the VAE. A posterior that says nothing is the prior, so nothing pulls codes together as
    N(0, I) does to the origin.

    latent_dim: number d of the coordinates of a point; the sphere has d - 1 dimensions. posterior: on the sphere, given
    d; von Mises-Fisher if None. prior: on it, too; uniform if None.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        estimator: Literal["closed", "draws", "stl"] = "closed",
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        parts = posterior or VMF, prior or UniformSphere, condition
        super().__init__(shape, num_classes, network, likelihood, latent_dim, *parts, estimator)
        if not self.prior.spherical:
            raise UserError(
                "posterior=, prior=: model=svae has latents on a sphere, and these are on none: posterior=vmf and "
                "prior=sphere, or model=vae"
            )
