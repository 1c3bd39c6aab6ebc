"""Codes without a distribution, which are posteriors without a density."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vaelab.core.types import PositiveInt
from vaelab.nn.posteriors.base import Head, Posterior


@dataclass(eq=False)
class Point(Posterior):
    """A code without noise, as a plain autoencoder makes it. codes: [B, d]."""

    codes: Tensor
    name = "point"
    density = False

    @property
    def code(self) -> Tensor:
        return self.codes

    def rsample(self, noise: Tensor) -> Tensor:
        return self.codes


@dataclass(eq=False)
class Codes(Posterior):
    """Indices of codes at the positions of a map, as a VQ-VAE chooses them. indices: [B, h, w] int64."""

    indices: Tensor
    name = "discrete"
    density = False

    @property
    def code(self) -> Tensor:
        return self.indices

    def rsample(self, noise: Tensor) -> Tensor:
        return self.indices


class Deterministic(Head):
    """Takes an encoder's output as the code itself, without a density.

    latent_dim: size d of the code.
    """

    def __init__(self, latent_dim: PositiveInt):
        super().__init__()
        self.features = latent_dim

    def forward(self, features: Tensor) -> Point:
        """Returns features, [B, d], as points; float32 from here on under autocast."""
        return Point(features.float())
