"""The deterministic autoencoder: the baseline that every VAE is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Model
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network


class AE(Model):
    """Minimises -log p(x | f(x)): no noise, no prior, nothing to sample.

    latent_dim: size d of the code.
    """

    monitor = "reconstruction"
    best = "min"
    has_prior = False
    latents = "point"

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
    ):
        super().__init__(shape, num_classes, likelihood)
        self.latent_dim = latent_dim
        self.encoder = network.encoder(self.shape, latent_dim)
        self.decoder = network.decoder(latent_dim, self.shape)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Codes, [B, d]."""
        return self.encoder(x)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw likelihood parameters of p(x|z), [B, C, H, W]."""
        return self.decoder(codes)

    def terms(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"reconstruction": -self.likelihood.log_prob(self.decode(self.encode(x)), x)}

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["reconstruction"].mean()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode(self.encode(x)))
