"""A mixture of Gaussians as the prior, learned with the model or fitted afterwards to its codes (Ghosh et al. 2020)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt
from vaelab.nn.priors.base import Kept, Latents, Prior

ITERATIONS, AT_A_TIME, TOLERANCE = 200, 5, 1e-3
"""Rounds of EM at most, rounds between two ticks of the progress bar, and nats of mean log p(z) that end the fit."""
SPREAD = 0.1
"""Standard deviation of the means where they start: alike, all Gaussians would learn the same. With 0.5 the mixture is
far from N(0, I), and a VAE loses 1.6 nats of ELBO in its first five epochs (20,000 binary digits, K = 100)."""


class GaussianMixture(Prior):
    """A mixture of K Gaussians over a vector of latents: log p(z) = log sum_k w_k N(z; m_k, L_k L_k^T).

    With a model in training it learns by the ELBO's gradient, as the MoG prior of Tomczak & Welling 2018, section 3.2;
    `fit` is the ex-post density estimation of Ghosh et al. 2020, section 4. Before that its means lie at random, and it
    has the moments of N(0, I).

    latent_dim: number d of latent dimensions. components: K. covariance: `full`, or `diag` for Gaussians whose
    dimensions are independent. regularisation: what `fit` adds to each variance, in squared units of z.
    """

    afterwards = True

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
        spread = SPREAD if components > 1 else 0.0
        one = math.sqrt(1 - spread**2) * (torch.eye(latent_dim) if covariance == "full" else torch.ones(latent_dim))
        self.log_weights = nn.Parameter(torch.full((components,), -math.log(components)))
        self.means = nn.Parameter(spread * torch.randn(components, latent_dim))
        self.factors = nn.Parameter(one.expand(components, *one.shape).clone())

    @property
    def scales(self) -> Tensor:
        """The Cholesky factor of each Gaussian's covariance, [K, d, d], or its deviations, [K, d].

        They are the parameter `factors` up to the signs of the deviations, and what it has above the diagonal.
        """
        if self.covariance == "diag":
            return self.factors.abs()
        return self.factors.tril(-1) + self.factors.diagonal(dim1=1, dim2=2).abs().diag_embed()

    # --- as a prior ---------------------------------------------------------------------------

    @torch.no_grad()
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
        weights, means, factors = (
            values.to(device) for values in (self.log_weights.softmax(0), self.means, self.scales)
        )
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.latent_dim, generator=generator, device=device)
        if self.covariance == "diag":
            return means[chosen] + temperature * factors[chosen] * noise
        spread = torch.empty_like(noise)
        for k in chosen.unique():  # a matrix per draw would need count * d^2 numbers
            spread[chosen == k] = noise[chosen == k] @ factors[k].T
        return means[chosen] + temperature * spread

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        away, scales = z.unsqueeze(-2) - self.means, self.scales
        if self.covariance == "diag":
            standardised, deviations = away / scales, scales
        else:
            columns = away.flatten(0, -3).permute(1, 2, 0)  # [K, d, N]
            standardised = torch.linalg.solve_triangular(scales, columns, upper=False).permute(2, 0, 1)
            standardised, deviations = standardised.reshape(away.shape), scales.diagonal(dim1=1, dim2=2)
        constants = deviations.log().sum(-1) + 0.5 * self.latent_dim * math.log(2 * math.pi)
        each = -0.5 * standardised.square().sum(-1) - constants
        return (each + self.log_weights.log_softmax(0)).logsumexp(-1)

    @property
    def weights(self) -> Tensor:
        return self.log_weights.softmax(0)

    @property
    def mean(self) -> Tensor:
        return (self.weights @ self.means).detach()

    # --- the fit ------------------------------------------------------------------------------

    @torch.no_grad()
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
