"""Posteriors of any shape: a diagonal Gaussian carried along a normalising flow (Kingma et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.nn.posteriors.base import Head, Posterior
from vaelab.nn.posteriors.gaussian import DiagonalGaussian
from vaelab.nn.priors import Prior

LEAST_SCALE = 0.1
"""Smallest factor by which a transform scales a latent, its inverse being the largest: a wider range makes a step that
goes astray cost thousands of nats."""


@dataclass(eq=False)
class FlowPosterior(Posterior):
    """Posterior of z = f(z0; context) with z0 ~ N(base_mean, diag(exp(base_logvar))), for an invertible f.

    base_mean, base_logvar: [B, d]. context: [B, c], what f is told of the image. flow: f. Its code is
    f(base_mean), its KL is by draws, and its `log_prob` is exact.
    """

    base_mean: Tensor
    base_logvar: Tensor
    context: Tensor
    flow: Flow
    name = "flow"

    @property
    def base(self) -> DiagonalGaussian:
        """The distribution of z0, before the flow."""
        return DiagonalGaussian(self.base_mean, self.base_logvar)

    @property
    def code(self) -> Tensor:
        return self.flow.carry(self.base_mean, self.context)[0]

    def rsample(self, noise: Tensor) -> Tensor:
        return self.flow.carry(self.base.rsample(noise), self.context)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Computes log q(z|x), nats: the flow is run backwards, in d passes unless `passes` says fewer."""
        start, log_det = self.flow.back(z, self.context)
        return self.base.log_prob(start) + log_det

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes log q(z|x) on the way from the noise to z: the flow is not run backwards."""
        start = self.base.rsample(noise)
        z, log_det = self.flow.carry(start, self.context)
        return z, prior.log_prob(z, labels) - self.base.log_prob(start) + log_det

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        """Computes the base's KL in closed form less that by this draw: all noise while the flow is the identity."""
        base = self.base
        return base.kl(prior).total + base.draw(noise, prior)[1] if base.has_kl(prior) else 0.0

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"z": self.code} | self.arrays


class Flow(Head):
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
        super().__init__()
        try:
            from zuko.flows.autoregressive import MaskedAutoregressiveTransform
            from zuko.transforms import MonotonicAffineTransform
        except ImportError:
            raise UserError('posterior=flow needs another package: pip install "vaelab[flow]"') from None
        self.latent_dim, self.features = latent_dim, 2 * latent_dim + context_dim
        self.transforms = nn.ModuleList()
        order: Any = torch.arange(latent_dim)
        for _ in range(transforms):
            sizes: Any = {"features": latent_dim, "context": context_dim, "passes": passes, "order": order}
            affine = partial(MonotonicAffineTransform, slope=LEAST_SCALE)
            transform: Any = MaskedAutoregressiveTransform(**sizes, univariate=affine, hidden_features=hidden_dims)
            last = transform.hyper[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.transforms.append(transform)
            order = order.flip(0)

    def forward(self, features: Tensor) -> FlowPosterior:
        """Makes the posterior of features, [B, 2d + c]: base means, base log-variances, context.

        All is float32 from here on under any autocast.
        """
        mean, logvar, context = features.float().tensor_split((self.latent_dim, 2 * self.latent_dim), 1)
        return FlowPosterior(mean, logvar, context, self)

    def carry(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the flow: f(z; context), [..., B, d], and log |det df/dz|, [..., B]."""
        return self._through([transform(context) for transform in self.transforms], z)

    def back(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the flow backwards: the z0 that f carries to z, [..., B, d], and log |det dz0/dz|, [..., B]."""
        return self._through([transform(context).inv for transform in reversed(self.transforms)], z)

    @staticmethod
    def _through(steps: list[Any], z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-1])
        with torch.autocast(z.device.type, enabled=False):
            for step in steps:
                z, log_det = step.call_and_ladj(z)
                total = total + log_det
        return z, total
