"""The second of two VAEs: a small one of the codes that a finished run gives (Dai & Wipf 2019)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from vaelab.core.types import PositiveFloat, PositiveInt
from vaelab.nn.gaussian import kl_to_standard_normal, reparameterise
from vaelab.nn.priors.base import Kept, Latents
from vaelab.nn.priors.learning import Gradual

SEED = 0
"""Of the draws that `log_prob` is estimated with, which thus is a function of z."""
START = 0.2
"""The variance of p(z|u) where a fit starts, in squared units of the codes' standard deviations."""


class TwoStage(Gradual):
    """p(z) of a VAE whose images are the codes z of another one: u ~ N(0, I), then z ~ N(f(u), gamma^2 I).

    Dai & Wipf 2019, section 4: where the first VAE's codes are not N(0, I), the second has what is left to learn; u has
    the size of z and q(u|z) independent dimensions, and gamma is learned. `fit` maximises the second ELBO. `log_prob`
    is an importance-weighted bound (Burda et al. 2016, eq. 8), whose draws are always the same: exp of it is right in
    expectation, and its own mean at most log p(z). Deviations: codes are learned in units of their standard deviations;
    f and the encoder, whose last layer is given their input too, as the authors' code has it, start linear, so that the
    whole starts as a Gaussian with the codes' variances, in which u tells of z.

    latent_dim: number d of latent dimensions. hidden_dims: layers of the encoder; the decoder has them in reverse.
    importance_samples: draws of u in `log_prob`. epochs, batch_size, lr, patience: of `fit`; see
    `vaelab.nn.priors.learning`.
    """

    in_training = False
    part = "latent"
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: PositiveInt,
        hidden_dims: list[PositiveInt],
        importance_samples: PositiveInt,
        epochs: PositiveInt,
        batch_size: PositiveInt,
        lr: PositiveFloat,
        patience: PositiveInt,
    ):
        super().__init__(epochs, batch_size, lr, patience)
        self.latent_dim = self.parts = latent_dim
        self.importance_samples = importance_samples
        self.words = "a second VAE"
        self.estimate = f"importance-sampled, {importance_samples:,} draws"
        gain = math.sqrt(1 - START)
        self.encoder = _Skipping(latent_dim, hidden_dims, [(gain, 0.0), (0.0, math.log(START))])
        self.decoder = _Skipping(latent_dim, hidden_dims[::-1], [(gain, 0.0)])
        self.log_gamma = nn.Parameter(torch.tensor(0.5 * math.log(START)))
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def objective(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes the ELBO of each z, [N], with one draw of u and the KL in closed form."""
        z = (z - self.shift) / self.scale
        mean, logvar = self.encoder(z).chunk(2, -1)
        u = reparameterise(mean, logvar, torch.randn_like(mean))
        return self._log_likelihood(z, u) - kl_to_standard_normal(mean, logvar).sum(-1) - self.scale.log().sum()

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Estimates log p(z) as log 1/K sum_k p(z|u_k) p(u_k) / q(u_k|z), u_k ~ q(u|z): [..., d] -> [...], nats."""
        z, generator = (z - self.shift) / self.scale, torch.Generator().manual_seed(SEED)
        mean, logvar = self.encoder(z).chunk(2, -1)
        log_w = []
        for _ in range(self.importance_samples):
            noise = torch.randn(z.shape, generator=generator).to(z.device)
            u = reparameterise(mean, logvar, noise)
            log_ratio = 0.5 * (noise.square() + logvar - u.square()).sum(-1)  # log p(u) - log q(u|z)
            log_w.append(self._log_likelihood(z, u) + log_ratio)
        return torch.stack(log_w).logsumexp(0) - math.log(self.importance_samples) - self.scale.log().sum()

    def _log_likelihood(self, z: Tensor, u: Tensor) -> Tensor:
        """Computes log p(z|u) of codes in units of their deviations, [..., d] both, nats."""
        away = (z - self.decoder(u)) * (-self.log_gamma).exp()
        return -0.5 * (away.square() + 2 * self.log_gamma + math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """`count` draws, [count, d]; the temperature scales the noise of u, and that of z given u."""
        device = self._device(generator)
        noise = temperature * torch.randn(2, count, self.latent_dim, generator=generator, device=device)
        first, second = noise.to(self.place.device)
        return (self.shift + self.scale * (self.decoder(first) + self.log_gamma.exp() * second)).to(device)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        """Where u is 0: a latent in the middle, which the mean need not be."""
        return self.shift + self.scale * self.decoder(torch.zeros_like(self.shift))

    def fit(
        self,
        z: Tensor,
        seed: int,
        labels: Tensor | None = None,
        held_out: Latents | None = None,
        kept: Kept | None = None,
    ) -> str:
        deviations, mean = torch.std_mean(z, 0, correction=0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(deviations > 0, deviations, 1.0))
        return super().fit(z, seed, labels, held_out, kept)


class _Skipping(nn.Module):
    """Layers with ReLUs between vectors of d numbers; the last one is given their input, too.

    size: d. starts: for each d outputs the gain and the bias of the linear function of the input that they start as.
    """

    def __init__(self, size: int, hidden_dims: list[int], starts: list[tuple[float, float]]):
        super().__init__()
        widths = [size, *hidden_dims]
        self.body = nn.Sequential(*(module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.ReLU())))
        self.last = nn.Linear(size + widths[-1], size * len(starts))
        with torch.no_grad():
            self.last.weight.zero_()[:, :size] = torch.cat([gain * torch.eye(size) for gain, _ in starts])
            self.last.bias.copy_(torch.tensor([bias for _, bias in starts]).repeat_interleave(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.body(x)], -1))
