"""Gaussian posteriors with a full covariance."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from tests.correlated import LATENTS, SIGMA, Correlated, seeded
from vaelab.core.batch import Batch
from vaelab.evaluation.metrics.likelihood import importance_weighted, mean_and_error
from vaelab.nn.posteriors import Diagonal, Full, FullGaussian
from vaelab.nn.priors import StandardNormal

MEMORY = 2**20


def posterior(count=3, d=4) -> FullGaussian:
    return Full(d)(torch.randn(count, Full(d).features, generator=seeded(1)))


def of_torch(full: FullGaussian, first: int | None = None) -> MultivariateNormal:
    """That of the `first` dimensions, all if None, by torch."""
    covariance = (full.factor @ full.factor.mT).double()[:, :first, :first]
    return MultivariateNormal(full.mean.double()[:, :first], covariance)


@pytest.mark.parametrize("draws", [(), (5,), (2, 5)])
def test_its_density_is_that_of_torch_and_of_its_draws(draws):
    full, prior = posterior(), StandardNormal(4)
    noise = torch.randn(*draws, 3, 4, generator=seeded(2))
    z, log_ratio = full.draw(noise, prior)
    assert z.shape == noise.shape
    torch.testing.assert_close(full.log_prob(z).double(), of_torch(full).log_prob(z.double()), rtol=0, atol=1e-3)
    torch.testing.assert_close(prior.log_prob(z) - full.log_prob(z), log_ratio, rtol=0, atol=1e-3)


def test_its_draws_have_its_covariance():
    full, n = posterior(1), 200_000
    z = full.rsample(torch.randn(n, 1, 4, generator=seeded(3)))[:, 0]
    expected = of_torch(full).covariance_matrix[0]
    assert (z.double().T.cov() - expected).abs().max() < 0.02 * expected.diagonal().max()


def test_the_kl_of_the_first_dimensions_is_that_of_their_marginal():
    """So the KL of each is what it adds to those before it, and all together are that of torch."""
    full = posterior()
    found = full.kl(StandardNormal(4))
    so_far = found.per_dim.double().cumsum(1)
    for first in range(1, 5):
        normal = MultivariateNormal(torch.zeros(first).double(), torch.eye(first).double())
        torch.testing.assert_close(
            so_far[:, first - 1], kl_divergence(of_torch(full, first), normal), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(found.total.double(), so_far[:, -1], rtol=1e-5, atol=1e-5)


def solved(model: Correlated) -> Correlated:
    """The model with the best encoder of its kind: the exact mean, and the best covariance that the head has."""
    covariance = model.precision.inverse()
    mean = covariance @ model.weight.t() / SIGMA**2
    full = isinstance(model.posterior, Full)
    factor = torch.linalg.cholesky(covariance) if full else (1 / model.precision.diagonal()).sqrt().diag()
    rows, columns = torch.tril_indices(LATENTS, LATENTS, -1)
    last = model.encoder.body[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.weight[:LATENTS] = mean
        last.bias.copy_(
            torch.cat([torch.zeros(LATENTS), 2 * factor.diagonal().log(), factor[rows, columns][: int(full)]])
        )
    return model


def test_it_reaches_the_evidence_where_the_best_diagonal_gaussian_does_not():
    """Of the exact posterior every draw weighs alike, and one alone has log p(x)."""
    full, diagonal = solved(Correlated(Full)), solved(Correlated(Diagonal))
    x = full.images(500, 7)
    truth = full.log_evidence(x)
    bound = importance_weighted(full, x, None, 4, MEMORY, seeded())
    torch.testing.assert_close(bound.log_p_hat, truth, rtol=0, atol=1e-4)
    torch.testing.assert_close(bound.effective_samples, torch.full((500,), 4.0).double(), rtol=1e-4, atol=0)
    for model, lost in ((full, 0.0), (diagonal, full.lost_by_a_diagonal)):
        missing = mean_and_error(truth - importance_weighted(model, x, None, 200, MEMORY, seeded()).elbo)
        assert missing.mean == pytest.approx(lost, abs=4 * missing.error + 2e-3)
    assert full.lost_by_a_diagonal > 0.3


def test_the_kl_of_each_dimension_is_logged():
    model = Correlated(Full)
    terms = model.terms(Batch(model.images(6, 1), None), model.noise(6))
    torch.testing.assert_close(model.vectors(terms)["kl_per_dim"].sum(), terms["kl"].sum())
