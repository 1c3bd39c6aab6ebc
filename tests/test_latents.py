import math

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, Normal

from vaelab.evaluation.metrics.latents import active_dimensions, aggregate_kl
from vaelab.evaluation.metrics.likelihood import mean_and_error
from vaelab.nn.gaussian import kl_to_standard_normal

MEMORY = 2**20


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_covariance(count, covariance):
    """Points [count, d] whose mean is 0 and whose sample covariance is exactly `covariance`."""
    x = torch.randn(count, len(covariance), generator=seeded(9), dtype=torch.float64)
    x -= x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.t() @ x / count), x.t(), upper=False)
    return (torch.linalg.cholesky(covariance) @ white).t().float()


def posteriors(count, covariance, variances):
    """Means and log-variances whose aggregate is N(0, covariance) up to the sampling of the means."""
    variances = torch.as_tensor(variances, dtype=torch.float64)
    mean = with_covariance(count, covariance.double() - variances.diag())
    return mean, variances.log().float().expand(count, -1)


def near(estimate, value, allowed=0.0):
    return abs(estimate.mean - value) < 4 * estimate.error + allowed


@pytest.mark.parametrize("rho", [0.8, -0.5])
def test_total_correlation_of_correlated_gaussians_in_ten_dimensions(rho):
    covariance = torch.eye(10)
    covariance[0, 1] = covariance[1, 0] = rho
    variances = [0.75 * (1 - abs(rho))] * 2 + [0.7] * 8
    found = aggregate_kl(*posteriors(10_000, covariance, variances), 5000, seeded(), MEMORY)
    assert near(found.total_correlation, -0.5 * math.log(1 - rho**2))
    assert found.total_correlation.error < 0.015
    assert near(found.dimension_wise_kl, 0)
    # entropy of the aggregate less that of a posterior
    information = 0.5 * (math.log(1 - rho**2) - math.fsum(map(math.log, variances)))
    assert near(found.index_code_mi, information)


def test_a_standard_normal_aggregate_has_neither_total_correlation_nor_dimension_wise_kl():
    found = aggregate_kl(*posteriors(5000, torch.eye(4), [0.4, 0.5, 0.6, 0.7]), 5000, seeded(), MEMORY)
    assert near(found.total_correlation, 0)
    assert near(found.dimension_wise_kl, 0)
    assert found.total_correlation.error < 0.003
    assert found.dimension_wise_kl.error < 0.002
    assert near(found.index_code_mi, -0.5 * math.log(0.4 * 0.5 * 0.6 * 0.7))


def test_dimension_wise_kl_is_that_of_the_marginals():
    # uncorrelated, but wider and narrower than the prior: all that is left beside the information
    variances = torch.tensor([0.25, 4.0])
    found = aggregate_kl(*posteriors(5000, variances.diag(), 0.6 * variances), 5000, seeded(), MEMORY)
    expected = 0.5 * (variances - 1 - variances.log()).sum().item()
    assert near(found.dimension_wise_kl, expected)
    assert near(found.total_correlation, 0)


def some(count, dimensions):
    noise = seeded(3)
    mean = torch.randn(count, dimensions, generator=noise) @ torch.randn(dimensions, dimensions, generator=noise)
    return mean, torch.randn(count, dimensions, generator=noise) - 1


def test_the_terms_add_up_to_the_kl_which_is_the_analytic_one():
    mean, logvar = some(400, 6)
    found = aggregate_kl(mean, logvar, 20_000, seeded(), MEMORY)
    parts = found.index_code_mi.mean + found.total_correlation.mean + found.dimension_wise_kl.mean
    assert parts == pytest.approx(found.kl.mean, abs=1e-9)
    assert near(found.kl, kl_to_standard_normal(mean, logvar).sum(1).mean().item())
    assert found.kl.error < 0.01 * found.kl.mean


def test_posteriors_far_apart_tell_the_image_and_equal_ones_tell_nothing():
    mean = 1000 * torch.arange(50.0)[:, None].expand(-1, 3)
    apart = aggregate_kl(mean, torch.zeros(50, 3), 200, seeded(), MEMORY)
    assert apart.index_code_mi.mean == pytest.approx(math.log(50), abs=1e-6)
    assert apart.index_code_mi.error < 1e-6
    # the dimensions all tell the same image, so two of three are redundant
    assert apart.total_correlation.mean == pytest.approx(2 * math.log(50), abs=1e-5)
    equal = aggregate_kl(torch.full((50, 3), 0.3), torch.full((50, 3), -1.0), 200, seeded(), MEMORY)
    assert equal.index_code_mi.mean == pytest.approx(0, abs=1e-6)
    assert equal.total_correlation.mean == pytest.approx(0, abs=1e-6)


def test_mixture_densities_are_those_of_torch_distributions():
    # each draw once, so that the estimate is a sum over draws that the test can do itself
    mean, logvar = some(60, 4)
    noise = seeded()
    order = torch.randperm(60, generator=noise)
    sigma = (0.5 * logvar).exp()
    z = (mean[order] + sigma[order] * torch.randn(60, 4, generator=noise)).double()
    mean, sigma = mean.double(), sigma.double()
    weights = torch.distributions.Categorical(torch.ones(60))
    joint = MixtureSameFamily(weights, Independent(Normal(mean, sigma), 1)).log_prob(z)
    marginals = [MixtureSameFamily(weights, Normal(mean[:, j], sigma[:, j])).log_prob(z[:, j]) for j in range(4)]
    own = Normal(mean[order], sigma[order]).log_prob(z).sum(1)
    found = aggregate_kl(mean, logvar, 60, seeded(), MEMORY)
    assert found.index_code_mi == pytest.approx(mean_and_error(own - joint), abs=1e-5)
    assert found.total_correlation == pytest.approx(mean_and_error(joint - sum(marginals)), abs=1e-5)


def test_narrow_posteriors_far_from_zero_keep_their_digits():
    # ten sigmas apart at 300,000 sigmas from zero: expanding the square would lose everything in float32
    mean = 30 + torch.arange(200.0)[:, None] * torch.tensor([[1e-3, -1e-3]])
    found = aggregate_kl(mean, torch.full((200, 2), 2 * math.log(1e-4)), 1000, seeded(), MEMORY)
    assert found.index_code_mi.mean == pytest.approx(math.log(200), abs=1e-3)


@pytest.mark.parametrize("logvar", [-24.0, -40.0, -178.0, -700.0, -1400.0])
def test_posteriors_too_narrow_for_float32_have_the_kl_of_the_closed_form(logvar):
    mean, logvars = 1 + torch.arange(300.0)[:, None] / 100, torch.full((300, 1), logvar)
    expected = kl_to_standard_normal(mean.double(), logvars.double()).sum(1).mean().item()
    found = aggregate_kl(mean, logvars, 3000, seeded(), MEMORY)
    rounded = 0.5 if logvar < -60 else 0.0  # z is the mean to the last digit, and has no noise of its own
    assert found.kl.mean == pytest.approx(expected + rounded, abs=0.05)
    assert found.index_code_mi.mean == pytest.approx(math.log(300), abs=1e-3)
    assert found.total_correlation.mean == pytest.approx(0, abs=1e-3)


def test_draws_take_every_image_once_before_any_twice():
    # far apart, image i at 10 i: with each taken equally often the KL has no noise but that of eps
    mean = 10 * torch.arange(40.0)[:, None]
    logvar = torch.full((40, 1), -20.0)
    expected = kl_to_standard_normal(mean, logvar).sum(1).mean().item()
    for draws in 40, 120:
        found = aggregate_kl(mean, logvar, draws, seeded(), MEMORY)
        assert found.kl.mean == pytest.approx(expected, abs=0.5)
        assert found.kl.error > 1000


def test_chunks_change_nothing():
    mean, logvar = some(100, 3)
    whole = aggregate_kl(mean, logvar, 70, seeded(), 2**24)
    for rows in 0, 1, 7:
        parts = aggregate_kl(mean, logvar, 70, seeded(), rows * 8 * 100)
        for one, other in zip(parts, whole, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_the_same_seed_gives_the_same_figures_and_torch_is_left_alone():
    mean, logvar = some(50, 3)
    state = torch.get_rng_state()
    first = aggregate_kl(mean, logvar, 50, seeded(), MEMORY)
    assert first == aggregate_kl(mean, logvar, 50, seeded(), MEMORY)
    assert first != aggregate_kl(mean, logvar, 50, seeded(1), MEMORY)
    assert torch.equal(torch.get_rng_state(), state)


def test_active_dimensions_are_those_whose_means_vary():
    means = with_covariance(1000, torch.tensor([0.0101, 0.0099, 1e-9, 4.0], dtype=torch.float64).diag()) + 100
    found = active_dimensions(means)
    assert found.active.tolist() == [True, False, False, True]
    torch.testing.assert_close(found.variances[[0, 3]], torch.tensor([0.0101, 4.0]).double(), rtol=2e-3, atol=0)
    assert active_dimensions(means, 0.001).active.tolist() == [True, True, False, True]


def spoiled(value):
    mean = torch.zeros(5, 2)
    mean[3, 1] = value
    return mean


@pytest.mark.parametrize(
    "bad", [torch.zeros(5), torch.zeros(1, 2), torch.zeros(5, 2).long(), spoiled(math.nan), spoiled(math.inf)]
)
def test_what_is_no_batch_of_codes_is_refused(bad):
    with pytest.raises(ValueError, match="means"):
        active_dimensions(bad)
    with pytest.raises(ValueError, match="mean"):
        aggregate_kl(bad, torch.zeros(5, 2), 5, seeded(), MEMORY)
    with pytest.raises(ValueError, match="logvar"):
        aggregate_kl(torch.zeros(5, 2), bad, 5, seeded(), MEMORY)


def test_transposed_log_variances_and_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        aggregate_kl(torch.zeros(5, 2), torch.zeros(2, 5), 5, seeded(), MEMORY)
    with pytest.raises(ValueError, match="draws=1"):
        aggregate_kl(torch.zeros(5, 2), torch.zeros(5, 2), 1, seeded(), MEMORY)
