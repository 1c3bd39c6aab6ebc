import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.test_conf import composed, options
from vaelab.core.conf import CONF
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.nn.likelihoods import (
    Bernoulli,
    BetaBinomial,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    GaussianLearned,
    Laplace,
)

WIDTHS = {
    "gaussian": {"sigma": 0.3},
    "gaussian_learned": {"sigma": 0.7},
    "laplace": {"scale": 0.4},
    "discretised_logistic": {"scale": 0.05},
}


def made(name):
    """The likelihood of an option, of a width that is not 1."""
    return build(yaml.safe_load((CONF / "likelihood" / f"{name}.yaml").read_text()) | WIDTHS.get(name, {}))


def one_to_one(name):
    """Whether a pixel of any image has one raw parameter; others have a file of tests of their own."""
    try:
        return made(name).raw_shape((1, 8, 8)) == (1, 8, 8)
    except UserError:
        return False


def alias(name):
    """Whether an option is another name of one of the others."""
    return "defaults:" in (CONF / "likelihood" / f"{name}.yaml").read_text()


ALL = {name: partial(made, name) for name in options("likelihood") if not alias(name) and one_to_one(name)}
DISCRETE = ["bernoulli", "discretised_logistic"]
CONTINUOUS = [name for name in ALL if name not in DISCRETE]
UNIT_RANGE = [name for name in ALL if made(name).unit_range]
REAL = [name for name in ALL if name not in UNIT_RANGE]
LOGITS = [-100.0, -30.0, -3.0, -0.2, -0.1, -1e-6, 0.0, 1e-6, 0.1, 0.19, 0.21, 3.0, 30.0, 100.0]
every = pytest.mark.parametrize("name", ALL)


def support(name, raw):
    """Points that cover the support of one pixel, and the weight of each in an integral, [n]."""
    if name in DISCRETE:
        levels = getattr(ALL[name](), "levels", 2)
        return torch.arange(levels) / (levels - 1), torch.ones(levels, dtype=torch.float64)
    low, high = (0.0, 1.0) if name in UNIT_RANGE else (raw - 12.0, raw + 12.0)
    edges = torch.linspace(low, high, 40_001, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    return middle.float(), torch.full_like(middle, (high - low) / 40_000)


def pixels(values):
    """One pixel per image, [n, 1, 1, 1]."""
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


@every
@pytest.mark.parametrize("raw", [-30.0, -2.0, -0.01, 0.0, 0.15, 1.0, 30.0])
def test_the_density_integrates_to_one_and_its_first_moment_is_the_mean(name, raw):
    likelihood = ALL[name]()
    x, weight = support(name, raw)
    p = likelihood.log_prob(pixels(raw).expand(len(x), 1, 1, 1), pixels(x)).double().exp() * weight
    assert p.sum().item() == pytest.approx(1, abs=2e-4)
    off = 0.5 / 255 if name == "discretised_logistic" else 2e-4  # whose mean is by an integral
    assert (p * x).sum().item() == pytest.approx(likelihood.mean(pixels(raw)).item(), rel=2e-4, abs=off)


@every
@pytest.mark.parametrize("raw", [-4.0, -0.05, 0.0, 0.5, 4.0])
def test_samples_have_the_mean_and_the_spread_of_the_density(name, raw):
    torch.manual_seed(0)
    likelihood = ALL[name]()
    drawn = likelihood.sample(pixels(raw).expand(100_000, 1, 1, 1)).double().flatten()
    x, weight = support(name, raw)
    p = likelihood.log_prob(pixels(raw).expand(len(x), 1, 1, 1), pixels(x)).double().exp() * weight
    mean = (p * x).sum()
    spread = ((p * (x - mean).square()).sum()).sqrt().item()
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=4 * spread / len(drawn) ** 0.5)
    assert drawn.std().item() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("raw", [-3.0, 0.0, 3.0])
def test_samples_follow_the_distribution_function(name, raw):
    torch.manual_seed(0)
    likelihood = ALL[name]()
    drawn = likelihood.sample(pixels(raw).expand(50_000, 1, 1, 1)).double().flatten()
    x, weight = support(name, raw)
    p = likelihood.log_prob(pixels(raw).expand(len(x), 1, 1, 1), pixels(x)).double().exp() * weight
    reached = p.cumsum(0)[torch.searchsorted(x.double(), drawn.sort()[0]).clamp_max(len(x) - 1)]
    expected = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    assert (reached - expected).abs().max().item() < 1.95 / 50_000**0.5  # Kolmogorov-Smirnov at 0.1 %


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_sums_pixels_and_channels_of_each_image(name, channels):
    torch.manual_seed(0)
    likelihood = ALL[name]()
    raw, x = torch.randn(4, channels, 5, 3), torch.rand(4, channels, 5, 3).round()
    log_prob = likelihood.log_prob(raw, x)
    assert log_prob.shape == (4,)
    assert log_prob.dtype == torch.float32
    one_by_one = likelihood.log_prob(pixels(raw.flatten()), pixels(x.flatten()))
    torch.testing.assert_close(log_prob, one_by_one.view(4, -1).sum(1))


@every
def test_mean_and_sample_keep_the_images_shape(name):
    raw = torch.randn(2, 3, 4, 5)
    assert ALL[name]().mean(raw).shape == ALL[name]().sample(raw).shape == raw.shape


@pytest.mark.parametrize("name", UNIT_RANGE)
def test_mean_and_sample_stay_in_the_unit_range(name):
    raw = pixels(LOGITS).expand(-1, 1, 50, 50)
    for image in (ALL[name]().mean(raw), ALL[name]().sample(raw)):
        assert (image >= 0).all()
        assert (image <= 1).all()


@every
def test_raw_from_mean_inverts_the_mean(name):
    likelihood = ALL[name]()
    mean = torch.linspace(0.011, 0.989, 101).view(1, 1, 1, -1)
    torch.testing.assert_close(likelihood.mean(likelihood.raw_from_mean(mean)), mean, rtol=0, atol=1e-4)


@every
def test_raw_from_mean_is_finite_for_pixels_that_are_always_black_or_white(name):
    likelihood = ALL[name]()
    extremes = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    raw = likelihood.raw_from_mean(extremes)
    assert raw.isfinite().all()
    torch.testing.assert_close(likelihood.mean(raw), extremes, rtol=0, atol=0.011)


@every
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_values_and_gradients_are_finite_at_extreme_and_vanishing_logits(name, x):
    likelihood = ALL[name]()
    raw = pixels(LOGITS).requires_grad_()
    log_prob = likelihood.log_prob(raw, torch.full_like(raw, x))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert raw.grad.isfinite().all()
    assert likelihood.mean(raw).isfinite().all()
    assert likelihood.sample(raw.detach()).isfinite().all()


@every
def test_the_mean_is_differentiable_at_extreme_and_vanishing_logits(name):
    raw = pixels(LOGITS).requires_grad_()
    ALL[name]().mean(raw).sum().backward()
    assert raw.grad.isfinite().all()


@every
def test_the_gradient_of_the_log_density_is_that_of_finite_differences(name):
    likelihood = ALL[name]()
    raw = pixels([-20.0, -2.0, -0.25, -0.15, 0.1, 0.19, 0.21, 2.0, 20.0]).requires_grad_()
    x = torch.full_like(raw, 0.3)
    likelihood.log_prob(raw, x).sum().backward()
    step = 0.02
    with torch.no_grad():
        ahead, behind = (likelihood.log_prob(raw + sign * step, x).double() for sign in (1, -1))
    torch.testing.assert_close(
        raw.grad.flatten(), ((ahead - behind) / (2 * step)).float(), rtol=0.02, atol=0.02, check_dtype=False
    )


def test_of_binary_pixels_the_gradient_by_the_image_is_the_logit():
    raw = pixels([-20.0, -2.0, 0.1, 2.0, 20.0])
    x = torch.full_like(raw, 0.3).requires_grad_()
    Bernoulli().log_prob(raw, x).sum().backward()
    assert torch.equal(x.grad, raw)


def test_continuous_bernoulli_is_that_of_torch():
    logits = pixels([-20.0, -5.0, -1.0, -0.3, 0.3, 1.0, 5.0, 20.0]).double()
    reference = torch.distributions.ContinuousBernoulli(logits=logits)
    likelihood = ContinuousBernoulli()
    for x in (0.0, 0.25, 1.0):
        at = torch.full_like(logits, x)
        ours = likelihood.log_prob(logits.float(), at.float())
        torch.testing.assert_close(ours, reference.log_prob(at).flatten().float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(likelihood.mean(logits.float()), reference.mean.float(), rtol=1e-4, atol=1e-5)


def test_continuous_bernoulli_is_uniform_and_smooth_around_a_zero_logit():
    likelihood = ContinuousBernoulli()
    logits = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    x = torch.full((1001, 1, 1, 1), 0.5)
    exact = -torch.special.expm1(logits).div(logits).log() + 0.5 * logits
    exact[500] = 0.0
    torch.testing.assert_close(likelihood.log_prob(pixels(logits), x), exact.float(), rtol=0, atol=1e-6)
    assert likelihood.mean(pixels(logits)).flatten().diff().min() > 0


def test_bernoulli_gives_each_binary_image_its_probability():
    logits = torch.tensor([[0.3, -1.0, 2.0]]).view(1, 1, 1, 3)
    corners = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])]).view(8, 1, 1, 3)
    p = Bernoulli().log_prob(logits.expand(8, 1, 1, 3), corners).exp()
    assert p.sum().item() == pytest.approx(1)
    assert p[0].item() == pytest.approx((1 - logits.sigmoid()).prod().item())


def test_gaussian_and_laplace_are_those_of_torch():
    raw, x = torch.randn(2, 7, 1, 4, 4)
    for ours, reference in [
        (Gaussian(0.3), torch.distributions.Normal(raw, 0.3)),
        (GaussianLearned(0.7), torch.distributions.Normal(raw, 0.7)),
        (Laplace(0.4), torch.distributions.Laplace(raw, 0.4)),
    ]:
        torch.testing.assert_close(ours.log_prob(raw, x), reference.log_prob(x).flatten(1).sum(1))


def test_the_learned_sigma_of_greatest_likelihood_is_the_rms_error():
    torch.manual_seed(0)
    raw = torch.randn(16, 1, 6, 6)
    x = raw + 0.2 * torch.randn_like(raw)
    rms = (x - raw).square().mean().sqrt().item()
    likelihood = GaussianLearned(1.0)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(raw, x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert likelihood.sigma.item() == pytest.approx(rms, rel=1e-3)


def test_start_from_sets_the_learned_sigma_alone():
    learned, fixed = GaussianLearned(1.0), Gaussian(1.0)
    learned.start_from(0.3)
    fixed.start_from(0.3)
    assert learned.sigma.item() == pytest.approx(0.3)
    assert fixed.sigma.item() == pytest.approx(1.0)
    learned.start_from(0.0)  # constant data
    assert 0 < learned.sigma.item() < 0.01


def test_adam_moves_the_learned_sigma_ten_times_faster_than_a_weight():
    likelihood = GaussianLearned(1.0)
    (parameter,) = likelihood.parameters()
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    likelihood.log_prob(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8) * 2).sum().neg().backward()
    optimizer.step()
    assert likelihood.sigma.log().item() == pytest.approx(10 * 1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "learns"), [(name, name in ("gaussian_learned", "discretised_logistic")) for name in ALL]
)
def test_only_a_learned_scale_is_a_parameter(name, learns):
    assert bool(list(ALL[name]().parameters())) == learns


@pytest.mark.parametrize("name", ["gaussian", "gaussian_learned", "laplace"])
def test_the_scale_is_saved(name):
    saved = ALL[name]().state_dict()
    other = type(ALL[name]())(5.0)
    other.load_state_dict(saved)
    raw, x = torch.randn(2, 3, 1, 4, 4)
    torch.testing.assert_close(other.log_prob(raw, x), ALL[name]().log_prob(raw, x))


@pytest.mark.parametrize("name", UNIT_RANGE)
def test_a_range_outside_the_support_is_refused(name):
    with pytest.raises(UserError) as refused:
        ALL[name]().check((-1.0, 1.0))
    assert f"likelihood={name}" in str(refused.value)
    assert "dataset.pixel_range" in str(refused.value)
    ALL[name]().check((0.0, 1.0))


@pytest.mark.parametrize("name", REAL)
def test_densities_on_the_real_line_take_any_range(name):
    ALL[name]().check((-1.0, 1.0))
    ALL[name]().check((0.0, 1.0))


def test_cross_entropy_on_grey_pixels_is_not_called_a_density():
    assert "not a density" in Bernoulli().density(binary=False)
    assert "not" not in Bernoulli().density(binary=True)
    assert "probability" in Bernoulli().density(binary=True)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("binary", [True, False])
def test_what_is_normalised_is_called_a_density(name, binary):
    assert "a density" in ALL[name]().density(binary)
    assert "not" not in ALL[name]().density(binary)


@every
def test_names_are_those_of_the_options(name):
    assert ALL[name]().name == name


@every
def test_half_precision_outputs_are_summed_in_float32(name):
    torch.manual_seed(0)
    likelihood = ALL[name]()
    raw, x = (3 * torch.randn(4, 3, 64, 64)).bfloat16(), torch.rand(4, 3, 64, 64)
    log_prob = likelihood.log_prob(raw, x)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, likelihood.log_prob(raw.float(), x), rtol=1e-6, atol=1e-2)


@every
def test_half_precision_outputs_have_finite_means_and_samples(name):
    torch.manual_seed(0)
    raw = torch.randn(4, 3, 64, 64).bfloat16()
    assert ALL[name]().mean(raw).isfinite().all()
    assert ALL[name]().sample(raw).isfinite().all()


def test_scales_are_positive_numbers_in_the_log_density():
    zero = torch.zeros(1, 1, 1, 1)
    assert Gaussian(2.0).log_prob(zero, zero).item() == pytest.approx(-math.log(2) - 0.5 * math.log(2 * math.pi))
    assert Laplace(2.0).log_prob(zero, zero).item() == pytest.approx(-math.log(4))


@pytest.mark.parametrize(
    ("name", "loss", "constant"),
    [
        ("mse", lambda raw, x: F.mse_loss(raw, x, reduction="sum"), 64 / 2 * math.log(math.pi)),
        ("bce", lambda raw, x: F.binary_cross_entropy(raw.sigmoid(), x, reduction="sum"), 0.0),
    ],
)
def test_the_names_of_losses_mean_their_sums(name, loss, constant):
    torch.manual_seed(0)
    raw, x = torch.randn(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    likelihood = build(composed(f"likelihood={name}")["likelihood"])
    assert -likelihood.log_prob(raw, x).item() == pytest.approx(loss(raw, x).item() + constant, rel=1e-5)


@every
def test_what_is_missing_counts_nothing(name):
    """The log-density of an image with holes is that of its other pixels, and no hole has a gradient."""
    torch.manual_seed(0)
    likelihood = ALL[name]()
    raw, x = torch.randn(4, 3, 5, 2).requires_grad_(), torch.rand(4, 3, 5, 2).round()
    holes = torch.rand(x.shape) < 0.3
    expected = (likelihood.log_density(raw, x) * ~holes).flatten(1).sum(1)
    likelihood.missing = True
    log_prob = likelihood.log_prob(raw, x.masked_fill(holes, math.nan))
    torch.testing.assert_close(log_prob, expected)
    (gradient,) = torch.autograd.grad(log_prob.sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[holes] == 0).all()
    assert (gradient[~holes] != 0).any()
    torch.testing.assert_close(likelihood.log_prob(raw, x), likelihood.log_density(raw, x).flatten(1).sum(1))


@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.3])
@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_the_discretised_logistic_gives_all_levels_one_in_all(scale, levels):
    likelihood = DiscretisedLogistic(scale, levels)
    x = pixels(torch.arange(levels) / (levels - 1))
    for raw in (-0.2, 0.0, 0.31, 1.0, 3.0):
        p = likelihood.log_prob(pixels(raw).expand_as(x), x).double().exp()
        assert p.sum().item() == pytest.approx(1, abs=2e-4)
    edges = torch.sigmoid((0.31 - pixels(torch.arange(1, levels) - 0.5).double() / (levels - 1)) / scale).flatten()
    expected = torch.cat([1 - edges[:1], edges[:-1] - edges[1:], edges[-1:]])  # Salimans et al., eq. 2
    p = likelihood.log_prob(pixels(0.31).expand_as(x), x).double().exp()
    torch.testing.assert_close(p, expected, rtol=1e-3, atol=2e-5)


def test_the_beta_binomial_is_that_of_scipy():
    from scipy.stats import betabinom

    likelihood = BetaBinomial(256)
    x = pixels(torch.arange(256) / 255)
    for mean, total in ((0.5, 2.0), (0.1, 0.05), (0.9, 3000.0), (0.02, 20.0)):
        raw = torch.tensor([math.log(mean / (1 - mean)), math.log(total)]).view(1, 2, 1, 1)
        p = likelihood.log_prob(raw.expand(256, -1, -1, -1), x).double().exp()
        expected = betabinom.pmf(range(256), 255, total * mean, total * (1 - mean))
        torch.testing.assert_close(p, torch.from_numpy(expected), rtol=1e-4, atol=1e-7)
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        assert likelihood.mean(raw).item() == pytest.approx((p * x.flatten()).sum().item(), abs=1e-5)


def test_two_raw_parameters_of_a_pixel_stand_beside_each_other_in_the_channels():
    """Of any image: those of a pixel give its density, its mean and its samples, and start at a mean."""
    torch.manual_seed(0)
    likelihood = BetaBinomial(256)
    assert likelihood.raw_shape((3, 4, 5)) == (6, 4, 5)
    raw, x = torch.randn(2, 6, 4, 5), torch.rand(2, 3, 4, 5).mul(255).round() / 255
    alone = likelihood.log_density(raw[:, [1, 4], 2:3, 3:4], x[:, 1:2, 2:3, 3:4])
    torch.testing.assert_close(likelihood.log_density(raw, x)[:, 1:2, 2:3, 3:4], alone)
    assert likelihood.mean(raw).shape == likelihood.sample(raw).shape == x.shape
    drawn = torch.stack([likelihood.sample(raw) for _ in range(2000)])
    assert (drawn.mean(0) - likelihood.mean(raw)).abs().max().item() < 5 * 0.5 / 2000**0.5
    assert ((drawn * 255).round() / 255 == drawn).all()
    torch.testing.assert_close(likelihood.mean(likelihood.raw_from_mean(x)), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["discretised_logistic", "beta_binomial"])
def test_levels_are_a_probability(name):
    assert made(name).density(False) == "a probability of 256 levels"
