"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.layouts import vector
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Diagonal, Head, Posterior
from vaelab.nn.priors import Prior, StandardNormal


class VAE(Model):
    """Minimises the negative ELBO, E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), with one draw of z.

    beta is 1; a schedule may warm it up to 1.

    latent_dim: number d of latent dimensions. posterior: q(z|x), given d; a diagonal Gaussian if None.
    prior: p(z), given d; N(0, I) if None.
    """

    scalars = {"beta": 1.0}
    beta: Tensor
    prior: Prior

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, likelihood, condition)
        self.latent_dim = latent_dim
        self.posterior = (posterior or Diagonal)(latent_dim)
        self.prior = (prior or StandardNormal)(latent_dim)
        self.layout = vector(latent_dim, self.prior.standard)
        self.encoder = network.encoder(self.shape, self.posterior.features, context=self.condition.size)
        self.decoder = network.decoder(latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        return self.posterior(self.encoder(self.seen(x), self.condition(labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(beside(z, self.condition(labels)))

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise, [count, d]."""
        return torch.randn(count, self.latent_dim, device=self.device)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        return self.measured(batch, noise)[0]

    def measured(self, batch: Batch, noise: Tensor | None) -> tuple[Terms, Posterior, Tensor]:
        """Computes the ELBO's terms; returns them with the posterior and the draws of z, [B, d], for further ones."""
        assert noise is not None
        x, labels = batch.images, batch.labels
        posterior = self.encode(x, labels)
        z, kl = posterior.sample_with_kl(noise, self.prior, labels)
        terms = {"reconstruction": -self.likelihood.log_prob(self.decode(z, labels), x), "kl": kl.total}
        return terms if kl.per_dim is None else terms | {"kl_per_dim": kl.per_dim}, posterior, z

    def objective(self, terms: Terms) -> Tensor:
        return terms["reconstruction"].mean() + self.beta * terms["kl"].mean()

    def vectors(self, terms: Terms) -> dict[str, Tensor]:
        return {"kl_per_dim": terms["kl_per_dim"].sum(0)} if "kl_per_dim" in terms else {}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        return {"elbo": -(means["reconstruction"] + means["kl"])}
