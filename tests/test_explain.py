"""Every number that `vaelab explain` prints is near its closed form, and what is wrong to ask ends with exit code 2."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from vaelab.cli import main
from vaelab.evaluation import teaching
from vaelab.evaluation.metrics.likelihood import mean_and_error

TOPICS = ["kl", "reparameterisation", "bound", "capacity"]
FEW = ["samples=20000", "importance_samples=100"]
CASES = {
    "topic=elbo": ("topic", "reparameterisation"),
    "std=0": ("std=0",),
    "std=-0.8": ("std=-0.8",),
    "mean=abc": ("mean",),
    "mean=nan": ("mean",),
    "samples=10": ("samples=10",),
    "samples=2.5": ("samples=2.5",),
    "importance_samples=0": ("importance_samples=0",),
    "importance_samples=1000 samples=1000": ("importance_samples=1000", "samples=10000"),
    "gamma=0": ("gamma=0",),
    "beta=-1": ("beta=-1",),
    "seed=-1": ("seed=-1",),
    "out=": ("out=",),
    "out=file": ("out=file",),
    "smaples=100": ("smaples", "did you mean samples?"),
}


@pytest.fixture
def explain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    def run(*arguments):
        code = main(["explain", *arguments])
        return code, *capsys.readouterr()

    return run


def line(text, start):
    """Numbers of the line that starts so."""
    found = next(row for row in text.splitlines() if row.strip().startswith(start))
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*\.\d+", found.strip().removeprefix(start))]


def test_all_topics_by_default_each_with_a_figure(explain, tmp_path):
    code, out, err = explain(*FEW, "out=some/where")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "some/where").iterdir()) == sorted(f"{t}.png" for t in TOPICS)
    for topic in TOPICS:
        assert f"\n{topic}: " in f"\n{out}"
        assert (tmp_path / f"some/where/{topic}.png").stat().st_size < 120_000


@pytest.mark.slow
def test_a_topic_alone_says_what_it_says_among_all_and_nothing_else_is_drawn(explain, tmp_path):
    _, every, _ = explain(*FEW)
    for topic in TOPICS:
        state = torch.get_rng_state()
        code, alone, _ = explain(*FEW, f"topic={topic}", f"out={topic}")
        assert code == 0
        assert alone.replace(f"{topic}/", "explain/") in every
        assert [p.name for p in (tmp_path / topic).iterdir()] == [f"{topic}.png"]
        assert torch.equal(torch.get_rng_state(), state)


def test_the_kl_of_a_known_pair_in_three_ways(explain):
    _, out, _ = explain("topic=kl", "samples=100000")
    assert line(out, "closed form") == [0.1681]
    integral, above, below = line(out, "integral")
    assert integral == 0.1681
    assert above > 0 > below
    assert above + below == pytest.approx(integral, abs=1.5e-4)
    mean, error = line(out, "100,000 draws")
    assert abs(mean - 0.1681) < 4 * error
    assert 0.0005 < error < 0.003


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.8), (0.0, 1.0), (-10.0, 0.01), (3.0, 10.0), (0.0, 0.05)])
def test_integral_and_draws_meet_the_closed_form(mean, std):
    torch.manual_seed(0)
    found = teaching.gaussians(mean, std, 100_000)
    assert found.closed_form == pytest.approx(0.5 * (mean**2 + std**2 - 1 - math.log(std**2)), abs=1e-9)
    assert found.integral == pytest.approx(found.closed_form, abs=1e-4)
    assert abs(found.sampled.mean - found.closed_form) <= 4 * found.sampled.error + 1e-12


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.8), (2.0, 0.3), (-1.0, 1.5)])
def test_two_ways_are_right_and_their_variances_are_as_said(mean, std):
    torch.manual_seed(0)
    found = teaching.gradients(mean, std, 400_000)
    # E[(z - 1)^2] = (mean - 1)^2 + std^2
    assert found.exact == pytest.approx((2 * (mean - 1), 2 * std))
    for draws, variances in zip((found.reparameterised, found.score), found.variances, strict=True):
        for of, exact, variance in zip(draws, found.exact, variances, strict=True):
            estimate = mean_and_error(of)
            assert abs(estimate.mean - exact) < 4 * estimate.error
            assert of.var().item() == pytest.approx(variance, rel=0.08)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.8), (2.0, 0.3)])
def test_the_variances_are_those_of_integrals(mean, std):
    e = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    z, density = mean + std * e, torch.exp(-0.5 * e**2) / math.sqrt(2 * math.pi)
    slopes = [(2 * (z - 1), 2 * (z - 1) * e), ((z - 1) ** 2 * e / std, (z - 1) ** 2 * (e**2 - 1) / std)]
    found = teaching.gradients(mean, std, 100)
    for way, variances in zip(slopes, found.variances, strict=True):
        for slope, exact, variance in zip(way, found.exact, variances, strict=True):
            assert torch.trapezoid(slope**2 * density, e).item() - exact**2 == pytest.approx(variance, rel=1e-6)


def test_the_score_function_is_the_noisier_way_and_is_no_copy_of_the_other():
    torch.manual_seed(0)
    found = teaching.gradients(0.5, 0.8, 1000)
    assert all(score > 4 * other for other, score in zip(*found.variances, strict=True))
    assert not torch.equal(found.score, found.reparameterised)


def test_direct_sampling_has_no_gradient_and_in_a_sum_gives_that_of_the_other_term(explain):
    mean = torch.tensor(0.5, requires_grad=True)
    assert not Normal(mean, 0.8).sample().requires_grad
    found = teaching.gradients(0.5, 0.8, 1000)
    assert "does not require grad" in found.direct_error
    assert found.sum_direct == pytest.approx((0.5, 0.8 - 1 / 0.8))  # d KL
    assert found.sum_exact == pytest.approx((-0.5, 1.6 + 0.8 - 1 / 0.8))
    _, out, _ = explain("topic=reparameterisation", *FEW)
    assert "does not require grad" in out
    dropped = out[out.index("with KL") :]
    assert line(dropped, "truth") == [-0.5, 1.15]
    assert line(dropped, "direct") == [0.5, -0.45]


def test_the_truth_of_the_bound_is_that_of_the_joint_gaussian():
    # p(x, z) as one Gaussian, conditioned by hand
    found = teaching.bounds(0.5, 0.8, 10, 1000)
    w, x = (torch.tensor(v, dtype=torch.float64) for v in (teaching.WEIGHT, teaching.IMAGE))
    covariance = torch.outer(w, w) + teaching.NOISE**2 * torch.eye(2).double()
    evidence = MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x).item()
    mean, variance = w @ torch.linalg.solve(covariance, x), 1 - w @ torch.linalg.solve(covariance, w)
    assert found.log_evidence == pytest.approx(evidence, abs=1e-9)
    torch.testing.assert_close(found.posterior, Normal(mean, variance.sqrt()).log_prob(found.z).exp())


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.8), (0.0, 1.0), (-1.0, 1.3), (0.0, 0.5)])
def test_the_elbo_misses_log_p_by_the_kl_to_the_posterior(mean, std):
    torch.manual_seed(0)
    found = teaching.bounds(mean, std, 1, 100_000)
    assert found.counts == [1]
    assert found.log_evidence - found.elbo == pytest.approx(found.gap, abs=1e-9)
    assert abs(found.bounds[0].mean - found.elbo) <= 4 * found.bounds[0].error + 1e-9
    ratio = found.q * (found.q / found.posterior).log()
    inside = torch.trapezoid(ratio, found.z).item()
    assert inside == pytest.approx(found.gap, abs=0.01)


def test_the_bound_grows_with_the_draws_to_log_p_and_its_gap_to_half_the_variance_over_k():
    torch.manual_seed(0)
    found = teaching.bounds(0.5, 0.8, 1000, 2_000_000)
    assert found.counts == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for before, after in pairwise(found.bounds):
        assert after.mean > before.mean - 3 * math.hypot(before.error, after.error)
    for before, after in pairwise(found.bounds[:6]):  # where the steps are larger than the noise
        assert after.mean > before.mean + 3 * after.error
    for count, bound in zip(found.counts[6:], found.bounds[6:], strict=True):
        assert found.log_evidence - bound.mean == pytest.approx(found.chi_squared / (2 * count), abs=4 * bound.error)
    assert (found.spread[:, 0] < found.spread[:, 1]).all()


def test_the_variance_of_the_weights_is_that_of_draws():
    q, p = Normal(0.3, 0.9), Normal(0.0, 1.0)
    torch.manual_seed(0)
    z = q.sample((1_000_000,)).double()
    weights = (p.log_prob(z) - q.log_prob(z)).exp()
    found = teaching.bounds(0.3, 0.9, 1, 100)
    assert found.chi_squared == pytest.approx(weights.var().item(), rel=0.02)
    assert math.isinf(teaching.bounds(0.0, 0.7, 1, 100).chi_squared)


def test_the_table_of_bounds_is_what_was_found(explain):
    _, out, _ = explain("topic=bound", *FEW)
    log_p, elbo, (gap, known) = line(out, "log p(x)")[0], line(out, "ELBO")[0], line(out, "gap")
    assert gap == known == 0.1681
    assert log_p - elbo == pytest.approx(gap, abs=1.5e-4)
    bound, error, missing = line(out, "1  ")
    assert abs(bound - elbo) < 4 * error
    assert missing == pytest.approx(log_p - bound, abs=1.5e-4)
    _, narrow, _ = explain("topic=bound", *FEW, "std=0.5")
    assert "no finite variance" in narrow
    assert "no finite variance" not in out


@pytest.mark.parametrize(
    ("beta", "capacity", "gamma"), [(1.0, 1.0, 10.0), (4.0, 1.0, 1000.0), (4.0, 0.5, 2.0), (20.0, 2.0, 1.0)]
)
def test_each_objective_is_least_where_it_is_said_to_be(beta, capacity, gamma):
    found = teaching.capacities(beta, capacity, gamma)
    step = (found.rate[1] - found.rate[0]).item()
    for term, best in (found.beta_term, found.beta_best), (found.capacity_term, found.capacity_best):
        assert found.rate[(found.distortion + term).argmin()].item() == pytest.approx(best, abs=step)
    assert (found.capacity_best == capacity) == (gamma >= found.multiplier)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", ["mean=0 std=1", "mean=-10 std=0.01", "mean=10 std=10", "mean=3 std=0.7 capacity=9", "mean=10 std=0.72"]
)
def test_odd_values_are_drawn_without_a_warning(explain, values, recwarn):
    code, _, err = explain("samples=1000", "importance_samples=100", *values.split())
    assert code == 0, err
    assert err == ""
    assert not [w for w in recwarn if issubclass(w.category, (UserWarning, RuntimeWarning))]


@pytest.mark.parametrize("asked", CASES)
def test_bad_input(explain, tmp_path, asked):
    code, out, err = explain(*asked.split(" "))
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    for word in CASES[asked]:
        assert word in err
    assert not (tmp_path / "explain").exists()
