"""The importance-weighted autoencoder (Burda, Grosse & Salakhutdinov 2016), with gradients by four estimators."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.vae import VAE
from vaelab.nn.conditions import Condition, again
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Head
from vaelab.nn.priors import Prior


class IWAE(VAE):
    """Maximises log 1/K sum_k p(x, z_k) / q(z_k|x), a bound that rises to log p(x) with the number K of draws (eq. 8).

    The bound is the same for each estimator; its gradient in the encoder is not. `iwae`: as it follows from the bound,
    whose signal falls against its noise as K grows (Rainforth et al. 2018). `stl`: without the score of q, less noisy
    and biased for K > 1 (Roeder et al. 2017). `dreg`: without the score and without bias, by squared weights (Tucker et
    al. 2019, eq. 8); its signal rises with K.

    num_samples: K. estimator: `iwae`, `stl` or `dreg`.
    """

    monitor = "bound"
    scalars: dict[str, float] = {}

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        latent_dim: PositiveInt,
        num_samples: PositiveInt,
        estimator: Literal["iwae", "stl", "dreg"],
        posterior: Build[Head] = None,
        prior: Build[Prior] = None,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, network, likelihood, latent_dim, posterior, prior, condition)
        self.num_samples, self.gradient = num_samples, estimator
        if estimator != "iwae":
            self.check_path(f"model.estimator={estimator}")

    def noise(self, count: int) -> Tensor:
        """Draws standard normal noise, [K, count, d]."""
        return torch.randn(self.num_samples, count, self.latent_dim, device=self.device)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Computes the bound of each image, and the ELBO's terms as means over its draws."""
        assert noise is not None
        x, labels, draws = batch.images, batch.labels, self.num_samples
        posterior = self.encode(x, labels)
        draw = posterior.draw if self.gradient == "iwae" else posterior.draw_by_path
        z, log_ratio = draw(noise, self.prior, labels)
        every = again(labels, draws)
        raw = self.decode(z.flatten(0, 1), every)
        log_px = self.likelihood.log_prob(raw, x.repeat(draws, 1, 1, 1)).view(draws, -1)
        log_weights = log_px + log_ratio
        if self.gradient == "dreg" and z.requires_grad:
            shares = log_weights.detach().softmax(0).unsqueeze(-1)
            z.register_hook(lambda gradient: shares * gradient)
        bound = log_weights.logsumexp(0) - math.log(draws)
        return {"bound": bound, "reconstruction": -log_px.mean(0), "kl": -log_ratio.mean(0)}

    def objective(self, terms: Terms) -> Tensor:
        return -terms["bound"].mean()
