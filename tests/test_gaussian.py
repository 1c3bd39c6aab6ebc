import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vaelab.nn.gaussian import kl_to_standard_normal, reparameterise


def moments(mean, sigma):
    """Mean and log-variance as tensors [1, 1], float64."""
    return torch.full((1, 1), mean, dtype=torch.float64), torch.full((1, 1), sigma, dtype=torch.float64).log() * 2


def test_kl_of_a_known_pair():
    assert kl_to_standard_normal(*moments(0.5, 0.8)).item() == pytest.approx(0.1681, abs=5e-5)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere():
    assert kl_to_standard_normal(*moments(0.0, 1.0)).item() == 0
    mean, logvar = torch.randn(2, 1000, 3, dtype=torch.float64)
    assert (kl_to_standard_normal(mean, logvar) > 0).all()


def test_kl_is_that_of_torch_distributions_in_every_dimension():
    mean, logvar = 2 * torch.randn(2, 16, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), expected)


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.8), (-1.5, 0.3), (0.0, 2.0)])
def test_kl_is_the_expected_log_ratio_of_the_densities(mean, sigma):
    torch.manual_seed(0)
    posterior, prior = Normal(mean, sigma), Normal(0.0, 1.0)
    z = posterior.sample((400_000,))
    ratio = posterior.log_prob(z) - prior.log_prob(z)
    error = ratio.std().item() / len(z) ** 0.5
    assert kl_to_standard_normal(*moments(mean, sigma)).item() == pytest.approx(ratio.mean().item(), abs=4 * error)


@pytest.mark.parametrize("logvar", [-1e-4, 1e-4])
def test_kl_keeps_its_digits_near_the_prior(logvar):
    single = kl_to_standard_normal(torch.zeros(1, 1), torch.full((1, 1), logvar)).item()
    assert single == pytest.approx(logvar**2 / 4, rel=0.01)


def test_draws_have_the_posterior_moments():
    torch.manual_seed(0)
    mean, sigma = torch.tensor([[-1.0, 0.0, 3.0]]), torch.tensor([[0.1, 1.0, 2.0]])
    z = reparameterise(mean.expand(200_000, -1), sigma.log().mul(2).expand(200_000, -1))
    assert z.shape == (200_000, 3)
    assert ((z.mean(0) - mean).abs() < 4 * sigma / 200_000**0.5).all()
    torch.testing.assert_close(z.std(0), sigma[0], rtol=0.01, atol=0)
    torch.testing.assert_close(torch.corrcoef(z.T), torch.eye(3), rtol=0, atol=0.01)


def test_gradients_flow_through_mean_and_logvar():
    torch.manual_seed(0)
    mean, logvar = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    z = reparameterise(mean, logvar)
    z.sum().backward()
    sigma = (0.5 * logvar.detach()).exp()
    eps = (z.detach() - mean.detach()) / sigma
    torch.testing.assert_close(mean.grad, torch.ones(8, 4))
    torch.testing.assert_close(logvar.grad, 0.5 * sigma * eps)


def test_the_noise_is_fresh_at_every_call_and_for_every_example():
    mean, logvar = torch.zeros(64, 3), torch.zeros(64, 3)
    first, second = reparameterise(mean, logvar), reparameterise(mean, logvar)
    assert len(torch.cat([first, second]).unique()) == 2 * 64 * 3
