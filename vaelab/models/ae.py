"""The deterministic autoencoder: the baseline that every VAE is held against."""

from __future__ import annotations

from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.layouts import vector
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Point


class AE(Model):
    """Minimises -log p(x | f(x)): no noise, no prior, nothing to sample until a prior is fitted to its codes.

    latent_dim: size d of the code.
    """

    monitor = "reconstruction"
    best = "min"

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, likelihood, condition)
        self.latent_dim = latent_dim
        self.layout = vector(latent_dim, standard=False, arrays=("codes",))
        self.encoder = network.encoder(self.shape, latent_dim, context=self.condition.size)
        self.decoder = network.decoder(latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Point:
        return Point(self.encoder(self.seen(x), self.condition(labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(beside(z, self.condition(labels)))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        raw = self.decode(self.encode(batch.images, batch.labels).codes, batch.labels)
        return {"reconstruction": -self.likelihood.log_prob(raw, batch.images)}

    def objective(self, terms: Terms) -> Tensor:
        return terms["reconstruction"].mean()
