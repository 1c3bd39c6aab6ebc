"""Priors of the latents: what new images are drawn from, and what codes cost.

A prior is a module with `sample` and `log_prob`. It belongs to a model, is learned with it or fixed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError


class Prior(nn.Module):
    """Base of the priors.

    words: what it is, for captions and messages. standard: whether each axis has mean 0 and standard deviation 1.
    """

    words: str
    standard = False
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(()), persistent=False)  # of the device to draw on

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """`count` draws of the latents of one image: [count, d], or [count, h, w] int64.

        labels: [count], of conditional images. generator: the source of the noise, on whose device the
        draws are made; torch's global one on the prior's own device where None. temperature: factor of
        the prior's deviations, or exponent 1 / temperature of its probabilities.
        Raises UserError for a temperature that the prior has no use for.
        """
        raise NotImplementedError

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z) of each latent, nats: [..., d] -> [...], or [B, h, w] -> [B]."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor | None:
        """The mean latent, [d], where a path can start; None where there is none."""
        return None

    def check_temperature(self, temperature: float, model: str) -> None:
        """Raises UserError for a temperature that cannot be applied. model: whose prior it is."""

    def _device(self, generator: torch.Generator | None) -> torch.device:
        return self.place.device if generator is None else generator.device


class StandardNormal(Prior):
    """N(0, I) over a vector of latents: Kingma & Welling 2014, section 3.

    latent_dim: number d of latent dimensions.
    """

    words = "N(0, I)"
    standard = True

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        z = torch.randn(count, self.latent_dim, generator=generator, device=self._device(generator))
        return z if temperature == 1 else z * temperature

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.latent_dim)


class UniformCodes(Prior):
    """Every code alike at every position, as while a VQ-VAE trains (van den Oord et al. 2017, section 3.3).

    codes: number K of codes. shape: (h, w) of an image's map.
    """

    words = "all codes alike"

    def __init__(self, codes: int, shape: tuple[int, ...]):
        super().__init__()
        self.codes, self.shape = codes, tuple(shape)

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        size = (count, *self.shape)
        return torch.randint(self.codes, size, generator=generator, device=self._device(generator))

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.full((len(z),), -math.prod(self.shape) * math.log(self.codes), device=z.device)

    def check_temperature(self, temperature: float, model: str) -> None:
        if temperature != 1:
            raise UserError(
                f"temperature={temperature}: the prior of {model} is uniform over codes and has no deviation to scale"
            )
