"""Measures a Gaussian posterior's latent dimensions: which are active, and what the KL is spent on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaelab.evaluation.metrics.likelihood import Estimate, mean_and_error

ACTIVE_VARIANCE = 0.01
"""Variance of the posterior means above which a dimension is active (Burda et al. 2016, section 5.2)."""
NARROW = -20.0
"""Log-variance below which float32 is too coarse: for the noise about a mean of 1, and at -177 for the density."""

BLOCK = 4096
"""Draws whose density under a prior is computed at a time."""


class Activity(NamedTuple):
    """Activity of dimensions. variances: Var_x(mean of q(z|x)), [d]. active: whether above the threshold, [d] bool."""

    variances: Tensor
    active: Tensor


def active_dimensions(means: Tensor, threshold: float = ACTIVE_VARIANCE) -> Activity:
    """Tells which latent dimensions move with the image: Var_x(E_q[z]) > threshold (Burda et al. 2016, section 5.2).

    means: posterior means of N images, [N, d], N at least 2. The variance has N - 1 degrees of freedom and is computed
    in float64. Raises ValueError for another shape, fewer images, or values that are not finite.
    """
    _check("means", means)
    variances = means.cpu().double().var(0)
    return Activity(variances, variances > threshold)


class AggregateKL(NamedTuple):
    """The average KL and the terms it is the sum of: mean and standard error of each, nats per image.

    marginal: KL(q(z) || p(z)), the sum of the next two: no other prior can gain more. dimension_wise_kl: None where the
    prior is no product over dimensions, and index_code_mi and marginal are all there is.
    """

    index_code_mi: Estimate
    marginal: Estimate
    total_correlation: Estimate
    dimension_wise_kl: Estimate | None
    kl: Estimate


@torch.no_grad()
def aggregate_kl(
    mean: Tensor,
    logvar: Tensor,
    draws: int,
    generator: torch.Generator,
    memory: int,
    log_prior: Callable[[Tensor], Tensor] | None = None,
) -> AggregateKL:
    """Splits the KL into the three terms it is spent on (Hoffman & Johnson 2016; Chen et al. 2018, eq. 2).

    E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j)): index-code mutual
    information, total correlation and dimension-wise KL, for p(z) = N(0, I) and q(z) the mixture of the posteriors of
    all N images.

    Estimator: plain Monte Carlo over `draws` of z, each from the posterior of one image; images are taken in random
    order and none twice before all were taken. log q(z) and every log q(z_j) are exact: the log-mean-exp over all N
    components, not the minibatch estimators of Chen et al. (which are biased). The terms are thus unbiased for these
    N images, and add up to the Monte-Carlo KL on every draw.

    Bias as estimates for the distribution that the images come from: the mutual information with N images is at most
    log N; it is too small, and the total correlation too large by as much, long before that. In a factorised Gaussian
    case (d = 10, N = 10,000, log N = 9.2), mutual informations of 2.6, 4.6, 6.0, 8.0 and 11.5 nats give total
    correlations of 0.01, 0.06, 0.2, 0.7 and 2.6 nats in place of 0.

    Standard errors are those of independent draws, std / sqrt(draws); taking no image twice makes them a little too
    large. They do not contain what another N images would change.

    mean, logvar: of q(z|x), [N, d] each, N at least 2. draws: at least 2; N is usual. generator: of images and noise.
    memory: bytes of [rows, N] work space; on a processor 1 to 2 MiB, which its cache holds, are fastest. Log-densities
    are float32, from differences z_j - mean_j; where any logvar is below -20 they are float64, on the processor, which
    is good down to -1400 (below -60 a draw is its mean to the last digit, and the KL half a nat too large for each such
    dimension). log_prior: log p(z) of draws, [M, d] -> [M], where it is not that of N(0, I). Time: draws * N * d.
    Raises ValueError for other shapes, too few images or draws, or values that are not finite.
    """
    _check("mean", mean)
    _check("logvar", logvar)
    if mean.shape != logvar.shape:
        raise ValueError(f"mean and logvar: shapes differ, {list(mean.shape)} and {list(logvar.shape)}")
    if draws < 2:
        raise ValueError(f"draws={draws}: needs at least 2")
    narrow = bool(logvar.min() < NARROW)
    mean, logvar = (t.cpu().double() if narrow else t.float() for t in (mean, logvar))
    images = _in_turn(len(mean), draws, generator).to(mean.device)
    own_mean, own_logvar = mean[images], logvar[images]
    eps = torch.randn(own_mean.shape, generator=generator, device=generator.device).to(mean)
    z = torch.addcmul(own_mean, (0.5 * own_logvar).exp(), eps)
    joint, marginals = _log_mixture(z, mean, logvar, memory)
    posterior = _log_normal(*(t.cpu().double() for t in (z, own_mean, own_logvar))).sum(1)
    if log_prior is None:
        prior = _log_normal(z.cpu().double(), torch.zeros(()), torch.zeros(())).sum(1)
    else:
        prior = torch.cat([log_prior(part.float()).cpu().double() for part in z.split(BLOCK)])
    return AggregateKL(
        index_code_mi=mean_and_error(posterior - joint),
        marginal=mean_and_error(joint - prior),
        total_correlation=mean_and_error(joint - marginals),
        dimension_wise_kl=mean_and_error(marginals - prior) if log_prior is None else None,
        kl=mean_and_error(posterior - prior),
    )


def _check(name: str, values: Tensor) -> None:
    if values.ndim != 2 or len(values) < 2 or not values.is_floating_point():
        given = f"{list(values.shape)} of {values.dtype}"
        raise ValueError(f"{name}: needs floats of two images or more, [N, d], not {given}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite")


def _in_turn(images: int, draws: int, generator: torch.Generator) -> Tensor:
    """Returns the image of each draw, [draws]: random orders of all images, one after the other."""
    rounds = -(-draws // images)
    orders = [torch.randperm(images, generator=generator, device=generator.device) for _ in range(rounds)]
    return torch.cat(orders)[:draws]


def _log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Computes log N(z; mean, exp(logvar)) elementwise."""
    return -0.5 * (((z - mean) * (-0.5 * logvar).exp()).square() + logvar + math.log(2 * math.pi))


def _log_mixture(z: Tensor, mean: Tensor, logvar: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """Computes log q(z) and sum_j log q(z_j) of the mixture of N Gaussians at draws from it, [M] each, float64.

    z: [M, d]; mean, logvar: [N, d]. One pass over the dimensions serves both: the log-densities of a dimension, [rows,
    N], are added to those of the vector before they are summed as densities. That sum needs no largest term taken
    out: the component that z was drawn from keeps it from underflowing.
    """
    components = len(mean)
    centre, scale = mean.t().contiguous(), (-0.5 * logvar).exp().mul(0.5**0.5).t().contiguous()
    constant = (-0.5 * (logvar + math.log(2 * math.pi))).t().contiguous()
    rows = min(len(z), max(1, memory // (2 * z.element_size() * components)))
    space, vector = z.new_empty(2, rows, components)
    joint, marginals = [], []
    for part in z.split(rows):
        term, total = space[: len(part)], vector[: len(part)].zero_()
        sums = torch.empty_like(part)
        for j in range(part.shape[1]):
            torch.sub(part[:, j, None], centre[j], out=term).mul_(scale[j]).square_()
            torch.sub(constant[j], term, out=term)
            total += term
            torch.sum(term.exp_(), 1, out=sums[:, j])
        joint.append(total.logsumexp(1).cpu().double())
        marginals.append(sums.cpu().double().log().sum(1))
    return torch.cat(joint) - math.log(components), torch.cat(marginals) - z.shape[1] * math.log(components)
