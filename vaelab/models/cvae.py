"""The conditional VAE (Sohn, Lee & Yan 2015; Kingma et al. 2014, model M2 with observed labels)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.vae import VAE
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network


class CVAE(VAE):
    """A VAE of p(x | y): the label y enters encoder and decoder, and the prior of z stays N(0, I).

    Both see the same learned embedding of the label, next to the pixels and next to z. Its entries
    start as N(0, 1) / sqrt(label_dim), so its norm is about 1 while |z| under the prior is about
    sqrt(latent_dim): the label informs the decoder without dwarfing z.

    label_dim: size of the label embedding.
    """

    conditional = True

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        label_dim: PositiveInt,
    ):
        if num_classes is None:
            raise UserError("model=cvae needs labels, and this data set has none: use model=vae, or a labelled dataset")
        self.label_dim = label_dim
        super().__init__(shape, num_classes, network, likelihood, latent_dim)

    def _build(self, network: Network) -> None:
        assert self.num_classes is not None
        self.embedding = nn.Embedding(self.num_classes, self.label_dim)
        nn.init.normal_(self.embedding.weight, std=self.label_dim**-0.5)
        self.encoder = network.encoder(self.shape, 2 * self.latent_dim, context=self.label_dim)
        self.decoder = network.decoder(self.latent_dim + self.label_dim, self.shape)

    def _embed(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a conditional VAE needs the images' labels")
        return self.embedding(labels)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(x, self._embed(labels)).float().chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(torch.cat([z, self._embed(labels).to(z.dtype)], 1))

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """Mean images of `count` draws; labels: [count], or None for every class in turn."""
        if labels is None:
            assert self.num_classes is not None
            labels = torch.arange(count, device=self.device) % self.num_classes
        return super().sample(count, labels)
