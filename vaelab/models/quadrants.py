"""The conditional VAE that completes images of which a part is given (Sohn, Lee & Yan 2015, sections 4.1 and 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.types import PositiveInt, Shape, Share
from vaelab.models.base import Build
from vaelab.models.module import Model
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.gaussian import kl_of_normals, reparameterise
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import KL, DiagonalGaussian, Posterior, Usage
from vaelab.nn.priors import Prior

KEPT = 8
"""Seen parts that a model keeps, of its first training batch, to draw completions of."""


class Quadrants(VAE):
    """Minimises the negative ELBO of log p(unseen | seen): prior p(z|seen) and decoder are given 1, 2 or 3 quadrants.

    The likelihood counts the unseen pixels alone. The latents that the model encodes to and decodes from are the seen
    pixels, as they are, and z after them: whatever draws, traverses or measures latents thus knows what was seen.
    Deviations: the decoder is given the seen pixels, too, where the paper adds those of a baseline; there is no second
    objective with z drawn from p(z|seen).

    latent_dim: size of z. seen: number of quadrants that are given, from the bottom left clockwise. drop: the share of
    training images of which nothing is seen, so that the model is of log p(unseen), too (Ho & Salimans 2022,
    algorithm 1). Their seen pixels are NaN; as zeros are black, too, a last entry then says whether anything is seen.
    """

    replaceable = False
    prior: GivenPart
    given: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        seen: Literal[1, 2, 3],
        condition: Build[Condition] = None,
        drop: Share = 0.0,
    ):
        Model.__init__(self, shape, num_classes, likelihood, condition)
        given = quadrants(self.shape, seen)
        self.likelihood.count_only(~given)
        self.register_buffer("given", given, persistent=False)
        self.drop = drop
        self.prior = GivenPart(given, network, latent_dim, null=drop > 0)
        self.latent_dim = self.prior.size + latent_dim
        self.layout = Layout((Level("seen", (self.prior.size,)), Level("z", (latent_dim,))), ("z",))
        self.encoder = network.encoder(self.shape, 2 * latent_dim, context=self.condition.size)
        self.decoder = network.decoder(self.latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))
        self.fresh = True

    def encode(self, x: Tensor, labels: Tensor | None = None) -> PartGaussian:
        mean, logvar = self.encoder(self.seen(x), self.condition(labels)).float().chunk(2, 1)
        return PartGaussian(self.prior.part(x), mean, logvar)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes seen pixels and z, [B, seen + d]; where pixels are seen, the mean image has them."""
        raw = self.decoder(beside(z, self.condition(labels)))
        if raw.shape[1:] != self.shape:
            return raw
        return torch.where(self.given, self.likelihood.raw_from_mean(self.prior.image(z)), raw)

    def seen(self, x: Tensor) -> Tensor:
        return x.nan_to_num() if self.drop else super().seen(x)

    def place(self, batch: Batch) -> None:
        """Keeps seen parts of the first training batch."""
        if self.fresh:
            self.fresh = False
            self.prior.keep(self.prior.part(batch.images))

    def untold(self, batch: Batch) -> Batch:
        """Hides the seen pixels of a share `drop` of the images, too."""
        batch = super().untold(batch)
        if not self.drop:
            return batch
        gone = torch.rand(len(batch.images), 1, 1, 1, device=batch.images.device) < self.drop
        return batch._replace(images=batch.images.masked_fill(gone & self.given, torch.nan))


def quadrants(shape: Shape, count: int) -> Tensor:
    """Makes the mask of the first `count` quadrants, [C, H, W] bool: bottom left, top left, top right."""
    _, height, width = shape
    if min(height, width) < 2:
        raise UserError(f"model=quadrants: {height}x{width} has no quadrants: it is for images; use model=vae")
    mask = torch.zeros(shape, dtype=torch.bool)
    top, left = slice(0, height // 2), slice(0, width // 2)
    below, right = slice(height // 2, None), slice(width // 2, None)
    for rows, columns in ((below, left), (top, left), (top, right))[:count]:
        mask[:, rows, columns] = True
    return mask


class GivenPart(Prior):
    """Prior p(z | seen), a diagonal Gaussian by a network of the seen pixels; of these there is no distribution.

    Samples are of seen parts that were kept, in turn. given: mask of the seen pixels, [C, H, W]. latent_dim: size of z.
    null: whether there is a part of which nothing is seen; the last that is kept is then one.
    """

    words = "p(z | the part that is seen)"
    stepwise = True
    places: Tensor
    sources: Tensor
    parts: Tensor
    filled: Tensor

    def __init__(self, given: Tensor, network: Network, latent_dim: int, null: bool):
        super().__init__()
        self.pixels, self.null, self.latent_dim = int(given.sum()), null, latent_dim
        self.size = self.pixels + null
        channels, height, width = given.shape
        self.shape: Shape = (channels, height, width)
        self.network = network.encoder(self.shape, 2 * latent_dim, context=int(null))
        places = given.flatten().nonzero().flatten()
        sources = torch.full((given.numel(),), self.pixels).index_copy(0, places, torch.arange(self.pixels))
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("sources", sources, persistent=False)  # of each pixel among the seen ones, then black
        self.register_buffer("parts", torch.zeros(KEPT, self.size))
        self.register_buffer("filled", torch.tensor(False))

    def keep(self, parts: Tensor) -> None:
        """Keeps the first of these seen parts, [B, seen], unless there are some."""
        if not self.filled:
            self.parts.copy_(parts[torch.arange(KEPT, device=parts.device) % len(parts)])
            if self.null:
                self.parts[-1] = 0
            self.filled.fill_(True)

    def part(self, x: Tensor) -> Tensor:
        """Takes the seen pixels of images, 0 for NaN, and whether any is seen: [B, C, H, W] -> [B, seen]."""
        part = x.flatten(1).index_select(1, self.places)
        any_seen = [(~part.isnan()).any(1, keepdim=True).to(part.dtype)] if self.null else []
        return torch.cat([part.nan_to_num(), *any_seen], 1)

    def image(self, latents: Tensor) -> Tensor:
        """Puts seen pixels into images that are 0 elsewhere: [B, seen (+ d)] -> [B, C, H, W]."""
        with_black = F.pad(latents[:, : self.pixels], (0, 1))
        return with_black.index_select(1, self.sources).view(-1, *self.shape)

    def of_z(self, latents: Tensor) -> DiagonalGaussian:
        """Computes p(z|seen) of latents, [B, seen (+ d)]."""
        any_seen = latents[:, self.pixels : self.size] if self.null else None
        mean, logvar = self.network(self.image(latents), any_seen).float().chunk(2, 1)
        return DiagonalGaussian(mean, logvar)

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        parts = self.parts[torch.arange(count, device=self.parts.device) % KEPT]
        noise = torch.randn(count, self.latent_dim, generator=generator, device=self._device(generator))
        found = self.of_z(parts).rsample(temperature * noise.to(parts.device))
        return torch.cat([parts, found], 1).to(noise.device)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes log p(z|seen) of latents, seen pixels and z: [..., seen + d] -> [...]."""
        found = self.of_z(z.reshape(-1, z.shape[-1])).log_prob(z.reshape(-1, z.shape[-1])[:, self.size :])
        return found.view(z.shape[:-1])

    def below(self, z: Tensor, above: Tensor) -> Tensor:
        """Moves z from its place in p(z | its own part) to the same place in p(z | the other part)."""
        if not above.shape[1]:
            return z
        z, parts = z.to(self.parts.device), above.to(self.parts.device)
        own, other = self.of_z(z), self.of_z(parts)
        scale = (0.5 * (other.logvar - own.logvar)).exp()
        return torch.cat([parts, other.mean + scale * (z[:, self.size :] - own.mean)], 1).to(above.device)

    @property
    def mean(self) -> Tensor:
        """The first kept part, and the mean of z given it."""
        with torch.no_grad():
            return torch.cat([self.parts[0], self.of_z(self.parts[:1]).mean[0]])


@dataclass(eq=False)
class PartGaussian(Posterior):
    """Posterior of the seen pixels, which are known, and of z, a diagonal Gaussian.

    part: [B, seen], the seen pixels. mean, logvar: [B, d], those of q(z|x).
    """

    part: Tensor
    mean: Tensor
    logvar: Tensor
    name = "part"

    @property
    def code(self) -> Tensor:
        return torch.cat([self.part, self.mean], 1)

    def _with_part(self, z: Tensor) -> Tensor:
        return torch.cat([self.part.to(z.dtype).expand(*z.shape[:-1], -1), z], -1)

    def rsample(self, noise: Tensor) -> Tensor:
        return self._with_part(reparameterise(self.mean, self.logvar, noise[..., self.part.shape[1] :]))

    def log_prob(self, z: Tensor) -> Tensor:
        return DiagonalGaussian(self.mean, self.logvar).log_prob(z[..., self.part.shape[1] :])

    def has_kl(self, prior: Prior) -> bool:
        return isinstance(prior, GivenPart)

    def kl(self, prior: Prior) -> KL:
        if not isinstance(prior, GivenPart):
            return super().kl(prior)
        given = prior.of_z(self.part)
        per_dim = kl_of_normals(self.mean, self.logvar, given.mean, given.logvar)
        return KL(per_dim.sum(-1), per_dim, exact=True)

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes p(z|seen) once for each image, however many draws there are."""
        if not isinstance(prior, GivenPart):
            return super().draw(noise, prior, labels)
        z = self.rsample(noise)
        log_p = prior.of_z(self.part).log_prob(z[..., self.part.shape[1] :])
        return z, log_p - self.log_prob(z)

    def usage(self, prior: Prior | None) -> Usage:
        """Measures the mean KL of each dimension of z, nats; the seen pixels cost nothing."""
        if prior is None or not self.has_kl(prior):
            return super().usage(prior)
        kl = self.kl(prior).per_dim
        assert kl is not None
        return Usage(torch.cat([kl.new_zeros(self.part.shape[1]), kl.mean(0)]), "KL", "nats", DEAD_DIMENSION)

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"z": self.code} | self.arrays
