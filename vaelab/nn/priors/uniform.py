"""The prior over the codes of a VQ-VAE while it trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.nn.priors.base import Prior


class UniformCodes(Prior):
    """Uniform prior over codes, as while a VQ-VAE trains (van den Oord et al. 2017, section 3.3).

    codes: number K of codes. shape: (h, w) of an image's map.
    """

    words = "all codes alike"
    discrete = True
    placeholder = True

    def __init__(self, codes: int, shape: tuple[int, ...]):
        super().__init__()
        self.codes, self.shape = codes, tuple(shape)

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        size = (count, *self.shape)
        return torch.randint(self.codes, size, generator=generator, device=self._device(generator))

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.full((len(z),), -math.prod(self.shape) * math.log(self.codes), device=z.device)

    def check_sampling(self, temperature: float, top_k: int | None, model: str) -> None:
        for key, given in (("temperature", temperature != 1 and temperature), ("top_k", top_k)):
            if given is not None and given is not False:
                raise UserError(
                    f"{key}={given}: the prior of {model} is uniform over codes, of which none is more probable: "
                    "leave it out, or fit one with vaelab prior"
                )
