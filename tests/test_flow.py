"""Posteriors along a normalising flow."""

import builtins
import math

import pytest
import torch

from tests.conftest import fit
from tests.correlated import LATENTS, Correlated, seeded
from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.likelihood import importance_weighted, mean_and_error
from vaelab.nn import flows
from vaelab.nn.posteriors.flow import Flow, Spline
from vaelab.nn.priors import StandardNormal

pytest.importorskip("zuko")
MEMORY = 2**20


def flow(latent_dim=LATENTS, passes=None, stirred=True, context_dim=4, bins=None):
    """A flow, of splines if it has bins; `stirred`, far from the identity where it starts."""
    torch.manual_seed(0)
    given = (latent_dim, 2, [16], context_dim, passes)
    made = Flow(*given) if bins is None else Spline(*given, bins)
    if stirred:
        for weights in made.parameters():
            weights.data += 0.3 * torch.randn(weights.shape)
    return made


def features(count, made):
    return torch.randn(count, made.features, generator=seeded(1))


@pytest.mark.parametrize(("passes", "bins"), [(None, None), (2, None), (None, 5)])
def test_the_density_is_that_of_the_draws(passes, bins):
    """Log-densities by the way there, by the way back, and by autograd's Jacobian."""
    made = flow(4, passes, bins=bins)
    posterior, prior = made(features(3, made)), StandardNormal(4)
    noise = torch.randn(5, 3, 4, generator=seeded(2))
    z, log_ratio = posterior.draw(noise, prior)
    assert torch.equal(z, posterior.rsample(noise))
    torch.testing.assert_close(prior.log_prob(z) - posterior.log_prob(z), log_ratio, rtol=0, atol=1e-4)
    one = posterior[:1]
    jacobian = torch.autograd.functional.jacobian(lambda e: one.rsample(e[None])[0], noise[0, 0])
    base = prior.log_prob(noise[0, :1])
    torch.testing.assert_close(one.log_prob(z[0, :1]), base - jacobian.slogdet()[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("bins", "points"), [(None, 801), (5, 201)])
def test_the_density_integrates_to_one(bins, points):
    made = flow(bins=bins)
    posterior = made(0.3 * features(1, made))
    axis = torch.linspace(-12, 12, points)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    mass = posterior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bins", [None, 5])
def test_the_kl_by_draws_is_right_in_expectation_and_has_no_noise_at_the_identity(bins):
    prior, still, made = StandardNormal(LATENTS), flow(stirred=False, bins=bins), flow(bins=bins)
    noise = torch.randn(10_000, 3, LATENTS, generator=seeded(3))
    same = still(features(3, still))
    by_draw = same.sample_with_kl(noise, prior)[1]
    assert not by_draw.exact
    assert by_draw.per_dim is None
    torch.testing.assert_close(by_draw.total, same.base.kl(prior).total.expand(len(noise), 3), rtol=0, atol=2e-5)
    posterior = made(0.5 * features(3, made))
    plain = -posterior.draw(noise, prior)[1]
    gap = posterior.sample_with_kl(noise, prior)[1].total - plain
    for image in gap.t():
        mean = mean_and_error(image)
        assert abs(mean.mean) < 4 * mean.error


def of_flow(**options):
    return lambda latent_dim: Flow(latent_dim, 2, [16], 4, None, **options)


def test_at_the_identity_all_bounds_are_the_diagonal_gaussians():
    diagonal, flowing = Correlated(), Correlated(of_flow())
    with torch.no_grad():
        head, wider = diagonal.encoder.body[-1], flowing.encoder.body[-1]
        wider.weight[: 2 * LATENTS], wider.bias[: 2 * LATENTS] = head.weight, head.bias
    x = diagonal.images(20, 5)
    batch, noise = Batch(x, None), torch.randn(20, LATENTS, generator=seeded(6))
    for name, value in flowing.terms(batch, noise).items():
        torch.testing.assert_close(value, diagonal.terms(batch, noise)[name], rtol=0, atol=1e-5)
    own, other = (importance_weighted(model, x, None, 50, MEMORY, seeded()) for model in (diagonal, flowing))
    for name in ("log_p_hat", "elbo"):
        torch.testing.assert_close(getattr(other, name), getattr(own, name), rtol=1e-6, atol=1e-5)


def test_after_training_the_bound_lies_between_the_best_diagonal_gaussians_and_the_evidence():
    """All of the gap can be closed: the flow is affine, with a correlation, and so is the posterior."""
    model = Correlated(of_flow())
    assert model.lost_by_a_diagonal > 0.3
    fit(model, [*model.encoder.parameters(), *model.posterior.parameters()], 600)
    x = model.images(2000, 7)
    bound, truth = importance_weighted(model, x, None, 20, MEMORY, seeded()), model.log_evidence(x)
    missing = mean_and_error(truth - bound.elbo)
    assert -4 * missing.error < missing.mean < 0.2 * model.lost_by_a_diagonal
    still = mean_and_error(truth - bound.log_p_hat)
    assert -4 * still.error < still.mean < missing.mean + 4 * still.error


def test_a_spline_shapes_what_an_affine_flow_cannot():
    """One latent with two modes, by draws of whose density there is no mean and no scale that fit."""
    made, noise = flow(1, bins=8, context_dim=1), torch.randn(2000, 1, 1, generator=seeded(1))
    parameters, given = list(made.parameters()), torch.zeros(1, made.features)
    modes = torch.tensor([-2.0, 2.0])
    optimizer = torch.optim.Adam(parameters, 0.02)
    for _ in range(150):
        z, log_det = made(given).carry(noise)
        target = (-0.5 * ((z - modes) / 0.5).square()).logsumexp(-1) - math.log(2 * 0.5)
        loss = -(target + log_det + 0.5 * noise.square().sum(-1)[..., :]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -0.02 < loss < 0.1


@pytest.mark.parametrize("model", ["beta", "capacity", "cvae"])
def test_every_gaussian_variant_takes_it(train, model):
    result = train(f"model={model}", "posterior=flow", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert all(math.isfinite(value) for value in result.series("train/kl"))


@pytest.mark.parametrize("bins", [None, 4])
def test_a_single_latent_has_no_others_to_be_a_function_of(bins):
    flow = flows.Flow("prior=flow", 1, 2, [8], bins=bins)
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    same, log_det = flow.carry(z)
    torch.testing.assert_close(same, z)  # the identity at first
    torch.testing.assert_close(log_det, torch.zeros(5), atol=1e-5, rtol=0)
    for weight in flow.parameters():
        torch.nn.init.constant_(weight, 0.3)
    moved, log_det = flow.carry(z)
    assert not torch.allclose(moved, z)
    back, inverse = flow.back(moved)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse, -log_det)


def test_without_zuko_the_remedy_is_said(monkeypatch):
    load = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: load(name if name[:4] != "zuko" else "no_such_module", *rest)
    )
    with pytest.raises(UserError, match=r'posterior=flow needs another package: pip install "vaelab\[flow\]"'):
        flow()
