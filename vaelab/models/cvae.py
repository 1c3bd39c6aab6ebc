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

    Both see the same learned vector of the label (`vaelab.nn.conditions.Label`), next to the pixels and
    next to z.

    label_dim: size of the label's vector.
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
        name = type(self).__name__.lower()
        if num_classes is None:
            raise UserError(f"model={name} needs labels, and this data set has none: use model=vae, or a labelled one")
        if condition == {}:  # the option `none` is an empty mapping
            raise UserError(f"condition=none: model={name} is conditional on labels: leave it out, or use model=vae")
        condition = condition or partial(Label, dim=label_dim)
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
