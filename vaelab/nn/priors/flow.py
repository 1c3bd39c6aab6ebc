"""A masked autoregressive flow as the prior (Papamakarios et al. 2017; Huang et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelab.core.types import PositiveFloat, PositiveInt
from vaelab.nn import flows
from vaelab.nn.priors.base import Kept, Latents
from vaelab.nn.priors.learning import Gradual


class FlowPrior(Gradual):
    """p(z) of a flow f that carries latents to N(0, I): log p(z) = log N(f(z); 0, I) + log |det df/dz|.

    f is a masked autoregressive flow (Papamakarios et al. 2017, eq. 2-5), by the library zuko: a density takes one
    pass, a draw d per transform. It starts as the identity. With a model in training it learns by the ELBO's gradient,
    `fit` maximises the likelihood of the codes of a finished run, in units of their standard deviations.

    latent_dim: number d of latent dimensions. transforms: how many follow each other. hidden_dims: layers of the
    network in each. epochs, batch_size, lr, patience: of `fit`; see `vaelab.nn.priors.learning`.
    Raises UserError if zuko is not installed.
    """

    part = "latent"
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: PositiveInt,
        transforms: PositiveInt,
        hidden_dims: list[PositiveInt],
        epochs: PositiveInt,
        batch_size: PositiveInt,
        lr: PositiveFloat,
        patience: PositiveInt,
    ):
        super().__init__(epochs, batch_size, lr, patience)
        self.latent_dim = self.parts = latent_dim
        self.words = f"a masked autoregressive flow of {transforms} transform{'s' * (transforms > 1)}"
        self.flow = flows.Flow("prior=flow", latent_dim, transforms, hidden_dims)
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        noise, log_det = self.flow.carry((z - self.shift) / self.scale)
        normal = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)
        return normal + log_det - self.scale.log().sum()

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """`count` draws, [count, d]; the temperature scales the noise that the flow is run backwards from."""
        device = self._device(generator)
        noise = torch.randn(count, self.latent_dim, generator=generator, device=device).to(self.place.device)
        return (self.shift + self.scale * self.flow.back(temperature * noise)[0]).to(device)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        """Where the noise is 0: a latent in the middle, which the mean need not be."""
        return self.shift + self.scale * self.flow.back(torch.zeros_like(self.shift))[0]

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
