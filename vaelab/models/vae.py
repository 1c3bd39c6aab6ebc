"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import global_mean
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.layouts import vector
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import KL, Diagonal, Head, Posterior
from vaelab.nn.priors import Prior, StandardNormal


class VAE(Model):
    """Minimises the negative ELBO, E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), with one draw of z.

    beta is 1; a schedule may warm it up to 1.

    latent_dim: number d of latent dimensions. posterior: q(z|x), given d; a diagonal Gaussian if None.
    prior: p(z), given d; N(0, I) if None. estimator: of the KL: `closed` form where there is one, `draws`, or `stl`,
    by draws whose gradients stick the landing (Roeder, Wu & Duvenaud 2017). free_bits: nats of each dimension's mean KL
    that cost nothing less (Kingma et al. 2016, appendix C.8).
    """

    scalars = {"beta": 1.0}
    beta: Tensor
    prior: Prior
    estimator: Literal["closed", "draws", "stl"] = "closed"
    free_bits: float = 0.0

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
        estimator: Literal["closed", "draws", "stl"] = "closed",
        free_bits: NonNegativeFloat = 0.0,
    ):
        super().__init__(shape, num_classes, likelihood, condition)
        self.estimator, self.free_bits = estimator, free_bits
        self.latent_dim = latent_dim
        self.posterior = (posterior or Diagonal)(latent_dim)
        self.prior = (prior or StandardNormal)(latent_dim)
        self.layout = vector(latent_dim, self.prior.standard, spherical=self.prior.spherical)
        self.encoder = network.encoder(self.shape, self.posterior.features, context=self.condition.size)
        self.decoder = network.decoder(latent_dim + self.condition.size, self.likelihood.raw_shape(self.shape))
        self.check_space()
        self.prior.belongs(self.encode, self.shape, self.condition.in_turn(1))
        if estimator == "stl":
            self.check_path("model.estimator=stl")
        if free_bits and not (estimator == "closed" and self._has_kl_per_dim()):
            raise UserError(
                f"model.free_bits={free_bits} needs the KL of each dimension in closed form: posterior=diagonal, "
                "prior=standard, model.estimator=closed"
            )

    def _has_kl_per_dim(self) -> bool:
        example = self.posterior.example()
        return example.has_kl(self.prior) and example.kl(self.prior).per_dim is not None

    def check_space(self) -> None:
        """Raises UserError where one of posterior and prior is of points on a sphere, and the other of all vectors."""
        if self.posterior.example().spherical != self.prior.spherical:
            raise UserError(
                f"prior: it is {self.prior.words}, and draws of the posterior are {'not ' * self.prior.spherical}on a "
                "sphere: posterior=vmf and prior=sphere go together"
            )

    def check_path(self, setting: str) -> None:
        """Raises UserError for a setting that needs `Posterior.draw_by_path` where the posterior has none."""
        if not self.posterior.example().density or any(True for _ in self.posterior.parameters()):
            raise UserError(
                f"{setting} needs a density whose parameters are all the encoder's: posterior=diagonal, full or vmf"
            )

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        return self.posterior(self.encoder(self.seen(x), self.condition(labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(beside(self.layout.onto(z), self.condition(labels)))

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
        if self.estimator == "closed":
            z, kl = posterior.sample_with_kl(noise, self.prior, labels)
        else:
            draw = posterior.draw if self.estimator == "draws" else posterior.draw_by_path
            z, log_ratio = draw(noise, self.prior, labels)
            kl = KL(-log_ratio, None, exact=False)
        terms = {"reconstruction": -self.likelihood.log_prob(self.decode(z, labels), x), "kl": kl.total}
        if kl.per_dim is not None:
            terms["kl_per_dim"] = kl.per_dim
            if self.free_bits:
                each = global_mean(kl.per_dim.mean(0), batch.share)
                terms["kl_floored"] = each.clamp_min(self.free_bits).sum()
        return terms, posterior, z

    def objective(self, terms: Terms) -> Tensor:
        kl = terms["kl_floored"] if self.free_bits else terms["kl"].mean()
        return terms["reconstruction"].mean() + self.beta * kl

    def vectors(self, terms: Terms) -> dict[str, Tensor]:
        return {"kl_per_dim": terms["kl_per_dim"].sum(0)} if "kl_per_dim" in terms else {}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        return {"elbo": -(means["reconstruction"] + means["kl"])}
