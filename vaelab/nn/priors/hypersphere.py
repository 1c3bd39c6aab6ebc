"""Draws that are uniform on a sphere, as wide as the codes of a finished run lie around their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vaelab.core.types import PositiveInt
from vaelab.nn.priors.base import Kept, Latents, Prior


class Hypersphere(Prior):
    """Uniform on the sphere that the codes come to lie on if each keeps its direction and none its distance.

    In many dimensions the mass of a Gaussian lies in a thin shell, and what is left of it then is the direction: the
    prior of Davidson et al. 2018, section 3.2, fitted to codes of any model. Deviation: their sphere has the middle 0
    and the radius 1, which a model is trained for; here both are those of the codes. A sphere has no volume, and so no
    density of z.

    latent_dim: number d of latent dimensions.
    """

    words = "draws uniform on a sphere"
    in_training = False
    afterwards = True
    density = False
    centre: Tensor
    radius: Tensor

    def __init__(self, latent_dim: PositiveInt):
        super().__init__()
        self.register_buffer("centre", torch.zeros(latent_dim))
        self.register_buffer("radius", torch.ones(()))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """`count` draws, [count, d]; the temperature scales the radius."""
        device = self._device(generator)
        direction = normalize(torch.randn(count, len(self.centre), generator=generator, device=device), dim=1)
        return self.centre.to(device) + temperature * self.radius.to(device) * direction

    @property
    def mean(self) -> Tensor:
        return self.centre

    def fit(
        self,
        z: Tensor,
        seed: int,
        labels: Tensor | None = None,
        held_out: Latents | None = None,
        kept: Kept | None = None,
    ) -> str:
        """Takes the mean of the latents and their mean distance from it. z: [N, d]; nothing else is looked at."""
        self.centre.copy_(z.mean(0))
        distances = (z - z.mean(0)).norm(dim=1)
        self.radius.copy_(distances.mean())
        return f"the codes lie {distances.mean():.3f} ± {distances.std(correction=0):.3f} from their mean"
