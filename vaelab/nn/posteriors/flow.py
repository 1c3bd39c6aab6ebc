"""Posteriors of any shape: a diagonal Gaussian carried along a normalising flow (Rezende & Mohamed 2015)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vaelab.core.types import PositiveInt
from vaelab.nn import flows
from vaelab.nn.posteriors.base import Head, Posterior
from vaelab.nn.posteriors.gaussian import DiagonalGaussian
from vaelab.nn.priors import Prior

Bins = Annotated[int, Field(ge=2, lt=2**15)]
"""Number of the pieces of a spline."""


@dataclass(eq=False)
class FlowPosterior(Posterior):
    """Posterior of z = f(z0; context) with z0 ~ N(base_mean, diag(exp(base_logvar))), for an invertible f.

    base_mean, base_logvar: [B, d]. context: [B, c], what f is told of the image. flow: f. Its code is
    f(base_mean), its KL is by draws, and its `log_prob` is exact.
    """

    base_mean: Tensor
    base_logvar: Tensor
    context: Tensor
    flow: FlowHead
    name = "flow"

    @property
    def base(self) -> DiagonalGaussian:
        """The distribution of z0, before the flow."""
        return DiagonalGaussian(self.base_mean, self.base_logvar)

    def carry(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Makes z of standard normal noise, [..., B, d] both, and computes log |det dz/dnoise|, [..., B]."""
        z, log_det = self.flow.carry(self.base.rsample(noise), self.context)
        return z, log_det + 0.5 * self.base_logvar.sum(-1)

    def back(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the noise that `carry` makes z of, [..., B, d] both, and log |det dnoise/dz|, [..., B]."""
        start, log_det = self.flow.back(z, self.context)
        noise = (start - self.base_mean) * (-0.5 * self.base_logvar).exp()
        return noise, log_det - 0.5 * self.base_logvar.sum(-1)

    @property
    def code(self) -> Tensor:
        return self.carry(torch.zeros_like(self.base_mean))[0]

    def rsample(self, noise: Tensor) -> Tensor:
        return self.carry(noise)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Computes log q(z|x), nats, for which the flow is run backwards."""
        noise, log_det = self.back(z)
        return _log_normal(noise) + log_det

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes log q(z|x) on the way from the noise to z: the flow is not run backwards."""
        z, log_det = self.carry(noise)
        return z, prior.log_prob(z, labels) - _log_normal(noise) + log_det

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        """Computes the base's KL in closed form less that by this draw: all noise while the flow is the identity."""
        base = self.base
        return base.kl(prior).total + base.draw(noise, prior)[1] if base.has_kl(prior) else 0.0

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"z": self.code} | self.arrays


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)


class FlowHead(Head):
    """Base class of the heads that make a flow posterior of an encoder's output.

    latent_dim: number d of latent dimensions. context_dim: numbers that the encoder tells the flow of an image. A
    subclass sets `transforms`, or implements `carry` and `back`.
    """

    kind: type[FlowPosterior] = FlowPosterior
    passes = 1
    """How many it takes to run each transform backwards."""
    transforms: flows.Flow

    def __init__(self, latent_dim: PositiveInt, context_dim: PositiveInt):
        super().__init__()
        self.latent_dim, self.features = latent_dim, 2 * latent_dim + context_dim

    def forward(self, features: Tensor) -> FlowPosterior:
        """Makes the posterior of features, [B, 2d + c]: base means, base log-variances, context.

        All is float32 from here on under any autocast.
        """
        mean, logvar, context = features.float().tensor_split((self.latent_dim, 2 * self.latent_dim), 1)
        return self.kind(mean, logvar, context, self)

    def carry(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the flow: f(z; context), [..., B, d], and log |det df/dz|, [..., B]."""
        return self.transforms.carry(z, context)

    def back(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the flow backwards: the z0 that f carries to z, [..., B, d], and log |det dz0/dz|, [..., B]."""
        return self.transforms.back(z, context)


class Flow(FlowHead):
    """Makes a flow posterior of an encoder's output (Kingma et al. 2016, section 3; flows by the library zuko).

    The flow is inverse autoregressive: each latent is scaled and shifted by functions of those before it and
    of the image, whose order is reversed from one transform to the next. It starts as the identity, so that
    training starts from a diagonal Gaussian.

    latent_dim: number d of latent dimensions. transforms: how many follow each other. hidden_dims: layers of
    the network in each. context_dim: numbers that the encoder tells it of an image. passes: how many it
    takes to run a transform backwards: d if None; 2 makes it a coupling (Dinh et al. 2017).
    Raises UserError if zuko is not installed.
    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        transforms: PositiveInt,
        hidden_dims: list[PositiveInt],
        context_dim: PositiveInt,
        passes: PositiveInt | None,
    ):
        super().__init__(latent_dim, context_dim)
        self.passes = passes or latent_dim
        self.transforms = flows.Flow("posterior=flow", latent_dim, transforms, hidden_dims, context_dim, passes)


@dataclass(eq=False)
class ScaledFlowPosterior(FlowPosterior):
    """Posterior of z = base_mean + exp(base_logvar / 2) f(noise; context): the flow comes before the Gaussian."""

    def carry(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        shaped, log_det = self.flow.carry(noise, self.context)
        return self.base.rsample(shaped), log_det + 0.5 * self.base_logvar.sum(-1)

    def back(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise, log_det = self.flow.back((z - self.base_mean) * (-0.5 * self.base_logvar).exp(), self.context)
        return noise, log_det - 0.5 * self.base_logvar.sum(-1)


class Spline(FlowHead):
    """Makes a flow posterior whose transforms are monotonic splines (Durkan et al. 2019; by the library zuko).

    Each latent of the noise is carried along a rational-quadratic spline of functions of those before it and of the
    image; outside [-5, 5] it stays. Mean and scale come after that, so that the knots lie where the posterior does. It
    starts as the identity.

    bins: pieces of each spline. The rest as of `Flow`. Raises UserError if zuko is not installed.
    """

    kind = ScaledFlowPosterior

    def __init__(
        self,
        latent_dim: PositiveInt,
        transforms: PositiveInt,
        hidden_dims: list[PositiveInt],
        context_dim: PositiveInt,
        passes: PositiveInt | None,
        bins: Bins,
    ):
        super().__init__(latent_dim, context_dim)
        self.passes = passes or latent_dim
        self.transforms = flows.Flow("posterior=spline", latent_dim, transforms, hidden_dims, context_dim, passes, bins)
