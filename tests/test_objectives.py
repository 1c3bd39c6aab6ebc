"""What the variants minimise: against the ELBO that they contain, sums written out, and laws of their estimators."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.conftest import terms_of
from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.models import DIPVAE, GECO, IWAE, TCVAE, VAE, WAE, BetaVAE, ControlVAE, FactorVAE, InfoVAE
from vaelab.nn.controllers import multiplicative, proportional_integral
from vaelab.nn.likelihoods import Bernoulli, Gaussian
from vaelab.nn.networks import MLP
from vaelab.nn.posteriors import Diagonal, DiagonalGaussian, Full
from vaelab.nn.priors import GaussianMixture

SHAPE, D = (1, 4, 4), 3


class Own(Full):
    """A posterior with a weight of its own."""

    def __init__(self, latent_dim):
        super().__init__(latent_dim)
        self.weight = nn.Parameter(torch.zeros(()))


def made(variant, seed=0, **options):
    torch.manual_seed(seed)
    model = variant(SHAPE, None, MLP([16], "relu", False), Bernoulli(), D, **options)
    model.start_from(torch.full(SHAPE, 0.5), 0.3, 100)
    return model


def batch(count=12):
    return Batch(torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)).round())


def noise(count=12, *more):
    return torch.randn(*more, count, D, generator=torch.Generator().manual_seed(6))


def plain(seed=0):
    model = made(VAE, seed)
    return model.objective(model.terms(batch(), noise())).item()


TC = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "sampling": "stratified"}
DISCRIMINATOR = {"discriminator_dims": [64, 64], "discriminator_lr": 1e-3, "discriminator_betas": (0.5, 0.9)}


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_tcvae_with_all_weights_at_1_is_the_vae(sampling):
    model = made(TCVAE, **TC | {"sampling": sampling})
    terms = model.terms(batch(), noise())
    assert model.objective(terms).item() == pytest.approx(plain(), rel=1e-6)
    posterior = model.encode(batch().images)
    _, log_ratio = posterior.draw(noise(), model.prior)
    parts = sum(terms[name].mean() for name in ("kl_index_code_mi", "kl_total_correlation", "kl_dimension_wise"))
    assert parts.item() == pytest.approx(-log_ratio.mean().item(), abs=1e-4)


def test_tcvae_counts_with_the_images_of_its_training():
    """Weighted sampling of twice the images says ln 2 more of each of d - 1 dimensions."""
    few, many = (made(TCVAE, **TC | {"sampling": "weighted"}) for _ in range(2))
    many.start_from(torch.full(SHAPE, 0.5), 0.3, 200)
    less, more = (m.terms(batch(), noise())["kl_total_correlation"].mean().item() for m in (few, many))
    assert more - less == pytest.approx((D - 1) * math.log(2), abs=1e-4)


def test_each_weight_of_tcvae_weighs_its_part():
    terms = made(TCVAE, **TC).terms(batch(), noise())
    for name, part in (("alpha", "index_code_mi"), ("beta", "total_correlation"), ("gamma", "dimension_wise")):
        model = made(TCVAE, **TC | {name: 5.0})
        assert model.objective(terms).item() - plain() == pytest.approx(4 * terms[f"kl_{part}"].mean().item(), rel=1e-4)


@pytest.mark.parametrize("moments", ["means", "draws"])
def test_dip_weighs_squares_of_the_covariance(moments):
    model = made(DIPVAE, off_diagonal=3.0, diagonal=2.0, moments=moments)
    mean, logvar = model.encode(batch().images).factorised
    c = torch.cov(mean.t(), correction=0) + (logvar.exp().mean(0).diag() if moments == "draws" else 0)
    off = sum(c[i, j] ** 2 for i in range(D) for j in range(D) if i != j)
    on = sum((c[i, i] - 1) ** 2 for i in range(D))
    found = model.objective(model.terms(batch(), noise())).item()
    assert found == pytest.approx(plain() + (3 * off + 2 * on).item(), rel=1e-5)


def test_infovae_without_anything_is_the_vae_and_gives_the_kl_back():
    both = torch.stack([noise(), noise().flip(0)])
    model = made(InfoVAE, alpha=0.0, weight=1.0, kernel="rbf")
    terms = model.terms(batch(), both)
    assert model.objective(terms).item() == pytest.approx(plain(), rel=1e-6)
    model.alpha.fill_(1.0)
    model.weight.fill_(7.0)
    assert model.objective(terms).item() == pytest.approx((terms["reconstruction"] + 7 * terms["mmd"]).mean().item())


def test_wae_refuses_a_prior_that_nothing_would_teach():
    prior = partial(GaussianMixture, components=2, covariance="diag", regularisation=1e-6)
    with pytest.raises(UserError, match="no KL that a prior could learn from"):
        made(WAE, weight=2.0, encoder="gaussian", kernel="imq", prior=prior)


def test_wae_has_points_without_a_density_or_draws_with_one():
    points = made(WAE, weight=2.0, encoder="deterministic", kernel="imq")
    terms = terms_of(points, batch().images)
    assert terms.keys() == {"reconstruction", "mmd"}
    assert not points.bounded
    assert points.objective(terms).item() == pytest.approx((terms["reconstruction"] + 2 * terms["mmd"]).mean().item())
    draws = made(WAE, weight=2.0, encoder="gaussian", kernel="imq")
    terms = terms_of(draws, batch().images)
    assert not terms["kl"].requires_grad
    assert draws.bounded


# --- the discriminator ---------------------------------------------------------------------------------


def test_neither_side_of_factor_moves_the_other():
    """The total correlation has no gradient in the discriminator, and its loss has none in the encoder."""
    model = made(FactorVAE, gamma=5.0, **DISCRIMINATOR)
    terms = model.terms(batch(), noise(12, 2))
    own, encoder = list(model.discriminator.parameters()), list(model.encoder.parameters())
    judged = terms["total_correlation"].mean()
    assert all(g is None for g in torch.autograd.grad(judged, own, retain_graph=True, allow_unused=True))
    assert any(g.abs().max() > 0 for g in torch.autograd.grad(judged, encoder, retain_graph=True))
    loss = terms["discriminator"].mean()
    assert all(g is None for g in torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True))
    assert any(g.abs().max() > 0 for g in torch.autograd.grad(loss, own))


def test_factor_weighs_the_total_correlation_and_trains_the_discriminator():
    """The negative ELBO, plus gamma times the mean log-odds, plus the discriminator's own loss."""
    model = made(FactorVAE, gamma=5.0, **DISCRIMINATOR)
    terms = model.terms(batch(), noise(12, 2))
    more = 5 * terms["total_correlation"] + terms["discriminator"]
    whole = (terms["reconstruction"] + terms["kl"] + more).mean().item()
    assert abs(terms["total_correlation"].mean().item()) > 1e-3
    assert model.objective(terms).item() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_discriminator_finds_the_total_correlation(rho):
    """Trained on Gaussian codes with correlation rho, its log-odds have the mean -1/2 ln(1 - rho^2), and its accuracy
    is 1/2 where there is nothing to tell.
    """
    torch.manual_seed(0)
    model = made(FactorVAE, gamma=1.0, **DISCRIMINATOR)
    both = torch.eye(D)
    both[0, 1] = both[1, 0] = rho
    root = torch.linalg.cholesky(both)
    optimizer = torch.optim.Adam(model.discriminator.parameters(), 2e-3)

    def seen(count):
        z = torch.randn(count, D) @ root.t()
        model.measured = lambda *_: ({}, None, z)
        return model.terms(Batch(torch.zeros(count, *SHAPE)), torch.randn(2, count, D))

    for _ in range(250):
        optimizer.zero_grad()
        seen(1000)["discriminator"].mean().backward()
        optimizer.step()
    with torch.no_grad():
        terms = seen(20_000)
    assert terms["total_correlation"].mean().item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.05)
    if rho == 0:
        assert terms["discriminator_accuracy"].mean().item() == pytest.approx(0.5, abs=0.015)


def test_the_discriminator_learns_by_options_of_its_own():
    model = made(FactorVAE, gamma=1.0, **DISCRIMINATOR)
    model.lr_factors = {"decoder": 0.5}
    model.optimizer = lambda groups: torch.optim.Adam(groups, lr=0.01)
    rest, own, decoder = model.configure_optimizers().param_groups
    assert (own["lr"], own["betas"]) == (1e-3, (0.5, 0.9))
    assert (rest["lr"], rest["betas"], decoder["lr"]) == (0.01, (0.9, 0.999), 0.005)
    assert {id(p) for p in own["params"]} == {id(p) for p in model.discriminator.parameters()}
    model.optimizer = lambda groups: torch.optim.SGD(groups, lr=0.01)
    with pytest.raises(UserError, match="SGD has no betas"):
        model.configure_optimizers()


# --- beta that is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_geco_finds_the_beta_of_the_curve(start):
    """On the curve reconstruction = 100 + 20 ln beta, as of a linear model, the target 86.1 is that of beta = 1/2."""
    model = made(GECO, target=86.137, rate=0.002, decay=0.9, beta=start)
    for _ in range(3000):
        model.learn([model.target - (100 + 20 * model.beta.log())])
    assert model.beta.item() == pytest.approx(0.5, rel=0.01)


def test_geco_raises_beta_where_there_is_room():
    model = made(GECO, target=50.0, rate=0.002, decay=0.0, beta=1.0)
    terms = model.terms(batch(), noise())
    assert terms["room"].item() == pytest.approx(50 - terms["reconstruction"].mean().item(), rel=1e-6)
    model.learn([model.observe(batch(), terms)])
    assert model.beta.item() == pytest.approx(math.exp(0.002 * terms["room"].item()), rel=1e-5)
    for _ in range(100):
        model.learn([torch.tensor(1e4)])
    assert model.beta.item() == pytest.approx(1e4)
    assert multiplicative(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(1.0), 0.0, torch.tensor(9.0)) == 2


@pytest.mark.parametrize("start", [0.0, 4.0])
def test_controlvae_finds_the_beta_of_the_curve(start):
    """On the curve KL = 30 exp(-beta), C = 15 is that of beta = ln 2: the controller ends there from either side."""
    model = made(ControlVAE, capacity=15.0, proportional=0.01, integral=0.001, beta_min=0.0, beta_max=10.0)
    model.beta.fill_(start)
    model.summed.fill_(start)
    for _ in range(2000):
        model.learn([30 * (-model.beta).exp() - model.capacity])
    assert model.beta.item() == pytest.approx(math.log(2), rel=0.01)


SPECTRUM, KEPT, NOISE = torch.tensor([6.0, 3.0, 1.5, 0.9, 0.4, 0.3, 0.3, 0.2, 0.2]), 4, 0.5
"""Variances of Gaussian data along their axes, latents of a linear model of them, and the deviation of its noise."""


def of_the_linear_model(beta):
    """The reconstruction and the KL of the best linear beta-VAE, nats: that of probabilistic PCA with beta NOISE^2.

    Each latent's axis is known up to that variance (reverse water-filling), each other one not at all.
    """
    level = beta * NOISE**2
    left = SPECTRUM[:KEPT].clamp(max=level).sum() + SPECTRUM[KEPT:].sum()
    kl = (0.5 * (SPECTRUM[:KEPT] / level).log()).clamp(min=0).sum().item()
    return 0.5 * len(SPECTRUM) * math.log(2 * math.pi * NOISE**2) + left.item() / (2 * NOISE**2), kl


@pytest.mark.parametrize(("variant", "start"), [(GECO, 0.1), (GECO, 20.0), (ControlVAE, 0.1), (ControlVAE, 8.0)])
def test_beta_that_is_found_in_training_is_that_of_the_curve_and_the_constraint_is_met(variant, start):
    reconstruction, kl = of_the_linear_model(beta=2.0)
    torch.manual_seed(0)
    gains = {"proportional": 0.01, "integral": 0.005, "beta_min": 0.0, "beta_max": 10.0}
    given = {GECO: {"target": reconstruction, "rate": 0.01, "decay": 0.9, "beta": start}}.get(variant)
    model = variant(
        (1, 3, 3), None, MLP([], "relu", "none"), Gaussian(NOISE), KEPT, **given or {"capacity": kl} | gains
    )
    model.beta.fill_(start)
    if variant is ControlVAE:
        model.summed.fill_(start)
    axes, optimizer, seen = torch.linalg.qr(torch.randn(9, 9))[0], torch.optim.Adam(model.parameters()), []
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        images = Batch((torch.randn(256, 9) * SPECTRUM.sqrt() @ axes.t()).view(-1, 1, 3, 3))
        terms = model.terms(images, model.noise(256))
        optimizer.zero_grad()
        model.objective(terms).backward()
        optimizer.step()
        model.learn([model.observe(images, terms)])
        seen.append(torch.stack([model.beta.clone(), terms["reconstruction"].mean(), terms["kl"].mean()]).detach())
    assert torch.stack(seen[-300:]).mean(0).tolist() == pytest.approx([2.0, reconstruction, kl], rel=0.01)


def test_controlvae_wants_a_range_of_beta():
    with pytest.raises(UserError, match=r"model\.beta_min=5\.0: must be below"):
        made(ControlVAE, capacity=15.0, proportional=0.01, integral=0.001, beta_min=5.0, beta_max=1.0)


def test_controlvae_measures_how_far_the_kl_is_above_c():
    model = made(ControlVAE, capacity=15.0, proportional=0.01, integral=0.001, beta_min=0.0, beta_max=10.0)
    terms = model.terms(batch(), noise())
    assert model.observe(batch(), terms).item() == pytest.approx(terms["kl"].mean().item() - 15, rel=1e-5)


@pytest.mark.parametrize("off", [-3.0, 3.0])
def test_the_best_epoch_is_one_that_keeps_to_the_constraint(off):
    """Off on either side costs 10 nats of the objective for each nat: an ELBO would take an epoch that missed it."""
    geco = made(GECO, target=80.0, rate=0.002, decay=0.9, beta=1.0)
    found = geco.derived({"reconstruction": 80.0 + off, "kl": 20.0, "target": 80.0}, {})
    assert (found["target_gap"], found["constrained"]) == (off, 50.0)
    control = made(ControlVAE, capacity=15.0, proportional=0.01, integral=0.001, beta_min=0.0, beta_max=10.0)
    found = control.derived({"reconstruction": 80.0, "kl": 15.0 + off, "capacity": 15.0}, {})
    assert (found["capacity_gap"], found["constrained"]) == (off, 110.0)


def test_the_integral_stands_still_at_the_ends_of_the_range():
    summed, error = torch.tensor(0.0), torch.tensor(-100.0)
    for _ in range(50):
        value, summed = proportional_integral(summed, error, 0.01, 0.001, 0.0, 1.0)
        assert value == 0
    value, _ = proportional_integral(summed, -error, 0.01, 0.001, 0.0, 1.0)
    assert value.item() == pytest.approx(0.11, abs=1e-6)  # K_p and one step: nothing has to be unwound


# --- options of the ELBO -------------------------------------------------------------------------------


def test_free_bits_cost_nothing_less():
    model = made(BetaVAE, beta=2.0, free_bits=0.5)
    terms = model.terms(batch(), noise())
    each = terms["kl_per_dim"].mean(0)
    floored = sum(max(0.5, kl) for kl in each.tolist())
    assert min(each) < 0.5
    assert model.objective(terms).item() == pytest.approx(terms["reconstruction"].mean().item() + 2 * floored, rel=1e-6)
    with pytest.raises(UserError, match=r"free_bits=0\.5 needs the KL"):
        made(VAE, estimator="draws", free_bits=0.5)


@pytest.mark.parametrize("least", [0.01, 0.3, 4.0])
def test_a_posterior_with_a_floor_cannot_collapse(least):
    """Whatever the encoder says, each KL is at least the floor, which a mean of 0 and the greatest variance have."""
    features = torch.cat([torch.zeros(50, D), torch.linspace(-3, 60, 50)[:, None].expand(50, D)], 1)
    kl = Diagonal(D, least_kl=least)(features).kl(made(VAE).prior).per_dim
    assert kl.min().item() == pytest.approx(least, rel=1e-3)
    assert (kl[1:] <= kl[:-1] + 1e-6).all()
    assert torch.equal(Diagonal(D)(features).logvar, features[:, D:])


def test_stl_is_noiseless_at_the_true_posterior():
    """The encoder's gradient of the KL by draws is 0 for every draw where q is the prior; that of plain ones is not."""
    mean, logvar = torch.zeros(1, D, requires_grad=True), torch.zeros(1, D, requires_grad=True)
    prior = made(VAE).prior
    for method, still in (("draw_by_path", True), ("draw", False)):
        posterior = DiagonalGaussian(mean, logvar)
        _, log_ratio = getattr(posterior, method)(noise(1), prior)
        gradient = torch.autograd.grad(log_ratio.sum(), [mean, logvar])
        assert (max(g.abs().max().item() for g in gradient) < 1e-6) is still


@pytest.mark.parametrize("estimator", ["draws", "stl"])
def test_draws_and_stl_have_the_elbo_and_its_gradient(estimator):
    """In expectation: over 20,000 draws for one image, within four errors."""
    exact, drawn = made(VAE, estimator="closed"), made(VAE, estimator=estimator)
    one = Batch(batch(1).images.expand(20_000, *SHAPE))
    found = []
    for model in (exact, drawn):
        features = model.encoder(one.images, None).detach().requires_grad_()
        model.encoder = Given(features)
        terms = model.terms(one, noise(20_000))
        loss = terms["reconstruction"] + terms["kl"]
        found.append((loss.detach(), torch.autograd.grad(loss.sum(), features)[0]))
    for one_of, other in zip(*found, strict=True):
        difference = (one_of - other).double()
        assert (difference.mean(0).abs() < 4 * difference.std(0) / math.sqrt(20_000) + 1e-6).all()


@pytest.mark.parametrize(
    ("variant", "options", "says"),
    [
        (TCVAE, {**TC, "posterior": Full}, "posterior: the total correlation needs the density of each dimension"),
        (
            DIPVAE,
            {"off_diagonal": 1.0, "diagonal": 1.0, "moments": "draws", "posterior": Full},
            "posterior: the moments",
        ),
        (IWAE, {"num_samples": 2, "estimator": "dreg", "posterior": Own}, "model.estimator=dreg needs a density"),
        (VAE, {"estimator": "stl", "posterior": Own}, "model.estimator=stl needs a density"),
    ],
)
def test_a_posterior_that_lacks_what_is_needed_is_refused(variant, options, says):
    with pytest.raises(UserError) as error:
        made(variant, **options)
    assert str(error.value).startswith(says)


class Given(nn.Module):
    """An encoder that gives the same features whatever it sees."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, *_):
        return self.features


# --- several draws -------------------------------------------------------------------------------------


def linear(estimator, draws, count):
    """An IWAE of x|z ~ N(z, I), whose posterior is a little off the true one, with features of their own per row."""
    torch.manual_seed(0)
    shape = (1, 1, 2)
    model = IWAE(shape, None, MLP([], "relu", False), Gaussian(1.0), 2, draws, estimator)
    x = torch.tensor([0.7, -0.4]).view(1, *shape).expand(count, *shape)
    mean, logvar = x.flatten(1) / 2 + 0.1, torch.full((count, 2), math.log(0.6))
    features = torch.cat([mean, logvar], 1).requires_grad_()
    model.encoder, model.decoder = Given(features), nn.Unflatten(1, shape)
    return model, Batch(x), features


def gradients(estimator, draws, count):
    model, images, features = linear(estimator, draws, count)
    loss = model.objective(model.terms(images, model.noise(count))) * count
    return torch.autograd.grad(loss, features)[0]


@pytest.mark.parametrize(("estimator", "slope"), [("iwae", -0.5), ("dreg", 0.5)])
def test_signal_to_noise_in_the_number_of_draws(estimator, slope):
    """Rainforth et al. 2018 and Tucker et al. 2019: the encoder's signal falls as 1/sqrt(K), or rises as sqrt(K)."""
    draws, ratios = torch.tensor([4, 16, 64]), []
    for count in draws.tolist():
        gradient = gradients(estimator, count, 40_000)
        noise = gradient.var(0).sum()
        signal = gradient.mean(0).square().sum() - noise / len(gradient)  # without what the error of a mean adds
        ratios.append(0.5 * (signal / noise).log())
    logs, ratios = draws.log(), torch.stack(ratios)
    fitted = ((logs - logs.mean()) * ratios).sum() / (logs - logs.mean()).square().sum()
    assert fitted.item() == pytest.approx(slope, abs=0.1)


def test_dreg_has_the_gradient_of_the_bound():
    """Its expectation is that of the bound itself; sticking the landing is biased for K > 1, and not for K = 1."""
    found = {(name, k): gradients(name, k, 40_000) for name in ("iwae", "dreg", "stl") for k in (1, 5)}

    def apart(first, second):
        difference = found[first].mean(0) - found[second].mean(0)
        error = (found[first].var(0) / 40_000 + found[second].var(0) / 40_000).sqrt()
        return (difference.abs() / error).max().item()

    assert apart(("iwae", 5), ("dreg", 5)) < 4
    assert apart(("iwae", 1), ("stl", 1)) < 4
    assert apart(("iwae", 5), ("stl", 5)) > 6


def test_the_bound_rises_to_the_evidence():
    """log p(x) of N(0, 2 I); with one draw it is the ELBO."""
    x = torch.tensor([0.7, -0.4])
    evidence = -0.25 * x.square().sum().item() - math.log(2 * math.pi * 2)
    bounds = []
    for draws in (1, 5, 50):
        model, images, _ = linear("iwae", draws, 4000)
        terms = model.terms(images, model.noise(4000))
        bounds.append(terms["bound"].mean().item())
        elbo = -(terms["reconstruction"] + terms["kl"]).mean().item()
        assert elbo == pytest.approx(bounds[0], abs=0.02)
    assert bounds[0] < bounds[1] < bounds[2] < evidence + 0.002
    assert bounds[2] == pytest.approx(evidence, abs=0.002)
