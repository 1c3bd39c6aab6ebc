"""Small problems with known answers that show how a VAE works: arrays for figures, and numbers beside their truth.

All in float64 on the processor. Draws come from torch's own generator: whoever calls seeds it. Every estimate stands
beside the closed form that it should meet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from vaelab.evaluation.metrics.likelihood import Estimate, mean_and_error
from vaelab.nn.gaussian import kl_to_standard_normal

WEIGHT, NOISE, IMAGE = (1.5, -0.8), 0.7, (1.0, 0.5)
"""The linear Gaussian model of `bound`: x = w z + sigma eps with z ~ N(0, 1), and the x it is asked about."""
SNR = 8.0
"""Distortion at rate 0 of the source of `capacity`, nats."""


class Gaussians(NamedTuple):
    """The KL(q || p) of q = N(mean, std^2) and p = N(0, 1), nats, in three ways.

    z: [n]; q, p: densities there, [n]; integrand: q log(q / p), [n]; its areas above and below zero add up to the
    KL, `integral`.
    """

    z: Tensor
    q: Tensor
    p: Tensor
    integrand: Tensor
    above: float
    below: float
    closed_form: float
    sampled: Estimate

    @property
    def integral(self) -> float:
        return self.above + self.below


def kl(mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Computes KL(N(mean, std^2) || N(0, 1)), nats, float64; mean and std may be arrays."""
    mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
    return kl_to_standard_normal(mean, 2 * std.log())


def gaussians(mean: float, std: float, samples: int) -> Gaussians:
    """Computes the KL in closed form, by the trapezium rule and as the mean of log q(z) - log p(z) over draws of q."""
    q, p = Normal(_double(mean), _double(std)), Normal(_double(0), _double(1))
    ends = torch.tensor([mean - 10 * std, mean + 10 * std, -4.0, 4.0], dtype=torch.float64)
    wide = torch.linspace(float(ends.min()), float(ends.max()), 4001, dtype=torch.float64)
    fine = torch.linspace(mean - 10 * std, mean + 10 * std, 4001, dtype=torch.float64)
    z = torch.cat([wide, fine]).unique()  # the second grid keeps a narrow q from being missed
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    draws = q.sample((samples,))
    return Gaussians(
        z=z,
        q=q.log_prob(z).exp(),
        p=p.log_prob(z).exp(),
        integrand=integrand,
        above=torch.trapezoid(integrand.clamp(min=0), z).item(),
        below=torch.trapezoid(integrand.clamp(max=0), z).item(),
        closed_form=kl(mean, std).item(),
        sampled=mean_and_error(q.log_prob(draws) - p.log_prob(draws)),
    )


class Slopes(NamedTuple):
    """Derivatives by mean and std, in this order, as `Gradients` has them."""

    mean: float
    std: float


class Gradients(NamedTuple):
    """Derivatives of E[(z - 1)^2] under q = N(mean, std^2), by mean and std.

    exact: the truth. variances: of one draw's derivative, exact: of reparameterisation and of the score function.
    reparameterised, score: the derivative of every draw, [2, n] each. direct_error: what torch says when it is asked
    for the gradient of a direct draw. In the loss (z - 1)^2 + KL(q || N(0, 1)): what is right, and what a direct draw
    gives, which is the gradient of the KL alone.
    """

    exact: Slopes
    variances: tuple[Slopes, Slopes]
    reparameterised: Tensor
    score: Tensor
    direct_error: str
    sum_exact: Slopes
    sum_direct: Slopes


def gradients(mean: float, std: float, samples: int) -> Gradients:
    """Compares how three ways to sample z pass a gradient on (Kingma & Welling 2014, sections 2.2 and 2.4).

    Each draw has a mean and a std of its own to differentiate by, so that autograd gives every draw's derivative.
    """
    a = mean - 1
    exact, of_kl = Slopes(2 * a, 2 * std), Slopes(mean, std - 1 / std)

    q, parameters = _leaves(mean, std, samples)
    _loss(q.rsample()).sum().backward()
    reparameterised = _grads(parameters)

    q, parameters = _leaves(mean, std, samples)
    z = q.sample()
    (_loss(z) * q.log_prob(z)).sum().backward()  # Williams 1992: f(z) is a constant, its density is not
    score = _grads(parameters)

    q, parameters = _leaves(mean, std, samples)
    z = q.sample()
    try:
        _loss(z).mean().backward()
        direct_error = ""
    except RuntimeError as error:
        direct_error = str(error)
    (_loss(z) + kl_to_standard_normal(q.mean, 2 * q.stddev.log())).mean().backward()
    sum_direct = _grads(parameters).sum(1).tolist()

    second = a**4 + 18 * a**2 * std**2 + 15 * std**4, 2 * a**4 + 60 * a**2 * std**2 + 78 * std**4
    return Gradients(
        exact=exact,
        variances=(
            Slopes(4 * std**2, 4 * (a**2 + 2 * std**2)),
            Slopes(second[0] / std**2 - exact.mean**2, second[1] / std**2 - exact.std**2),
        ),
        reparameterised=reparameterised,
        score=score,
        direct_error=direct_error,
        sum_exact=Slopes(exact.mean + of_kl.mean, exact.std + of_kl.std),
        sum_direct=Slopes(*sum_direct),
    )


class Bounds(NamedTuple):
    """The log p(x) of a linear Gaussian model and its lower bounds with an inexact q, nats.

    z: [n]; posterior, q: densities there, [n]. gap: KL(q || p(z|x)). elbo: E_q[log p(x|z)] - KL(q || p(z)), in closed
    form. counts: the numbers K of draws; bounds: L_K for each, a mean over independent estimates; spread: the 5th and
    the 95th percentile of single estimates, [K, 2]. chi_squared: variance of the weights w / p(x) under q; infinite
    if q is so narrow that p(z|x)^2 / q has no integral.
    """

    z: Tensor
    posterior: Tensor
    q: Tensor
    log_evidence: float
    elbo: float
    gap: float
    counts: list[int]
    bounds: list[Estimate]
    spread: Tensor
    chi_squared: float


def bounds(mean: float, std: float, most: int, samples: int) -> Bounds:
    """Estimates L_K = E[log 1/K sum_k p(x, z_k) / q(z_k)] from K = 1, the ELBO, to `most` (Burda et al. 2016, eq. 8).

    mean, std: of q, in standard deviations of the exact posterior from its mean. The KL does not change when both are
    moved and scaled alike, so the ELBO's gap is KL(N(mean, std^2) || N(0, 1)). samples: draws of z in all; for each K
    they are dealt out in samples / K groups, one estimate each.
    """
    weight, x = torch.tensor(WEIGHT, dtype=torch.float64), torch.tensor(IMAGE, dtype=torch.float64)
    precision = 1 + weight.square().sum() / NOISE**2
    posterior = Normal(weight @ x / (NOISE**2 * precision), precision.rsqrt())
    q = Normal(posterior.mean + mean * posterior.stddev, std * posterior.stddev)
    covariance = torch.outer(weight, weight) + NOISE**2 * torch.eye(2, dtype=torch.float64)

    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(z[..., None] * weight, NOISE).log_prob(x).sum(-1)

    z = q.sample((samples,))
    log_w = log_likelihood(z) + Normal(_double(0), _double(1)).log_prob(z) - q.log_prob(z)
    counts = sorted({min(round(c * 10**e), most) for e in range(10) for c in (1, 2, 5)})
    groups = [log_w[: samples // k * k].view(-1, k).logsumexp(1) - math.log(k) for k in counts]
    # E_q[log p(x|z)] is the value at q's mean, less half the trace of the curvature with q's variance
    expected = log_likelihood(q.mean) - 0.5 * weight.square().sum() / NOISE**2 * q.variance
    reach = max(3.5, abs(mean) + 3.5 * std)
    at = posterior.mean + posterior.stddev * torch.linspace(-reach, reach, 801, dtype=torch.float64)
    return Bounds(
        z=at,
        posterior=posterior.log_prob(at).exp(),
        q=q.log_prob(at).exp(),
        log_evidence=MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x).item(),
        elbo=(expected - kl(q.mean, q.stddev)).item(),
        gap=kl(mean, std).item(),
        counts=counts,
        bounds=[mean_and_error(group) for group in groups],
        spread=torch.stack([group.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)) for group in groups]),
        chi_squared=_chi_squared(mean, std),
    )


def _chi_squared(mean: float, std: float) -> float:
    """Computes the variance of p / q under q = N(mean, std^2), p = N(0, 1); infinite if beyond any float."""
    narrow = 2 * std**2 - 1
    if narrow <= 0 or mean**2 / narrow > 700:
        return math.inf
    return std**2 * narrow**-0.5 * math.exp(mean**2 / narrow) - 1


class Capacities(NamedTuple):
    """Objectives of a source whose distortion at rate R is SNR exp(-2 R), nats; all of [n].

    beta_best, capacity_best: the rate at which distortion + beta R, and distortion + gamma |R - C|, are least, in
    closed form. multiplier: nats of distortion that one more nat of rate saves at R = C.
    """

    rate: Tensor
    distortion: Tensor
    beta_term: Tensor
    capacity_term: Tensor
    beta_best: float
    capacity_best: float
    multiplier: float


def capacities(beta: float, capacity: float, gamma: float) -> Capacities:
    """Computes what beta KL and gamma |KL - C| (Burgess et al. 2018, eq. 8) do to the rate.

    The source is a Gaussian whose rate-distortion function (Cover & Thomas, theorem 13.3.2) is in nats of a Gaussian
    likelihood. The penalty is exact: for every gamma above the multiplier the least value is at C itself.
    """
    furthest = max(2.5, 1.5 * capacity, 1.2 * _rate_at_slope(beta))
    rate = torch.linspace(0, furthest, 1001, dtype=torch.float64)
    multiplier = 2 * SNR * math.exp(-2 * capacity)
    return Capacities(
        rate=rate,
        distortion=SNR * (-2 * rate).exp(),
        beta_term=beta * rate,
        capacity_term=gamma * (rate - capacity).abs(),
        beta_best=_rate_at_slope(beta),
        capacity_best=capacity if gamma >= multiplier else _rate_at_slope(gamma),
        multiplier=multiplier,
    )


def _rate_at_slope(slope: float) -> float:
    """Returns the rate at which one more nat saves `slope` nats of distortion; 0 if no rate saves as much."""
    return max(0.0, 0.5 * math.log(2 * SNR / slope))


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _leaves(mean: float, std: float, samples: int) -> tuple[Normal, tuple[Tensor, Tensor]]:
    """Returns N(mean, std^2) with parameters [n] to differentiate by, and these."""
    parameters = (
        torch.full((samples,), mean, dtype=torch.float64, requires_grad=True),
        torch.full((samples,), std, dtype=torch.float64, requires_grad=True),
    )
    return Normal(*parameters), parameters


def _grads(parameters: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the gradients of mean and std, [2, n]; zeros where there is none."""
    return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])


def _loss(z: Tensor) -> Tensor:
    return (z - 1).square()
