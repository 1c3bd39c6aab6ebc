"""Priors that are fitted afterwards: the mixture of Gaussians, its fit, and the commands that use it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaelab.core.errors import UserError
from vaelab.nn.posteriors import DiagonalGaussian
from vaelab.nn.priors import GaussianMixture, StandardNormal


def mixture(covariance: str, seed: int = 0, components: int = 3, d: int = 4) -> GaussianMixture:
    """A mixture with random parameters."""
    noise, prior = torch.Generator().manual_seed(seed), GaussianMixture(d, components, covariance, 0.0)
    prior.log_weights.copy_(torch.randn(components, generator=noise).log_softmax(0))
    prior.means.copy_(3 * torch.randn(components, d, generator=noise))
    if covariance == "diag":
        prior.factors.copy_(0.2 + torch.rand(components, d, generator=noise))
    else:
        spread = torch.randn(components, d, 2 * d, generator=noise)
        prior.factors.copy_(torch.linalg.cholesky(spread @ spread.mT / d))
    return prior


def of_torch(prior: GaussianMixture) -> MixtureSameFamily:
    if prior.covariance == "diag":
        parts = Independent(Normal(prior.means, prior.factors), 1)
    else:
        parts = MultivariateNormal(prior.means, scale_tril=prior.factors)
    return MixtureSameFamily(Categorical(logits=prior.log_weights), parts)


def covariances(prior: GaussianMixture) -> torch.Tensor:
    full = prior.covariance == "full"
    return prior.factors @ prior.factors.mT if full else torch.diag_embed(prior.factors**2)


# --- the mixture ------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_its_density_is_that_of_torch(covariance):
    prior, z = mixture(covariance), 3 * torch.randn(7, 5, 4)
    torch.testing.assert_close(prior.log_prob(z), of_torch(prior).log_prob(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_its_draws_have_its_moments(covariance, temperature):
    """And a temperature scales the deviations of each Gaussian, not the distances between them."""
    prior, n = mixture(covariance), 200_000
    z = prior.sample(n, generator=torch.Generator().manual_seed(1), temperature=temperature).double()
    weights, means = prior.log_weights.exp().double(), prior.means.double()
    away = means - weights @ means
    within = (weights[:, None, None] * covariances(prior)).sum(0)
    expected = temperature**2 * within + (weights[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)
    assert (z.mean(0) - weights @ means).abs().max() < 5 * (expected.diagonal().max() / n) ** 0.5
    assert (z.T.cov() - expected).abs().max() < 0.02 * expected.diagonal().max()
    torch.testing.assert_close(prior.mean.double(), weights @ means)


def test_at_temperature_zero_every_draw_is_a_mean():
    prior = mixture("full")
    assert torch.cdist(prior.sample(50, temperature=0.0), prior.means).min(1).values.max() == 0


def test_a_seed_gives_the_same_draws():
    prior = mixture("diag")
    a, b = (prior.sample(9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_fit_finds_the_mixture_that_made_the_latents(covariance):
    truth = mixture(covariance, d=2)
    truth.log_weights.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    truth.means.copy_(torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 15.0]]))
    z = truth.sample(20_000, generator=torch.Generator().manual_seed(0))
    found = GaussianMixture(2, 3, covariance, 1e-6)
    assert "has converged" in found.fit(z, seed=0)
    nearest = torch.cdist(truth.means, found.means).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.log_weights[nearest].exp(), truth.log_weights.exp(), rtol=0, atol=0.02)
    torch.testing.assert_close(covariances(found)[nearest], covariances(truth), rtol=0.1, atol=0.1)
    assert found.log_prob(z).mean() > truth.log_prob(z).mean() - 1e-3


def test_the_regularisation_is_added_to_each_variance():
    z, variances = torch.randn(500, 3), {}
    for extra in (0.0, 0.5):
        found = GaussianMixture(3, 1, "full", extra)
        found.fit(z, seed=0)
        variances[extra] = covariances(found)[0]
    torch.testing.assert_close(variances[0.5] - variances[0.0], 0.5 * torch.eye(3), atol=1e-4, rtol=0)


def test_fewer_latents_than_gaussians_are_refused():
    with pytest.raises(UserError, match=r"prior.components=5.*3 images"):
        GaussianMixture(2, 5, "diag", 0.0).fit(torch.randn(3, 2), seed=0)


# --- the law ----------------------------------------------------------------------------------


def test_what_a_fitted_prior_gains_is_the_kl_of_the_aggregate_posterior():
    """Of a linear Gaussian encoder all is in closed form: q(z) = N(m, S), and one Gaussian fits it exactly.

    With encoder and decoder as they are, the gain in ELBO over N(0, I) is KL(q(z) || N(0, I)), and no prior gains more.
    """
    noise, d, n = torch.Generator().manual_seed(0), 3, 100_000
    weights, shift, logvar = torch.randn(d, 5, generator=noise), torch.randn(d, generator=noise), torch.tensor(-1.0)
    means = torch.randn(n, 5, generator=noise) @ weights.T + shift
    posterior = DiagonalGaussian(means, logvar.expand(n, d))
    aggregate = weights @ weights.T + logvar.exp() * torch.eye(d)
    kl = 0.5 * (aggregate.trace() + shift @ shift - d - aggregate.logdet())
    draws, fresh = (posterior.rsample(torch.randn(n, d, generator=noise)) for _ in range(2))

    def gain(prior: GaussianMixture) -> float:
        """What the ELBO gains, by draws that the fit has not seen."""
        return (prior.log_prob(fresh) - StandardNormal(d).log_prob(fresh)).mean().item()

    fitted = {}
    for name, z, components in (("draws", draws, 1), ("means", means, 1), ("many", draws[:500], 20)):
        fitted[name] = GaussianMixture(d, components, "full", 1e-6)
        fitted[name].fit(z, seed=0)
    error = 4 * kl.item() / math.sqrt(n) + 0.02
    assert gain(fitted["draws"]) == pytest.approx(kl.item(), abs=error)
    assert max(gain(fitted["means"]), gain(fitted["many"])) < gain(fitted["draws"]) - 0.01
    _, own = posterior.sample_with_kl(torch.randn(n, d, generator=noise), StandardNormal(d))
    _, other = posterior.sample_with_kl(torch.randn(n, d, generator=noise), fitted["draws"])
    assert own.exact
    assert not other.exact
    assert (own.total - other.total).mean().item() == pytest.approx(kl.item(), abs=error)
