"""The contract of a prior p(z)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prior(nn.Module):
    """Base class of the priors.

    words: its name in captions and messages. standard: whether each axis has mean 0 and standard deviation 1.
    afterwards: whether it is no part of the training, and is fitted by `fit` to the codes of a finished run.
    """

    words: str
    standard = False
    afterwards = False
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(()), persistent=False)  # knows the device to draw on

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws the latents of `count` images: [count, d], or [count, h, w] int64.

        labels: [count], of conditional images. generator: the source of the noise, on whose device the
        draws are made; torch's global one on the prior's own device where None. temperature: factor of
        the prior's deviations, or exponent 1 / temperature of its probabilities.
        Raises UserError for a temperature that the prior has no use for.
        """
        raise NotImplementedError

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes log p(z) of each latent, nats: [..., d] -> [...], or [B, h, w] -> [B]."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor | None:
        """The mean latent, [d], where a path can start; None where there is none."""
        return None

    def fit(self, z: Tensor, seed: int) -> str:
        """Fits a prior that is fitted afterwards to latents, with a progress bar. Returns how it went, in words.

        z: of N images, [N, d]. seed: of what the fit draws. Raises UserError for latents that it cannot fit.
        """
        raise NotImplementedError

    def check_temperature(self, temperature: float, model: str) -> None:
        """Raises UserError for a temperature that cannot be applied. model: name of the model whose prior it is."""

    def _device(self, generator: torch.Generator | None) -> torch.device:
        return self.place.device if generator is None else generator.device
