"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Model
from vaelab.nn.gaussian import kl_to_standard_normal, reparameterise
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network


class VAE(Model):
    """Minimises the negative ELBO, E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)), with one draw of z.

    q(z|x) is a diagonal Gaussian. beta is 1; a schedule may warm it up to 1.

    latent_dim: number d of latent dimensions.
    """

    latents = "gaussian"
    scalars = {"beta": 1.0}
    beta: Tensor

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
        self._build(network)

    def _build(self, network: Network) -> None:
        """Makes `encoder` ([B, C, H, W] -> [B, 2d]) and `decoder` ([B, d] -> [B, C, H, W])."""
        self.encoder = network.encoder(self.shape, 2 * self.latent_dim)
        self.decoder = network.decoder(self.latent_dim, self.shape)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), [B, d] each, float32 under any autocast."""
        mean, logvar = self.encoder(x).float().chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw likelihood parameters of p(x|z), [B, C, H, W]."""
        return self.decoder(z)

    def terms(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        mean, logvar = self.encode(x, labels)
        raw = self.decode(reparameterise(mean, logvar), labels)
        kl_per_dim = kl_to_standard_normal(mean, logvar)
        return {
            "reconstruction": -self.likelihood.log_prob(raw, x),
            "kl": kl_per_dim.sum(1),
            "kl_per_dim": kl_per_dim,
        }

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["reconstruction"].mean() + self.beta * terms["kl"].mean()

    def vectors(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"kl_per_dim": terms["kl_per_dim"].sum(0)}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        return {"elbo": -(means["reconstruction"] + means["kl"])}

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode(self.encode(x, labels)[0], labels))

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        z = torch.randn(count, self.latent_dim, device=self.device)
        return self.likelihood.mean(self.decode(z, labels))
