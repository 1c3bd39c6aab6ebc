"""A VAE with two levels of latents (Sønderby, Raiko, Maaløe, Sønderby & Winther 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.gaussian import kl_to_standard_normal
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import KL, DiagonalGaussian, Head, Posterior, Usage
from vaelab.nn.priors import Prior, StandardNormal


class Hierarchical(VAE):
    """Minimises the negative ELBO of p(z2) p(z1|z2) p(x|z1), with two levels of Gaussian latents.

    The latents that the model encodes to and decodes from are those without their dependence, u = (u2, u1),
    which are standard normal: z2 = u2 and z1 = mean(z2) + scale(z2) u1. So samples and traversals of either
    level are those of any VAE. The posterior is top-down: q(z2|x), then q(z1|z2,x) as the product of p(z1|z2)
    and a Gaussian that the encoder gives (eq. 17-19). Deviation: both come from one encoder's output, where
    the paper has one network on top of the other.

    top_dim: size of z2. latent_dim: size of z1, which is decoded. top_hidden_dims: layers from z2 to the mean
    and the scale of z1; with none, the mean is linear and the scale the same for every z2. prior: p(u), given
    its size; N(0, I) if None.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        top_dim: PositiveInt,
        top_hidden_dims: list[PositiveInt],
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        Model.__init__(self, shape, num_classes, likelihood, condition)
        self.posterior = Ladder(top_dim, latent_dim, top_hidden_dims)
        self.latent_dim = top_dim + latent_dim
        self.prior = (prior or StandardNormal)(self.latent_dim)
        levels = Level("top", (top_dim,)), Level("bottom", (latent_dim,))
        self.layout = Layout(levels, ("z",), self.prior.standard)
        self.encoder = network.encoder(self.shape, self.posterior.features, context=self.condition.size)
        self.decoder = network.decoder(latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes u2 and u1 side by side, [B, top_dim + latent_dim], to raw likelihood parameters, [B, C, H, W]."""
        return self.decoder(beside(self.posterior.bottom(z), self.condition(labels)))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds the KL of each level to the terms of the VAE."""
        terms = super().terms(batch, noise)
        if "kl_per_dim" not in terms:
            return terms
        parts = terms["kl_per_dim"].split((self.posterior.top_dim, self.posterior.bottom_dim), 1)
        return terms | {f"kl_{level.name}": kl.sum(1) for level, kl in zip(self.layout.levels, parts, strict=True)}


class Ladder(Head):
    """Makes a hierarchical posterior of an encoder's output, and holds p(z1|z2), which it shares with the prior.

    It starts as z1 = u1: a VAE that does not use its top. top_dim, bottom_dim: sizes of z2 and z1. hidden_dims:
    layers from z2 to the mean and the scale of z1; with none, the scale is the same for every z2.
    """

    def __init__(self, top_dim: int, bottom_dim: int, hidden_dims: list[int]):
        super().__init__()
        self.top_dim, self.bottom_dim, self.features = top_dim, bottom_dim, 2 * (top_dim + bottom_dim)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([top_dim, *hidden_dims]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        width = [top_dim, *hidden_dims][-1]
        self.hidden = nn.Sequential(*layers)
        self.mean, self.logvar = nn.Linear(width, bottom_dim), nn.Linear(width, bottom_dim)
        for parameter in (*self.mean.parameters(), *self.logvar.parameters()):
            nn.init.zeros_(parameter)
        self.logvar.weight.requires_grad_(bool(hidden_dims))

    def forward(self, features: Tensor) -> HierarchicalGaussian:
        """Makes the posterior, in float32, of features, [B, 2 (top + bottom)].

        They are mean and log-variance of the top, then of the bottom.
        """
        top, bottom = features.float().tensor_split((2 * self.top_dim,), 1)
        (mean, logvar), (seen_mean, seen_logvar) = top.chunk(2, 1), bottom.chunk(2, 1)
        return HierarchicalGaussian(mean, logvar, seen_mean, seen_logvar, self)

    def given(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mean and log-variance of p(z1|z2), [..., bottom] each. top: [..., top]."""
        with torch.autocast(top.device.type, enabled=False):
            hidden = self.hidden(top)
            return self.mean(hidden), self.logvar(hidden)

    def bottom(self, u: Tensor) -> Tensor:
        """Computes z1 from u2 and u1 side by side: [..., top + bottom] -> [..., bottom]."""
        top, u1 = u.float().tensor_split((self.top_dim,), -1)
        mean, logvar = self.given(top)
        return mean + (0.5 * logvar).exp() * u1


@dataclass(eq=False)
class HierarchicalGaussian(Posterior):
    """Posterior q(u2|x) q(u1|u2,x): the top is a diagonal Gaussian, and so is the bottom given the top.

    top_mean, top_logvar: [B, t], those of q(u2|x). seen_mean, seen_logvar: [B, b], what the encoder says of z1 alone.
    ladder: p(z1|z2).
    """

    top_mean: Tensor
    top_logvar: Tensor
    seen_mean: Tensor
    seen_logvar: Tensor
    ladder: Ladder
    name = "hierarchical"

    @property
    def top(self) -> DiagonalGaussian:
        """The posterior of the top, q(u2|x)."""
        return DiagonalGaussian(self.top_mean, self.top_logvar)

    def bottom(self, top: Tensor) -> DiagonalGaussian:
        """Computes q(u1|u2,x), [..., B, b]: precisions add up and weight the means (eq. 17-19). top: [..., B, t]."""
        mean, logvar = self.ladder.given(top)
        # precision of what the encoder says of z1, where that of p(z1|z2) is 1:
        log_precision = logvar - self.seen_logvar
        share = log_precision.sigmoid()
        return DiagonalGaussian(share * (self.seen_mean - mean) * (-0.5 * logvar).exp(), -F.softplus(log_precision))

    @property
    def code(self) -> Tensor:
        return torch.cat([self.top_mean, self.bottom(self.top_mean).mean], 1)

    def rsample(self, noise: Tensor) -> Tensor:
        above, below = self._levels(noise)
        top = self.top.rsample(above)
        return torch.cat([top, self.bottom(top).rsample(below)], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        top, bottom = self._levels(z)
        return self.top.log_prob(top) + self.bottom(top).log_prob(bottom)

    def sample_with_kl(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, KL]:
        """Draws z and computes the KL: that of the bottom is in closed form given the draw of the top."""
        if not self.top.has_kl(prior):
            return super().sample_with_kl(noise, prior, labels)
        z = self.rsample(noise)
        per_dim = self._kl(z)
        return z, KL(per_dim.sum(-1), per_dim, exact=False)

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        if not self.top.has_kl(prior):
            return 0.0
        z, log_ratio = self.draw(noise, prior)
        return self._kl(z).sum(-1) + log_ratio

    def usage(self, prior: Prior | None) -> Usage:
        """Measures the mean KL of each dimension, nats; of the bottom, given the mean of the top."""
        if prior is None or not self.top.has_kl(prior):
            return super().usage(prior)
        return Usage(self._kl(self.code).mean(0), "KL", "nats", DEAD_DIMENSION)

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"z": self.code} | self.arrays

    def _kl(self, z: Tensor) -> Tensor:
        """Computes the KL to N(0, 1) of each dimension given the levels above it in z, [..., B, t + b], nats."""
        bottom = self.bottom(self._levels(z)[0])
        below = kl_to_standard_normal(bottom.mean, bottom.logvar)
        above = kl_to_standard_normal(self.top_mean, self.top_logvar)
        return torch.cat([above.expand(*below.shape[:-1], -1), below], -1)

    def _levels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        top, bottom = z.tensor_split((self.ladder.top_dim,), -1)
        return top, bottom
