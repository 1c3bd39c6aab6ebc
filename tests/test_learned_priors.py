"""Priors that are learned with the model: mixtures, the VampPrior, flows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from tests.correlated import seeded
from tests.test_contract import SHAPE, batch, made
from vaelab.nn.posteriors import Diagonal, DiagonalGaussian, Full
from vaelab.nn.posteriors.planar import Planar
from vaelab.nn.priors import GaussianMixture, Latents, StandardNormal, VampPrior
from vaelab.runs.trained import Trained

D = 2


def learn(prior, z, steps=200, lr=0.05):
    """Maximises log p(z) by Adam, as the ELBO's gradient does with a model that stays."""
    optimizer = torch.optim.Adam(prior.parameters(), lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = -prior.log_prob(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def vamp(components=5, head=None, d=D, seed=0):
    """A VampPrior whose model is a linear encoder of images of three pixels."""
    torch.manual_seed(seed)
    head = head or (lambda d: lambda features: DiagonalGaussian(*features.chunk(2, 1)))
    posterior = head(d)
    encoder = torch.nn.Linear(3, getattr(posterior, "features", 2 * d))
    prior = VampPrior(d, components)
    prior.belongs(lambda x, labels: posterior(encoder(x.flatten(1))), (1, 1, 3))
    return prior


def flow(d=D):
    pytest.importorskip("zuko")
    from vaelab.nn.priors.flow import FlowPrior

    torch.manual_seed(0)
    return FlowPrior(d, 2, [32], epochs=8, batch_size=128, lr=1e-2, patience=5)


# --- laws of each -----------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_mixture_that_learns_finds_the_gaussian_of_the_latents(covariance):
    """Of any sign that its deviations take on the way, and whatever stands above the diagonal."""
    truth = MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    torch.manual_seed(0)
    z, prior = truth.sample((5000,)), GaussianMixture(D, 1, covariance, 0.0)
    with torch.no_grad():
        prior.factors.mul_(-1).add_(0.1)
    learn(prior, z)
    mean, centred = z.mean(0), z - z.mean(0)
    best = centred.T @ centred / len(z)
    best = best if covariance == "full" else best.diagonal().diag()
    expected = MultivariateNormal(mean, best).log_prob(z).mean()
    assert prior.log_prob(z).mean().item() == pytest.approx(expected.item(), abs=2e-3)


@pytest.mark.parametrize("components", [1, 20_000])
def test_a_fresh_mixture_has_the_moments_of_the_standard_normal(components):
    torch.manual_seed(0)
    prior = GaussianMixture(D, components, "diag", 0.0)
    z = prior.sample(20_000)
    torch.testing.assert_close(z.T.cov(), torch.eye(D), atol=0.05, rtol=0)
    assert components == 1 or prior.means.std() > 0.05  # alike, all would learn the same


def test_the_vampprior_is_the_mixture_of_its_posteriors():
    prior, z = vamp(), 2 * torch.randn(7, 3, D, generator=seeded(1))
    posterior = prior.posteriors()
    parts = Independent(Normal(posterior.mean, (0.5 * posterior.logvar).exp()), 1)
    expected = MixtureSameFamily(Categorical(torch.ones(5)), parts)
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z))
    draws = prior.sample(100_000, generator=seeded(2))
    assert (draws.mean(0) - expected.mean).abs().max() < 0.02
    torch.testing.assert_close(draws.var(0), expected.variance, rtol=0.03, atol=0)
    torch.testing.assert_close(prior.mean, expected.mean)
    still = prior.sample(50, temperature=0.0)
    assert (still[:, None] - posterior.code).norm(dim=2).amin(1).max() < 1e-6


@pytest.mark.parametrize("head", [Full, lambda d: Planar(d, 2)])
def test_the_vampprior_is_of_any_posterior_that_has_a_density(head):
    prior, z = vamp(4, head), torch.randn(6, D, generator=seeded(1))
    one_by_one = [torch.stack([prior.posteriors()[k : k + 1].log_prob(point[None]) for point in z]) for k in range(4)]
    expected = torch.cat(one_by_one, 1).logsumexp(1) - math.log(4)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-4, atol=1e-4)


def test_no_prior_gains_more_than_the_aggregate_posterior_which_a_vampprior_of_all_images_is():
    """The KL that is left is what z tells of which image it was, at most log N, and no other prior has less."""
    prior, n = vamp(50), 50
    posterior = prior.posteriors()
    noise = torch.randn(100, n, D, generator=seeded(3))
    z = posterior.rsample(noise)
    with torch.no_grad():
        left = {"vamp": (posterior.log_prob(z) - prior.log_prob(z)).mean()}
        left["standard"] = (posterior.log_prob(z) - StandardNormal(D).log_prob(z)).mean()
        gmm = GaussianMixture(D, 3, "full", 1e-6)
        gmm.fit(z.flatten(0, 1), seed=0)
        left["gmm"] = (posterior.log_prob(z) - gmm.log_prob(z)).mean()
    assert 0 < left["vamp"] < math.log(n)
    assert left["vamp"] < left["gmm"] < left["standard"]


def test_a_flow_starts_as_the_standard_normal_and_its_density_is_that_of_its_draws():
    prior, z = flow(), 2 * torch.randn(50, D, generator=seeded(1))
    torch.testing.assert_close(prior.log_prob(z), StandardNormal(D).log_prob(z))
    with torch.no_grad():
        for weights in prior.parameters():
            weights += 0.3 * torch.randn(weights.shape, generator=seeded(2))
        prior.shift.copy_(torch.tensor([1.0, -1.0]))
        prior.scale.copy_(torch.tensor([2.0, 0.5]))
    axis = torch.linspace(-25, 25, 801)
    mass = prior.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)
    draws = prior.sample(20_000, generator=seeded(3))
    inside = draws.abs().amax(1) < 1.5
    grid = torch.cartesian_prod(*2 * [torch.linspace(-1.5, 1.5, 301)])
    expected = prior.log_prob(grid).exp().mean().item() * 9
    assert inside.float().mean().item() == pytest.approx(expected, abs=0.02)
    assert torch.equal(prior.sample(1, temperature=0.0)[0], prior.mean)


@pytest.mark.parametrize("head", [Diagonal, Full])
def test_the_kl_by_draws_has_no_noise_where_the_prior_is_the_standard_normal(head):
    """Nor is there any in its gradients: a young model is led as by the KL in closed form."""
    features = torch.randn(3, head(D).features, generator=seeded(1)).requires_grad_()
    posterior, noise = head(D)(features), torch.randn(3, D, generator=seeded(2))
    closed = posterior.kl(StandardNormal(D)).total
    by_draw = posterior.sample_with_kl(noise, flow())[1]
    assert not by_draw.exact
    torch.testing.assert_close(by_draw.total, closed)
    gradients = [torch.autograd.grad(kl.sum(), features, retain_graph=True)[0] for kl in (by_draw.total, closed)]
    torch.testing.assert_close(*gradients)


def test_a_flow_fits_what_one_gaussian_cannot_and_says_how_far_it_came():
    """Latents along a parabola, off the middle and of another size than N(0, I)."""
    x = torch.randn(3000, generator=seeded(1))
    y = x.square() + 0.3 * torch.randn(3000, generator=seeded(2))
    z = torch.stack([5 + 3 * x, 3 * y], 1)
    prior = flow()
    words = prior.fit(z[:2500], 0, held_out=Latents(z[2500:], None))
    gaussian = MultivariateNormal(z.mean(0), z.T.cov()).log_prob(z[2500:]).mean()
    truth = -0.5 - math.log(0.3) - math.log(9) - math.log(2 * math.pi) - 0.5  # less both entropies
    found = prior.log_prob(z[2500:]).mean()
    assert gaussian + 0.4 < found < truth + 0.2
    assert "nats per latent" in words


# --- as a part of a model ---------------------------------------------------------------------


def test_a_copy_of_a_model_has_a_vampprior_of_its_own_encoder():
    model = made("model=vae", "prior=vamp", "prior.components=3", "model.latent_dim=2")
    other, z = copy.deepcopy(model), torch.randn(4, 2)
    before = model.prior.log_prob(z)
    with torch.no_grad():
        for weights in other.encoder.parameters():
            weights.mul_(1.5)
    assert torch.equal(model.prior.log_prob(z), before)
    assert not torch.equal(other.prior.log_prob(z), before)
    kept = {name for name in model.state_dict() if name.startswith("prior.")}
    assert kept == {"prior.pseudo_inputs", "prior.pseudo_labels"}


def test_the_objective_moves_the_pseudo_inputs_and_through_them_the_encoder():
    model, images = made("model=vae", "prior=vamp", "prior.components=3", "model.latent_dim=2"), batch()
    terms = model.terms(images, model.noise(6))
    assert "kl_per_dim" not in terms
    terms["kl"].mean().backward()
    assert (model.prior.pseudo_inputs.grad.flatten(1).norm(dim=1) > 0).all()
    noise = torch.zeros(6, 2)
    model.zero_grad()
    with torch.no_grad():
        z = model.encode(images.images).rsample(noise)
    model.prior.log_prob(z).mean().backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0


def test_a_conditional_models_pseudo_inputs_keep_the_labels_of_their_images():
    model = made("model=cvae", "prior=vamp", "prior.components=4", "model.latent_dim=2")
    model.prior.start_from(lambda count: batch(3))
    assert model.prior.pseudo_labels.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(model.prior.pseudo_inputs.detach(), batch(3).images[[0, 1, 2, 0]])
    codes = model.encode(batch(3).images, batch(3).labels).code
    torch.testing.assert_close(model.prior.posteriors().code[:3], codes)
    assert model.sample(3).shape == (3, *SHAPE)


def test_pseudo_inputs_start_at_training_images(train):
    result = train("prior=vamp", "prior.components=8", "optimizer.lr=1e-9", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    trained = Trained(result.run, device="cpu")
    expected = trained.data.training_images(8).images
    torch.testing.assert_close(trained.model.prior.pseudo_inputs.detach(), expected, atol=1e-5, rtol=0)
    assert "VampPrior of 8 pseudo-inputs" in trained.model.prior.words
