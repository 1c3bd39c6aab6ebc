"""The Wasserstein autoencoder with a maximum mean discrepancy (Tolstikhin, Bousquet, Gelly & Schölkopf 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import all_rows
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.aggregate import mmd
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Deterministic, Diagonal, Head
from vaelab.nn.priors import Prior


class WAE(VAE):
    """Minimises E_q[-log p(x|z)] + weight MMD(q(z), p(z)): no KL, so codes may be points (algorithm 2, WAE-MMD).

    The squared discrepancy is estimated, without bias, between the codes of a batch and as many draws from the prior.

    weight: lambda, where no schedule sets it. encoder: `deterministic` as published, or `gaussian` for draws from
    a posterior, which has a bound on log p(x) too. kernel: `imq` as published, or `rbf`.
    """

    monitor = "loss"
    best = "min"
    least_batch = 2
    scalars = {"weight": 1.0}
    weight: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        weight: NonNegativeFloat,
        encoder: Literal["deterministic", "gaussian"],
        kernel: Literal["imq", "rbf"],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        points = encoder == "deterministic"
        if points and posterior is not None and not isinstance(posterior(latent_dim), Diagonal):
            raise UserError(
                "posterior: model=wae has none with model.encoder=deterministic: use model.encoder=gaussian"
            )
        posterior = Deterministic if points else posterior
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        if any(True for _ in self.prior.parameters()):
            raise UserError("prior: model=wae has no KL that a prior could learn from: use standard, then vaelab prior")
        if points:
            self.layout = replace(self.layout, arrays=("codes",))
        self.weight.fill_(weight)
        self.kernel = kernel

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise, and latents from the prior: [2, count, d]."""
        return torch.stack([super().noise(count), self.prior.sample(count)])

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Computes the reconstruction of a draw and the discrepancy of the global batch; the KL where there is one."""
        assert noise is not None
        x, labels = batch.images, batch.labels
        posterior = self.encode(x, labels)
        z = posterior.rsample(noise[0])
        distance = mmd(all_rows(z, batch.share), all_rows(noise[1], batch.share), self.kernel)
        terms = {"reconstruction": -self.likelihood.log_prob(self.decode(z, labels), x), "mmd": distance.expand(len(z))}
        if not posterior.density:
            return terms
        with torch.no_grad():
            return terms | {"kl": posterior.sample_with_kl(noise[0], self.prior, labels)[1].total}

    def objective(self, terms: Terms) -> Tensor:
        return terms["reconstruction"].mean() + self.weight * terms["mmd"].mean()

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        return super().derived(means, vectors) if "kl" in means else {}
