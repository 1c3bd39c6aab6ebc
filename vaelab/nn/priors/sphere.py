"""The uniform prior on the unit sphere (Davidson, Falorsi, De Cao, Kipf & Tomczak 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.nn.priors.base import Prior
from vaelab.nn.sphere import log_area


class UniformSphere(Prior):
    """Uniform prior on the unit sphere: Davidson et al. 2018, section 3.2.

    latent_dim: number d of the coordinates of a point on it.
    """

    words = "uniform on the unit sphere"
    spherical = True

    def __init__(self, latent_dim: PositiveInt):
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
        noise = torch.randn(count, self.latent_dim, generator=generator, device=self._device(generator))
        return normalize(noise, dim=1)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes log p(z) of points on the sphere, in nats per area of it."""
        return z.new_full(z.shape[:-1], -log_area(z.shape[-1]))

    def check_sampling(self, temperature: float, top_k: int | None, model: str) -> None:
        super().check_sampling(temperature, top_k, model)
        if temperature != 1:
            raise UserError(
                f"temperature={temperature}: the prior of {model} is {self.words}, where no place is more probable: "
                "leave it out"
            )
