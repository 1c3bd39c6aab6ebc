"""Posteriors along planar flows."""

import pytest
import torch

from tests.correlated import LATENTS, SIGMA, Correlated, seeded
from vaelab.evaluation.metrics.likelihood import importance_weighted
from vaelab.nn.posteriors.planar import Planar
from vaelab.nn.priors import StandardNormal


def planar(d, layers):
    """A head whose layers count fully, as no fresh one's do."""
    made = Planar(d, layers)
    torch.nn.init.ones_(made.gain)
    return made


def posterior(d=4, layers=3, scale=1.5, count=3):
    """A posterior far from a Gaussian, of several images."""
    made = planar(d, layers)
    return made(scale * torch.randn(count, made.features, generator=seeded(1)))


def test_the_density_is_that_of_the_draws():
    """Log-densities by the way there, by the way back, and by autograd's Jacobian."""
    bent, prior = posterior(), StandardNormal(4)
    noise = torch.randn(5, 3, 4, generator=seeded(2))
    z, log_ratio = bent.draw(noise, prior)
    assert torch.equal(z, bent.rsample(noise))
    torch.testing.assert_close(prior.log_prob(z) - bent.log_prob(z), log_ratio, rtol=0, atol=1e-3)
    one = bent[:1]
    jacobian = torch.autograd.functional.jacobian(lambda e: one.rsample(e[None])[0], noise[0, 0])
    base = prior.log_prob(noise[0, :1])
    torch.testing.assert_close(one.log_prob(z[0, :1]), base - jacobian.slogdet()[1], rtol=0, atol=1e-3)


def test_it_starts_as_a_diagonal_gaussian_from_which_every_layer_learns():
    made = Planar(4, 3)
    still, noise = made(torch.randn(3, made.features, generator=seeded(1))), torch.randn(3, 4, generator=seeded(2))
    z, kl = still.sample_with_kl(noise, StandardNormal(4))
    torch.testing.assert_close(z, still.base.rsample(noise))
    torch.testing.assert_close(kl.total, still.base.kl(StandardNormal(4)).total)
    (z.square().sum() + kl.total.sum()).backward()
    assert (made.gain.grad != 0).all()


def test_the_density_integrates_to_one():
    bent, axis = posterior(2, scale=0.7, count=1), torch.linspace(-10, 10, 601)
    mass = bent.log_prob(torch.cartesian_prod(axis, axis)[:, None]).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_every_layer_can_be_inverted_whatever_the_encoder_says():
    made = planar(3, 4)
    context = 5 * torch.randn(2000, 4 * 7, generator=seeded(1))
    layers = made.of(context)
    u = context.unflatten(-1, (4, 7))[..., :3]
    along = (layers.w * layers.u).sum(-1)
    assert ((layers.w * u).sum(-1) < -1).float().mean() > 0.3
    assert (along > -1 - 1e-4).all()
    torch.testing.assert_close(1 + along, layers.steepest, rtol=1e-3, atol=1e-4)
    across = layers.u - u - ((layers.u - u) * layers.w).sum(-1, True) * layers.w / layers.w.square().sum(-1, True)
    assert across.abs().max() < 1e-4  # u is moved along w alone
    z, log_det = made.carry(torch.randn(2000, 3, generator=seeded(2)), context)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert made.back(z, context)[1].isfinite().all()


def test_layers_without_a_direction_are_the_identity_or_a_shift():
    made, z = planar(3, 1), torch.randn(2, 3)
    u, w, b = torch.randn(3), torch.randn(3), torch.tensor([0.7])
    for given, shift in (((0 * u, w, b), 0 * u), ((u, 0 * w, b), u * b.tanh())):
        moved, log_det = made.carry(z, torch.cat(given).expand(2, -1))
        torch.testing.assert_close(moved, z + shift)
        torch.testing.assert_close(log_det, torch.zeros(2))


def test_gradients_of_the_density_are_those_of_the_implicit_function():
    made = planar(2, 2).double()
    features, z = torch.randn(1, made.features, generator=seeded(3)).double(), torch.tensor([[0.3, -0.8]]).double()
    mean, logvar, context = features.tensor_split((2, 4), 1)

    def log_q(z, mean, logvar, context):
        return made.kind(mean, logvar, context, made).log_prob(z)

    assert torch.autograd.gradcheck(log_q, [t.clone().requires_grad_() for t in (z, mean, logvar, context)], atol=1e-4)


def test_it_reaches_the_evidence_where_the_best_diagonal_gaussian_does_not():
    """A layer with a small w is linear, and one turns a diagonal Gaussian into any of two dimensions."""
    model, small = Correlated(lambda latent_dim: planar(latent_dim, 1)), 0.01
    covariance = model.precision.inverse()
    mean, factor = covariance @ model.weight.t() / SIGMA**2, torch.linalg.cholesky(covariance)
    u, w = torch.tensor([0.0, 1 / small]), small * torch.tensor([factor[1, 0] / factor[0, 0], 0.0])
    last = model.encoder.body[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.weight[:LATENTS], last.weight[-1] = mean, -w @ mean  # so that it bends about the mean
        last.bias.copy_(torch.cat([torch.zeros(LATENTS), 2 * factor.diagonal().log(), u, w, torch.zeros(1)]))
    x = model.images(500, 7)
    bound, truth = importance_weighted(model, x, None, 4, 2**20, seeded()), model.log_evidence(x)
    torch.testing.assert_close(bound.log_p_hat, truth, rtol=0, atol=2e-3)
    assert bound.effective_samples.min() > 3.99
