"""The standard normal prior (Kingma & Welling 2014)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelab.nn.priors.base import Prior


class StandardNormal(Prior):
    """Prior N(0, I) over a vector of latents: Kingma & Welling 2014, section 3.

    latent_dim: number d of latent dimensions.
    """

    words = "N(0, I)"
    standard = True
    stepwise = True

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        z = torch.randn(count, self.latent_dim, generator=generator, device=self._device(generator))
        return z if temperature == 1 else z * temperature

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))

    def below(self, z: Tensor, above: Tensor) -> Tensor:
        """Leaves the other axes as they are, which are independent of the first."""
        return torch.cat([above, z[:, above.shape[1] :]], 1)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.latent_dim)
