import math
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from vaelab.evaluation.metrics.likelihood import (
    amortisation_gap,
    bits_per_dimension,
    importance_weighted,
    mean_and_error,
)
from vaelab.models.cvae import CVAE
from vaelab.models.vae import VAE
from vaelab.nn.likelihoods import Bernoulli, Gaussian
from vaelab.nn.networks import MLP

SHAPE, PIXELS, LATENTS, SIGMA = (1, 4, 4), 16, 3, 0.5
ENOUGH = 2**20


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(VAE):
    """Probabilistic PCA, x = W z + mu + sigma eps, whose W has orthogonal columns: its posterior is diagonal.

    The encoder gives the exact posterior, moved by `shift` posterior standard deviations along every dimension and
    with `stretch` added to the log-variances.
    """

    def __init__(self, shift=0.0, stretch=0.0):
        super().__init__(SHAPE, None, MLP([], "relu", False), Gaussian(SIGMA), LATENTS)
        basis = torch.linalg.qr(torch.randn(PIXELS, LATENTS, generator=seeded()))[0]
        self.weight, self.offset = basis * torch.tensor([0.5, 1.0, 2.0]), torch.linspace(-1, 1, PIXELS)
        precision = 1 + self.weight.square().sum(0) / SIGMA**2
        self.posterior_sigma = precision.rsqrt()
        to_mean = self.weight.t() / (SIGMA**2 * precision[:, None])
        bodies: Any = self.encoder.body, self.decoder.body
        encoder, decoder = (body[-1] for body in bodies)
        with torch.no_grad():
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.offset)
            encoder.weight.zero_()[:LATENTS] = to_mean
            encoder.bias[:LATENTS] = shift * self.posterior_sigma - to_mean @ self.offset
            encoder.bias[LATENTS:] = stretch - precision.log()
        # KL(q || p(z|x)), by which the ELBO misses log p(x)
        self.excess = LATENTS * 0.5 * (shift**2 + math.exp(stretch) - 1 - stretch)

    def images(self, count):
        noise = seeded(1)
        z = torch.randn(count, LATENTS, generator=noise)
        x = z @ self.weight.t() + self.offset + SIGMA * torch.randn(count, PIXELS, generator=noise)
        return x.view(-1, *SHAPE)

    def log_evidence(self, x):
        """log p(x), [B], in closed form."""
        weight = self.weight.double()
        covariance = weight @ weight.t() + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.offset.double(), covariance).log_prob(x.flatten(1).double())


@pytest.mark.parametrize("samples", [1, 7, 300])
def test_with_the_exact_posterior_every_draw_gives_the_closed_form_likelihood(samples):
    model = Linear()
    x = model.images(20)
    bound = importance_weighted(model, x, None, samples, ENOUGH, seeded())
    torch.testing.assert_close(bound.log_p_hat, model.log_evidence(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(bound.effective_samples, torch.full((20,), samples).double(), rtol=1e-5, atol=0)


def test_the_elbo_misses_the_likelihood_by_the_kl_to_the_posterior_and_one_draw_gives_the_elbo():
    model = Linear(shift=0.7, stretch=0.6)
    x = model.images(4000)
    bound = importance_weighted(model, x, None, 1, ENOUGH, seeded())
    expected = model.log_evidence(x) - model.excess
    for found in bound.elbo, bound.log_p_hat:
        difference = mean_and_error(found - expected)
        assert abs(difference.mean) < 4 * difference.error
        assert difference.error < 0.06
    many = importance_weighted(model, x[:10], None, 5000, ENOUGH, seeded())
    torch.testing.assert_close(many.elbo, expected[:10], rtol=0, atol=0.2)


def test_the_bound_grows_with_the_draws_up_to_the_likelihood():
    model = Linear(shift=0.6, stretch=0.4)
    x = model.images(4000)
    truth = model.log_evidence(x)
    bounds = [importance_weighted(model, x, None, k, ENOUGH, seeded(10 + k)).log_p_hat for k in (1, 3, 10, 100)]
    for lower, higher in pairwise(bounds):
        gain = mean_and_error(higher - lower)
        assert gain.mean > 4 * gain.error
    missing = mean_and_error(truth - bounds[-1])
    assert -4 * missing.error < missing.mean < 0.05


def test_effective_samples_tell_how_far_the_posterior_is_off():
    # weights of a posterior shifted by s sigmas in each of d dimensions: E[w^2] / E[w]^2 = exp(d s^2)
    model, samples = Linear(shift=0.4), 20_000
    bound = importance_weighted(model, model.images(10), None, samples, ENOUGH, seeded())
    expected = samples * math.exp(-LATENTS * 0.4**2)
    torch.testing.assert_close(bound.effective_samples, torch.full((10,), expected).double(), rtol=0.05, atol=0)


def test_effective_samples_give_the_variance_of_the_bound():
    model, samples = Linear(shift=0.3), 100
    one = model.images(1).expand(3000, -1, -1, -1)
    bound = importance_weighted(model, one, None, samples, ENOUGH, seeded())
    predicted = (1 / bound.effective_samples - 1 / samples).mean().item()
    assert bound.log_p_hat.var().item() == pytest.approx(predicted, rel=0.1)


def test_very_unlikely_images_do_not_underflow():
    model = Linear()
    x = model.images(5) + 100
    bound = importance_weighted(model, x, None, 50, ENOUGH, seeded())
    assert bound.log_p_hat.max() < -10_000
    torch.testing.assert_close(bound.log_p_hat, model.log_evidence(x), rtol=1e-5, atol=0)


def conditional():
    torch.manual_seed(0)
    model = CVAE((1, 4, 4), 3, MLP([8], "relu", True), Bernoulli(), 2, 3)
    model.condition.embedding.weight.data.mul_(5)
    return model, torch.rand(5, 1, 4, 4).round(), torch.tensor([0, 1, 2, 1, 0])


def test_chunks_change_nothing_not_even_when_a_batch_does_not_fit():
    model, x, labels = conditional()
    whole = importance_weighted(model, x, labels, 30, ENOUGH, seeded())
    for images in 1, 4, 7, 20:
        parts = importance_weighted(model, x, labels, 30, images * 4 * PIXELS, seeded())
        for name in whole._fields:
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_memory_is_bounded_whatever_the_draws_and_the_encoder_runs_once(monkeypatch):
    model = Linear()
    x, rows, alive, encoded = model.images(6), [], [], []
    decode, encode = model.decode, model.encode

    def watched(z, labels=None):
        assert not any(ref() is not None for ref in alive[:-1])  # nothing but the last chunk is kept
        raw = decode(z, labels)
        alive.append(weakref.ref(raw))
        rows.append(len(z))
        return raw

    monkeypatch.setattr(model, "decode", watched)
    monkeypatch.setattr(model, "encode", lambda *given: encoded.append(1) or encode(*given))
    for images, most in (20, 18), (6, 6), (4, 4):
        for samples in 7, 200:
            rows.clear()
            encoded.clear()
            importance_weighted(model, x, None, samples, images * 4 * PIXELS, seeded())
            assert max(rows) == most
            assert sum(rows) == 6 * samples
            assert len(encoded) == 1


@pytest.mark.parametrize(("shift", "stretch"), [(0.8, 0.0), (0.0, 1.0), (0.5, -0.7)])
def test_the_amortisation_gap_is_the_kl_to_the_exact_posterior(shift, stretch):
    model = Linear(shift, stretch)
    with torch.no_grad():
        gap = amortisation_gap(model, model.images(100), None, 400, 0.02, 200, ENOUGH, seeded())
    found = mean_and_error(gap)
    assert gap.shape == (100,)
    assert found.mean == pytest.approx(model.excess, abs=4 * found.error + 0.01)
    assert found.error < 0.03


def test_an_exact_encoder_has_no_amortisation_gap():
    model = Linear()
    gap = amortisation_gap(model, model.images(100), None, 50, 0.1, 100, ENOUGH, seeded())
    assert gap.abs().max() < 0.03  # two estimates with noise of their own would differ by ten times as much
    assert -0.005 < gap.mean() < 0.001  # steps of full length to the end would lose more
    assert 20 < (gap < 0).sum() < 80


def test_the_amortisation_gap_of_a_conditional_model_is_positive():
    model, x, labels = conditional()
    assert (amortisation_gap(model, x, labels, 200, 0.05, 500, ENOUGH, seeded()) > 0.02).all()


@pytest.mark.parametrize("measure", [importance_weighted, amortisation_gap])
def test_measuring_leaves_model_and_torch_as_they_were(measure):
    model, x, labels = conditional()
    model.decoder.body[1].eval()  # a part that is frozen in a model that is training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()

    def run(seed):
        arguments = (4, ENOUGH, seeded(seed))
        result = measure(model, x, labels, *((2, 0.1) if measure is amortisation_gap else ()), *arguments)
        return result if torch.is_tensor(result) else result.log_p_hat

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    model.eval()
    assert torch.equal(run(0), first)  # measured in evaluation mode from the start


def test_bits_per_dimension():
    assert bits_per_dimension(-784 * math.log(2), 784, (0, 1), False) == pytest.approx(1)
    for low, high in (0, 1), (-1, 1), (0, 255):  # a uniform density costs eight bits
        assert bits_per_dimension(-784 * math.log(high - low), 784, (low, high), True) == pytest.approx(
            8 if high < 255 else math.log2(256)
        )


def test_mean_and_standard_error():
    found = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3
    assert found.error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(3, 2), torch.tensor([1.0, math.nan])])
def test_values_without_a_standard_error_are_refused(values):
    with pytest.raises(ValueError, match="values"):
        mean_and_error(values)


def test_no_draws_or_no_steps_are_refused():
    model = Linear()
    x = model.images(2)
    with pytest.raises(ValueError, match="samples=0"):
        importance_weighted(model, x, None, 0, ENOUGH, seeded())
    with pytest.raises(ValueError, match="steps=0"):
        amortisation_gap(model, x, None, 0, 0.1, 5, ENOUGH, seeded())
