"""A VAE with several levels of latents (Sønderby, Raiko, Maaløe, Sønderby & Winther 2016)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.types import PositiveInt, Shape
from vaelab.core.words import Finding
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

UNUSED = 0.1
"""KL of a level, nats, below which it says next to nothing."""


class Hierarchical(VAE):
    """Minimises the negative ELBO of p(z_L) ... p(z2|z3) p(z1|z2) p(x|z1), with L levels of Gaussian latents.

    The latents that the model encodes to and decodes from are those without their dependence, u = (u_L, ..., u1),
    which are standard normal: z_L = u_L, and z = mean(above) + scale(above) u at each level given the one above it. So
    samples and traversals of any level are those of any VAE. The posterior is top-down: q(z_L|x), then each q(z|above,
    x) as the product of p(z|above) and a Gaussian that the encoder gives (eq. 17-19). Deviation: all come from one
    encoder's output, where the paper has one network on top of the other.

    latent_dim: size of z1, which is decoded. top_dim: size of z2, or the sizes of all levels above z1, from the top
    down. top_hidden_dims: layers from each level to the mean and the scale of the one below; with none, the mean is
    linear and the scale the same whatever is above. prior: p(u), given its size; N(0, I) if None.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        top_dim: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)],
        top_hidden_dims: list[PositiveInt],
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        Model.__init__(self, shape, num_classes, likelihood, condition)
        sizes = [*([top_dim] if isinstance(top_dim, int) else top_dim), latent_dim]
        self.posterior = Ladder(sizes, top_hidden_dims)
        self.latent_dim = sum(sizes)
        self.prior = (prior or StandardNormal)(self.latent_dim)
        levels = tuple(Level(name, (size,)) for name, size in zip(level_names(len(sizes)), sizes, strict=True))
        self.layout = Layout(levels, ("z",), self.prior.standard)
        self.encoder = network.encoder(self.shape, self.posterior.features, context=self.condition.size)
        self.decoder = network.decoder(latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))
        self.check_space()
        self.prior.belongs(self.encode, self.shape, self.condition.in_turn(1))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes u of all levels side by side, [B, d], to raw likelihood parameters, [B, C, H, W]."""
        return self.decoder(beside(self.posterior.bottom(z), self.condition(labels)))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Adds the KL of each level to the terms of the VAE."""
        terms = super().terms(batch, noise)
        if "kl_per_dim" not in terms:
            return terms
        parts = terms["kl_per_dim"].split(self.posterior.sizes, 1)
        return terms | {f"kl_{level.name}": kl.sum(1) for level, kl in zip(self.layout.levels, parts, strict=True)}

    def diagnose(self, figures: dict[str, float]) -> list[Finding]:
        levels = [name for level in self.layout.levels if (name := f"kl_{level.name}") in figures]
        unused = [name for name in levels if figures[name] < UNUSED]
        if len(unused) in (0, len(levels)):  # a collapse is every model's
            return []
        evidence = " and ".join(f"{name} is {figures[name]:.3g}" for name in unused)
        remedy = "schedule=warmup, longer where it is there (schedule.beta.over); else fewer levels do the same"
        return [Finding("unused_level", f"{evidence} nats: next to nothing of the images", remedy)]


def level_names(count: int) -> list[str]:
    """Names the levels from the top down: top, middle, bottom; or top, middle_1, middle_2, ..., bottom."""
    middle = ["middle"] if count == 3 else [f"middle_{number}" for number in range(1, count - 1)]
    return ["top", *middle, "bottom"]


class Ladder(Head):
    """Makes a hierarchical posterior of an encoder's output, and holds each p(z|above), shared with the prior.

    A ladder is the step to the lowest of its levels, and the ladder of those above it. It starts as z = u at each
    level: a VAE that uses its bottom alone. sizes: of the levels, two or more, from the top down. hidden_dims: layers
    from a level to the mean and the scale of the one below; with none, the scale is the same whatever is above.
    """

    def __init__(self, sizes: list[int], hidden_dims: list[int]):
        super().__init__()
        *_, top_dim, bottom_dim = sizes
        self.sizes, self.features = sizes, 2 * sum(sizes)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([top_dim, *hidden_dims]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        width = [top_dim, *hidden_dims][-1]
        self.hidden = nn.Sequential(*layers)
        self.mean, self.logvar = nn.Linear(width, bottom_dim), nn.Linear(width, bottom_dim)
        for parameter in (*self.mean.parameters(), *self.logvar.parameters()):
            nn.init.zeros_(parameter)
        self.logvar.weight.requires_grad_(bool(hidden_dims))
        self.above = Ladder(sizes[:-1], hidden_dims) if len(sizes) > 2 else None

    def forward(self, features: Tensor) -> HierarchicalGaussian:
        """Makes the posterior, in float32, of features, [B, 2 d].

        They are mean and log-variance of the top, then of all levels below it.
        """
        top, below = features.float().tensor_split((2 * self.sizes[0],), 1)
        (mean, logvar), (seen_mean, seen_logvar) = top.chunk(2, 1), below.chunk(2, 1)
        return HierarchicalGaussian(mean, logvar, seen_mean, seen_logvar, self)

    @property
    def steps(self) -> list[Ladder]:
        """The ladders to each level below the top, from the top down: `given` of each is p(z|above)."""
        return [*(self.above.steps if self.above else []), self]

    def given(self, above: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mean and log-variance of p(z|above), [..., bottom] each. above: [..., size of the level above]."""
        with torch.autocast(above.device.type, enabled=False):
            hidden = self.hidden(above)
            return self.mean(hidden), self.logvar(hidden)

    def bottom(self, u: Tensor) -> Tensor:
        """Computes z1 from u of all levels side by side: [..., d] -> [..., bottom]."""
        above, u1 = u.float().tensor_split((-self.sizes[-1],), -1)
        mean, logvar = self.given(self.above.bottom(above) if self.above else above)
        return mean + (0.5 * logvar).exp() * u1


@dataclass(eq=False)
class HierarchicalGaussian(Posterior):
    """Posterior q(u_L|x) ... q(u1|u_L, ..., u2, x): each level is a diagonal Gaussian given those above it.

    top_mean, top_logvar: [B, t], those of q(u_L|x). seen_mean, seen_logvar: [B, d - t], what the encoder says of each z
    below alone, the levels side by side. ladder: each p(z|above).
    """

    top_mean: Tensor
    top_logvar: Tensor
    seen_mean: Tensor
    seen_logvar: Tensor
    ladder: Ladder
    name = "hierarchical"

    @property
    def top(self) -> DiagonalGaussian:
        """The posterior of the top, q(u_L|x)."""
        return DiagonalGaussian(self.top_mean, self.top_logvar)

    def down(self, choose: Callable[[int, DiagonalGaussian], Tensor]) -> tuple[list[DiagonalGaussian], list[Tensor]]:
        """Goes down the levels. Returns q of each, given what was chosen above it, and the u that were chosen.

        choose: gives u of a level, [..., B, size], of its number, 0 for the top, and its q. Precisions of p(z|above)
        and of what the encoder says add up, and weight the means (eq. 17-19).
        """
        found, chosen = [self.top], [choose(0, self.top)]
        z, sizes, steps = chosen[0], self.ladder.sizes[1:], self.ladder.steps
        for step, seen_mean, seen_logvar in zip(
            steps, self.seen_mean.split(sizes, -1), self.seen_logvar.split(sizes, -1), strict=True
        ):
            mean, logvar = step.given(z)
            # precision of what the encoder says of z, where that of p(z|above) is 1:
            log_precision = logvar - seen_logvar
            share = log_precision.sigmoid()
            q = DiagonalGaussian(share * (seen_mean - mean) * (-0.5 * logvar).exp(), -F.softplus(log_precision))
            found.append(q)
            chosen.append(choose(len(chosen), q))
            if step is not self.ladder:
                z = mean + (0.5 * logvar).exp() * chosen[-1]
        return found, chosen

    def levels(self, u: Tensor) -> list[DiagonalGaussian]:
        """Computes q of each level given u above it, of draws [..., B, d]."""
        parts = self._parts(u)
        return self.down(lambda level, _: parts[level])[0]

    @property
    def code(self) -> Tensor:
        return torch.cat(self.down(lambda _, q: q.mean)[1], 1)

    def rsample(self, noise: Tensor) -> Tensor:
        parts = self._parts(noise)
        return torch.cat(self.down(lambda level, q: q.rsample(parts[level]))[1], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        each = [q.log_prob(u) for q, u in zip(self.levels(z), self._parts(z), strict=True)]
        return torch.stack(each).sum(0)

    def sample_with_kl(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, KL]:
        """Draws z and computes the KL: that of each level is in closed form given the draws above it."""
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
        """Measures the mean KL of each dimension, nats; of each level, given the means above it."""
        if prior is None or not self.top.has_kl(prior):
            return super().usage(prior)
        return Usage(self._kl(self.code).mean(0), "KL", "nats", DEAD_DIMENSION)

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"z": self.code} | self.arrays

    def _kl(self, z: Tensor) -> Tensor:
        """Computes the KL to N(0, 1) of each dimension given the levels above it in z, [..., B, d], nats."""
        each = [kl_to_standard_normal(q.mean, q.logvar) for q in self.levels(z)]
        return torch.cat([kl.expand(*z.shape[:-1], -1) for kl in each], -1)

    def _parts(self, u: Tensor) -> tuple[Tensor, ...]:
        return u.split(self.ladder.sizes, -1)
