"""Posteriors and the prior on the unit sphere, and the VAE of them."""

from __future__ import annotations

import json
import math
from functools import partial

import mpmath
import pytest
import torch
from torch.distributions import VonMises
from torch.nn.functional import normalize

import vaelab
from tests.correlated import seeded
from vaelab.cli import main
from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.likelihood import importance_weighted, mean_and_error
from vaelab.models import IWAE, SVAE, VAE, FactorVAE
from vaelab.nn.likelihoods import Gaussian
from vaelab.nn.networks import MLP
from vaelab.nn.posteriors import VMF, VonMisesFisher
from vaelab.nn.priors import UniformSphere
from vaelab.nn.sphere import Angle, log_area

DIMENSIONS = (2, 3, 5, 10, 50)
SHAPE, SIGMA = (1, 2, 2), 0.5
mpmath.mp.dps = 40


def posterior(d: int, kappa: float, count: int = 1) -> VonMisesFisher:
    return VonMisesFisher(normalize(torch.randn(count, d, generator=seeded(d)), dim=1), torch.tensor([[kappa]]).log())


def length(d: int, kappa: float) -> float:
    """The mean resultant length A = I_{d/2}(kappa) / I_{d/2 - 1}(kappa), by Bessel functions of 40 digits."""
    order = mpmath.mpf(d) / 2
    return float(mpmath.besseli(order, kappa) / mpmath.besseli(order - 1, kappa))


def variance(d: int, kappa: float) -> float:
    """The variance of m.z, which is the derivative of A in kappa, 1 - A^2 - (d - 1) A / kappa, of 40 digits."""
    order, k = mpmath.mpf(d) / 2, mpmath.mpf(kappa)
    a = mpmath.besseli(order, k) / mpmath.besseli(order - 1, k)
    return float(1 - a**2 - (d - 1) * a / k)


def log_constant(d: int, kappa: float) -> mpmath.mpf:
    """The logarithm of the constant before exp(kappa m.z): Davidson et al. 2018, section 3.1."""
    order, k = mpmath.mpf(d) / 2 - 1, mpmath.mpf(kappa)
    return order * mpmath.log(k) - (order + 1) * mpmath.log(2 * mpmath.pi) - mpmath.log(mpmath.besseli(order, k))


# --- the closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("kappa", [1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e5])
def test_the_kl_and_its_gradient_are_those_of_bessel_functions(d, kappa):
    one = posterior(d, kappa)
    one.log_concentration.requires_grad_()
    exact = one.log_concentration.detach().double().exp().item()
    found = one.kl(UniformSphere(d))
    (slope,) = torch.autograd.grad(found.total.sum(), one.log_concentration)
    kl = log_constant(d, exact) + exact * length(d, exact) + log_area(d)
    assert found.exact
    assert found.per_dim is None
    assert found.total.item() == pytest.approx(float(kl), rel=1e-6, abs=1e-8)
    assert slope.item() == pytest.approx(exact**2 * variance(d, exact), rel=3e-6)  # in log kappa


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("kappa", [1e-3, 3.0, 100.0, 1e5])
def test_the_law_of_the_angle_has_the_moments_of_bessel_functions(d, kappa):
    law = Angle(torch.tensor([[kappa]], dtype=torch.float64), d)
    assert 1 - law.mean_gap.item() == pytest.approx(length(d, kappa), rel=1e-8, abs=1e-12)
    assert law.variance.item() == pytest.approx(variance(d, kappa), rel=1e-6)


@pytest.mark.parametrize("kappa", [0.01, 1.0, 30.0])
def test_on_a_circle_it_is_the_density_of_torch(kappa):
    one, turn = posterior(2, kappa), torch.linspace(-3, 3, 13)
    around = torch.stack([turn.cos(), turn.sin()], 1)
    place = torch.atan2(one.mean[0, 1], one.mean[0, 0])
    expected = VonMises(place.double(), torch.tensor(kappa).double()).log_prob(turn.double())
    assert (one.log_prob(around).double() - expected).abs().max() < 1e-4 * max(1, kappa)


@pytest.mark.parametrize("kappa", [0.01, 1.0, 30.0])
def test_on_the_sphere_in_space_the_constant_is_of_a_hyperbolic_sine(kappa):
    one, z = posterior(3, kappa), normalize(torch.randn(9, 3, generator=seeded(1)), dim=1)
    expected = kappa * (z @ one.mean[0]).double() + math.log(kappa / (4 * math.pi * math.sinh(kappa)))
    assert (one.log_prob(z).double() - expected).abs().max() < 1e-5 * max(1, kappa)


def test_the_prior_is_the_posterior_that_knows_nothing():
    prior, one = UniformSphere(4), posterior(4, 1e-20)
    z = prior.sample(1000, generator=seeded(3))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(1000))
    assert z.mean(0).norm() < 4 / math.sqrt(1000)
    torch.testing.assert_close(prior.log_prob(z), torch.full((1000,), -math.log(2 * math.pi**2)))
    torch.testing.assert_close(one.log_prob(z), prior.log_prob(z))
    assert one.kl(prior).total.item() == pytest.approx(0, abs=1e-12)


# --- draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 5, 20])
@pytest.mark.parametrize("kappa", [0.1, 4.0, 1e4])
def test_draws_lie_on_the_sphere_with_the_moments_of_the_law(d, kappa):
    """Of each image alike, also of one that points to a pole; around it they lie the same way to all sides."""
    one, n = posterior(d, kappa, 2), 40_000
    one.mean[1] = torch.eye(d)[0] * -1
    one = VonMisesFisher(one.mean, one.log_concentration.expand(2, 1))
    z = one.rsample(torch.randn(n, 2, d, generator=seeded(4))).double()
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(n, 2).double())
    along = (z * one.mean).sum(-1)
    a, spread = length(d, kappa), variance(d, kappa)
    fourth = normalize(z[:, 1, 1:], dim=1)[:, 0] ** 4  # of a coordinate of the direction around the pole
    assert abs(fourth.mean() - 3 / (d**2 - 1)) < 5 * fourth.std() / math.sqrt(n) + 1e-3
    across = (1 - spread - a**2) / (d - 1)  # the variance in each other direction
    assert (along.mean(0) - a).abs().max() < 4 * math.sqrt(spread / n) + 1e-7
    assert (along.var(0) / spread - 1).abs().max() < 0.15
    for image in range(2):
        m = one.mean[image].double()
        expected = across * (torch.eye(d).double() - m.outer(m)) + spread * m.outer(m)
        assert (z[:, image].mean(0) - a * m).abs().max() < 5 * math.sqrt(max(spread, across) / n) + 1e-7
        assert (z[:, image].T.cov() - expected).abs().max() < 0.05 * max(spread, across)


@pytest.mark.parametrize("d", [2, 3, 4, 10])
@pytest.mark.parametrize("kappa", [0.01, 2.0, 500.0])
def test_quantiles_are_where_as_much_of_the_law_lies_below(d, kappa):
    """By a sum over a million points; their gradient is that of differences."""
    fine = torch.linspace(0, math.pi, 1_000_001, dtype=torch.float64)
    middle = 0.5 * (fine[1:] + fine[:-1])
    density = ((d - 2) * middle.sin().log() + kappa * (middle.cos() - 1)).exp()
    below = torch.cat([torch.zeros(1).double(), density.cumsum(0)]) / density.sum()
    concentration = torch.tensor([[kappa]], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-5], dtype=torch.float64)
    theta = Angle(concentration, d).quantile(u.view(-1, 1, 1)).flatten()
    place = torch.searchsorted(fine, theta.detach()).clamp(1, len(middle))
    part = (theta.detach() - fine[place - 1]) / (fine[place] - fine[place - 1])
    torch.testing.assert_close(torch.lerp(below[place - 1], below[place], part), u, rtol=1e-4, atol=1e-6)
    step = 1e-3 * kappa
    higher, lower = (
        Angle(torch.tensor([[k]], dtype=torch.float64), d).quantile(u.view(-1, 1, 1)).flatten()
        for k in (kappa + step, kappa - step)
    )
    slopes = torch.stack([torch.autograd.grad(t, concentration, retain_graph=True)[0].squeeze() for t in theta])
    torch.testing.assert_close(slopes, (higher - lower) / (2 * step), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_gradients_of_expectations_are_those_of_their_closed_forms(d, kappa):
    """Of E[b.z] and of E[(b.z)^2], in the mean direction and the concentration, by draws' gradients of each."""
    n, b = 40_000, torch.randn(d, generator=seeded(5))
    mean = normalize(torch.randn(d, generator=seeded(6)), dim=0)
    log_kappa = torch.tensor([math.log(kappa)])

    def closed(m, t):
        m, k = normalize(m, dim=0), t.double().exp()
        law = Angle(k.view(1, 1), d)
        a = length(d, kappa) + law.variance.item() * (k - k.detach())  # A, and its derivative
        square = 1 - (d - 1) / k * a  # E[(m.z)^2]: from A' = 1 - A^2 - (d - 1) A / kappa
        along = (b * m).sum()
        return torch.stack([a * along, (1 - square) / (d - 1) * (b.square().sum() - along**2) + square * along**2])

    expected = torch.autograd.functional.jacobian(lambda m, t: closed(m, t).flatten(), (mean, log_kappa))
    means, logs = mean.expand(n, d).clone().requires_grad_(), log_kappa.expand(n, 1).clone().requires_grad_()
    z = VonMisesFisher(means, logs).rsample(torch.randn(n, d, generator=seeded(7)))
    for row, value in enumerate([z @ b, (z @ b).square()]):
        for gradient, truth in zip(
            torch.autograd.grad(value.sum(), (means, logs), retain_graph=True), expected, strict=True
        ):
            gap = gradient.double() - truth[row].flatten()
            assert torch.all(gap.mean(0).abs() < 5 * gap.std(0) / math.sqrt(n) + 1e-5)


@pytest.mark.parametrize("by", ["draw", "draw_by_path"])
def test_the_kl_by_draws_has_the_gradient_of_the_closed_form(by):
    n, prior = 40_000, UniformSphere(4)
    one = VonMisesFisher(torch.eye(4)[:1], torch.tensor([[1.5]], requires_grad=True))
    (expected,) = torch.autograd.grad(one.kl(prior).total.sum(), one.log_concentration)
    logs = torch.full((n, 1), 1.5, requires_grad=True)
    many = VonMisesFisher(torch.eye(4)[:1].expand(n, 4), logs)
    (each,) = torch.autograd.grad(
        -getattr(many, by)(torch.randn(n, 4, generator=seeded(8)), prior)[1].sum(), many.log_concentration
    )
    assert abs(each.mean() - expected) < 4 * each.std() / math.sqrt(n)


def test_only_the_direction_of_the_mean_counts():
    """So the free means of an amortisation gap stay on the sphere."""
    one = posterior(5, 3.0, 2)
    longer, noise = one.map(lambda t: t), torch.randn(7, 2, 5, generator=seeded(9))
    longer.mean = 3 * one.mean
    torch.testing.assert_close(longer.rsample(noise), one.rsample(noise))
    torch.testing.assert_close(longer.code, one.code)
    torch.testing.assert_close(longer.log_prob(one.code), one.log_prob(one.code))


@pytest.mark.parametrize("a", [-1e30, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30])
@pytest.mark.parametrize("d", [2, 3, 40])
def test_no_output_of_an_encoder_is_too_extreme(a, d):
    features = torch.randn(8, d + 1, generator=seeded(10))
    features[:, -1], features[0, :d] = a, 0.0
    features[1, :d] = 1e-4 * torch.eye(d)[0]
    features.requires_grad_()
    one, prior = VMF(d)(features), UniformSphere(d)
    z, log_ratio = one.draw(torch.randn(4, 8, d, generator=seeded(11)), prior)
    (gradient,) = torch.autograd.grad((z.sum() + log_ratio.sum() + one.kl(prior).total.sum()), features)
    assert all(t.isfinite().all() for t in (z, log_ratio, one.kl(prior).total, gradient))


def test_one_draw_or_many_at_once_are_the_same():
    """Under torch.func, as jobs that run in step have it."""
    means, logs = posterior(4, 1.0, 6).mean.view(3, 2, 4), torch.linspace(-1, 5, 6).view(3, 2, 1)
    noise = torch.randn(3, 2, 4, generator=seeded(12))

    def loss(mean, log, noise):
        one = VonMisesFisher(mean, log)
        return one.rsample(noise).square()[..., 0].sum() + one.kl(UniformSphere(4)).total.sum()

    several = torch.func.vmap(torch.func.grad(loss, (0, 1)))(means, logs, noise)
    each = [torch.func.grad(loss, (0, 1))(*one) for one in zip(means, logs, noise, strict=True)]
    for found, one in zip(several, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(one))


# --- the model -------------------------------------------------------------------------------------------


class Linear(SVAE):
    """x = W z + noise with orthogonal columns of one length in W: log p(x) and the posterior are in closed form.

    away: what is added to the exact posterior's kappa m.
    """

    def __init__(self, away: float = 0.0):
        torch.manual_seed(0)
        super().__init__(SHAPE, None, MLP([], "relu", False), Gaussian(SIGMA), 3)
        self.away, self.weight = away, 1.5 * torch.linalg.qr(torch.randn(4, 3, generator=seeded(13)))[0]
        decoder = self.decoder.body[-1]
        with torch.no_grad():
            decoder.weight.copy_(self.weight / math.sqrt(3))  # for points on the sphere of radius sqrt(3)
            decoder.bias.zero_()

    def encode(self, x, labels=None):
        tilt = x.flatten(1) @ self.weight / SIGMA**2 + self.away
        length = tilt.norm(dim=1, keepdim=True)
        return VonMisesFisher(tilt / length, length.log())

    def images(self, count):
        z = self.prior.sample(count, generator=seeded(14))
        return (z @ self.weight.T + SIGMA * torch.randn(count, 4, generator=seeded(15))).view(-1, *SHAPE)

    def log_evidence(self, x):
        x = x.flatten(1).double()
        tilt = (x @ self.weight.double() / SIGMA**2).norm(dim=1)
        squares = (x.square().sum(1) + 1.5**2) / SIGMA**2 + 4 * math.log(2 * math.pi * SIGMA**2)
        return (tilt.sinh() / tilt).log() - 0.5 * squares


def test_under_the_exact_posterior_one_draw_has_the_evidence():
    model = Linear()
    x = model.images(200)
    bound = importance_weighted(model, x, None, 4, 2**20, seeded())
    torch.testing.assert_close(bound.log_p_hat, model.log_evidence(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(bound.effective_samples, torch.full((200,), 4.0).double(), rtol=1e-4, atol=0)


def test_under_another_posterior_many_draws_have_the_evidence_and_the_elbo_is_below():
    model = Linear(away=3.0)
    x = model.images(200)
    bound, truth = importance_weighted(model, x, None, 2000, 2**20, seeded()), model.log_evidence(x)
    lost, still = mean_and_error(truth - bound.elbo), mean_and_error(truth - bound.log_p_hat)
    assert lost.mean > 0.5
    assert abs(still.mean) < 0.01


def made(variant=SVAE, **options):
    torch.manual_seed(0)
    return variant(SHAPE, None, MLP([8], "relu", False), Gaussian(1.0), options.pop("latent_dim", 3), **options)


def test_the_decoder_sees_the_direction_of_z_alone():
    """So what lies beside the sphere, as points of a line between two codes or along an axis do, is brought onto it.

    It sees coordinates with the deviation 1 under the prior.
    """
    model, z = made(), torch.randn(5, 3, generator=seeded(16))
    torch.testing.assert_close(model.decode(z), model.decode(7 * z))
    assert not torch.allclose(made(VAE).decode(z), made(VAE).decode(7 * z))
    seen = model.layout.onto(model.prior.sample(20_000, generator=seeded(18)))
    torch.testing.assert_close(seen.std(0), torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("variant", "options", "says"),
    [
        (VAE, {"posterior": VMF}, r"prior: it is N\(0, I\), and draws of the posterior are on a sphere"),
        (
            VAE,
            {"prior": UniformSphere},
            "prior: it is uniform on the unit sphere, and draws of the posterior are not on",
        ),
        (VAE, {"posterior": VMF, "prior": UniformSphere, "free_bits": 0.1}, r"model\.free_bits=0\.1 needs the KL of e"),
        (SVAE, {"latent_dim": 1}, r"model\.latent_dim=1: a sphere needs 2 or more"),
        (
            partial(
                FactorVAE, gamma=1.0, discriminator_dims=[4], discriminator_lr=1e-3, discriminator_betas=(0.5, 0.9)
            ),
            {"posterior": VMF, "prior": UniformSphere},
            "model=factor: codes whose dimensions are shuffled do not lie on a sphere",
        ),
    ],
)
def test_what_a_sphere_cannot_do_is_refused(variant, options, says):
    with pytest.raises(UserError, match=f"^{says}"):
        made(variant, **options)


@pytest.mark.parametrize(
    "words",
    [
        ["posterior=vmf"],
        ["prior=sphere"],
        ["model=hierarchical", "prior=sphere"],
        ["model=tcvae", "posterior=vmf", "prior=sphere"],
        ["model=wae", "posterior=vmf", "prior=sphere"],  # of points
    ],
)
def test_the_command_refuses_it_in_one_line(train, words):
    result = train(*words)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.err.strip().count("\n") == 0
    assert result.err.startswith(("vaelab: prior: ", "vaelab: posterior: ", "prior: ", "posterior: "))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prior", "run=svae", "prior=gmm"], "prior=gmm: the codes of SVAE lie on a sphere"),
        (["sample", "run=svae", "temperature=0.5"], "temperature=0.5: the prior of SVAE is uniform on the unit sphere"),
        (["traverse", "run=svae", "image=null"], "image=null: SVAE has no prior whose mean to start at: give image=0"),
        (["compress", "run=svae", "input=."], "run: SVAE gives no diagonal Gaussian"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_run_cannot_do_is_refused(finished, capsys, words, says):
    finished("model=svae").run.rename("svae")
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert says in error


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_several_draws_have_a_bound_above_the_elbo(estimator):
    model = made(IWAE, posterior=VMF, prior=UniformSphere, num_samples=20, estimator=estimator)
    terms = model.terms(Batch(torch.rand(64, *SHAPE, generator=seeded(17))), model.noise(64))
    model.objective(terms).backward()
    assert (terms["bound"] >= -(terms["reconstruction"] + terms["kl"])).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "words", [["model=svae", "model.latent_dim=2"], ["model=capacity", "posterior=vmf", "prior=sphere"]]
)
def test_it_learns_and_stays_finite_at_an_extreme_rate(train, words):
    result = train(*words, "optimizer.lr=0.5", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert all(map(math.isfinite, result.series("train/kl") + result.series("val/loss")))
    model = vaelab.load(result.run)
    assert model.encode(torch.rand(5, *model.shape)).code.norm(dim=1).sub(1).abs().max() < 1e-5


@pytest.mark.slow
def test_a_report_has_arcs_and_no_plane_of_a_circle(finished, capsys):
    run = finished("model=svae", "model.latent_dim=2").run
    assert main(["report", f"run={run}", "device=cpu"]) == 0, capsys.readouterr().err
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"traversals", "interpolations", "latents"} <= drawn
    assert "manifold" not in drawn


def test_coordinates_count_as_active_by_what_the_decoder_sees_of_them(finished, capsys):
    """A coordinate of 200 varies by 1 / 200 at most on the average, and by 1 as the decoder is given it."""
    run = finished("model=svae", "model.latent_dim=200", "trainer.max_epochs=1").run
    told = ["sections=[latents]", "gap_images=2", "device=cpu"]
    assert main(["eval", f"run={run}", *told]) == 0, capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text())["figures"]["latents/active"] > 100


def test_a_posterior_starts_as_wide_as_the_prior_is():
    """Where the encoder says 0 of it: the variance across m is that of a uniform draw, 1 / d, but for its curvature."""
    d = 40
    one = VMF(d)(torch.cat([torch.eye(d)[:1], torch.zeros(1, 1)], 1))
    assert one.log_concentration.exp().item() == pytest.approx(d, rel=1e-5)
    z = one.rsample(torch.randn(20_000, 1, d, generator=seeded(19)))
    assert z[:, 0, 1:].var(0).mean().item() == pytest.approx(length(d, d) / d, rel=0.02)
