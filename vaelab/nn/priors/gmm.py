"""A mixture of Gaussians as the prior, fitted afterwards to the codes of a finished run (Ghosh et al. 2020)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt
from vaelab.nn.priors.base import Kept, Latents, Prior

ITERATIONS, AT_A_TIME, TOLERANCE = 200, 5, 1e-3
"""Rounds of EM at most, rounds between two ticks of the progress bar, and nats of mean log p(z) that end the fit."""


class GaussianMixture(Prior):
    """A mixture of K Gaussians over a vector of latents: Ghosh et al. 2020, section 4, ex-post density estimation.

    It is N(0, I) until `fit` is called.

    latent_dim: number d of latent dimensions. components: K. covariance: `full`, or `diag` for Gaussians whose
    dimensions are independent. regularisation: what is added to each variance, in squared units of z.
    """

    afterwards = True
    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(
        self,
        latent_dim: PositiveInt,
        components: PositiveInt,
        covariance: Literal["full", "diag"],
        regularisation: NonNegativeFloat,
    ):
        super().__init__()
        self.latent_dim, self.components = latent_dim, components
        self.covariance, self.regularisation = covariance, regularisation
        self.words = f"a mixture of {components} Gaussian{'s' * (components > 1)}"
        one = torch.eye(latent_dim) if covariance == "full" else torch.ones(latent_dim)
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, latent_dim))
        self.register_buffer("factors", one.expand(components, *one.shape).clone())

    # --- as a prior ---------------------------------------------------------------------------

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """`count` draws, [count, d]; the temperature scales each Gaussian's deviations and leaves the weights."""
        device = self._device(generator)
        weights, means, factors = (values.to(device) for values in (self.log_weights.exp(), self.means, self.factors))
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.latent_dim, generator=generator, device=device)
        if self.covariance == "diag":
            return means[chosen] + temperature * factors[chosen] * noise
        spread = torch.empty_like(noise)
        for k in chosen.unique():  # a matrix per draw would need count * d^2 numbers
            spread[chosen == k] = noise[chosen == k] @ factors[k].T
        return means[chosen] + temperature * spread

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        parts = [self._log_normal(z, k) for k in range(self.components)]
        return (torch.stack(parts, -1) + self.log_weights).logsumexp(-1)

    def _log_normal(self, z: Tensor, k: int) -> Tensor:
        """log N(z; mean, factor factor^T) of one of the Gaussians, [..., d] -> [...]."""
        away, factor = z - self.means[k], self.factors[k]
        if self.covariance == "diag":
            standardised, deviations = away / factor, factor
        else:
            columns = away.reshape(-1, self.latent_dim).T
            standardised = torch.linalg.solve_triangular(factor, columns, upper=False).T.reshape(away.shape)
            deviations = factor.diagonal()
        constant = deviations.log().sum() + 0.5 * self.latent_dim * math.log(2 * math.pi)
        return -0.5 * standardised.square().sum(-1) - constant

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.means

    # --- the fit ------------------------------------------------------------------------------

    def fit(
        self,
        z: Tensor,
        seed: int,
        labels: Tensor | None = None,
        held_out: Latents | None = None,
        kept: Kept | None = None,
    ) -> str:
        """Fits the mixture to latents by EM from k-means, with a progress bar. Returns how it went, in words.

        z: [N, d]. seed: of k-means. Labels, latents that are held out and what is kept are not looked at.
        Raises UserError for fewer latents than Gaussians.
        """
        if len(z) < max(2, self.components):
            raise UserError(
                f"prior.components={self.components}: there are only {len(z)} images to fit to: take fewer components"
            )
        found, rounds = self._em(z.cpu().double().numpy(), seed)
        covariances = torch.as_tensor(found.covariances_)
        full = self.covariance == "full"
        self.log_weights.copy_(torch.as_tensor(found.weights_).log())
        self.means.copy_(torch.as_tensor(found.means_))
        self.factors.copy_(torch.linalg.cholesky(covariances) if full else covariances.sqrt())
        return f"EM {'has converged' if found.converged_ else 'has not converged'} after {rounds} rounds"

    def _em(self, z: Any, seed: int) -> tuple[Any, int]:
        """scikit-learn's mixture after its fit, and how many rounds of EM that took. z: [N, d] float64."""
        from sklearn import mixture
        from sklearn.exceptions import ConvergenceWarning
        from tqdm import tqdm

        found = mixture.GaussianMixture(
            self.components,
            covariance_type=self.covariance,
            reg_covar=self.regularisation,
            tol=TOLERANCE,
            max_iter=AT_A_TIME,
            warm_start=True,  # each call goes on where the one before stopped
            random_state=seed,
        )
        rounds = 0
        with warnings.catch_warnings(), tqdm(desc="fitting", unit="round", delay=2, leave=False, disable=None) as bar:
            warnings.simplefilter("ignore", ConvergenceWarning)
            while rounds < ITERATIONS:
                found.fit(z)
                rounds += found.n_iter_
                bar.update(found.n_iter_)
                if found.converged_:
                    break
        return found, rounds
