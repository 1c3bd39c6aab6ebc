"""The conditional VAE (Sohn, Lee & Yan 2015; Kingma et al. 2014, model M2 with observed labels)."""

from __future__ import annotations

from functools import partial

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition, Label
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class CVAE(VAE):
    """A VAE of p(x | y): the label y enters encoder and decoder, and the prior of z stays as it is.

    Both see the same vector of the label, next to the pixels and next to z: a learned one of a class
    (`vaelab.nn.conditions.Label`), unless `condition` is another.

    label_dim: size of a class's vector.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        label_dim: PositiveInt,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        if condition == {}:  # the option `none` is an empty mapping
            name = type(self).__name__.lower()
            raise UserError(f"condition=none: model={name} is conditional on labels: leave it out, or use model=vae")
        condition = condition or partial(Label, dim=label_dim)
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
