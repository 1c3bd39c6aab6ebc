"""The aggregate posterior q(z), estimated from a batch: its log-density, its moments, its distance to a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Factors of the kernels' width, whose sum is the kernel (Tolstikhin et al. 2018, the authors' code)."""


def minibatch_weighted(batch: int, images: Tensor) -> Tensor:
    """Returns log 1/(N M), the weight of every pair of a batch of M of N images, a scalar (Chen et al. 2018, eq. 5).

    The sum of the weights is 1/N, and not 1: log q(z) is too small by up to log N, every log q(z_j) too, and so the
    total correlation too large by up to (d - 1) log N. What is added is the same for all z where the batch is large.
    """
    return -(images.log() + math.log(batch))


def stratified(batch: int, images: Tensor) -> Tensor:
    """Returns the log-weights of every pair of a batch, [B, B], that make q(z) unbiased (Chen et al. 2018, eq. S6).

    A row is the z that was drawn from the image of the same number. That image counts as 1 of N, and the M = B - 1
    others stand for the N - 1 other images of the training set, of which one makes up for the rest.
    """
    others, images = max(1, batch - 1), images.clamp_min(batch)
    row = torch.arange(batch, device=images.device)
    weights = images.new_full((batch, batch), 1 / others)
    weights[row, (row + 1) % batch] = (images - others) / (images * others)
    weights[row, row] = 1 / images
    return weights.log()


def log_aggregate(z: Tensor, mean: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates log q(z) and sum_j log q(z_j) at each z from the posteriors of its batch, [B] each, nats.

    z: [B, d], a draw from the posterior of each image. mean, logvar: [B, d]. log_weights: of posterior j at z i,
    [B, B], or one for all.
    """
    standardised = (z[:, None] - mean) * (-0.5 * logvar).exp()
    each = -0.5 * (standardised.square() + logvar + math.log(2 * math.pi))
    joint = (log_weights + each.sum(2)).logsumexp(1)
    return joint, (log_weights.unsqueeze(-1) + each).logsumexp(1).sum(1)


def imq(squared: Tensor, width: float) -> Tensor:
    """Computes the inverse multiquadratic kernel of squared distances, summed over SCALES.

    C / (C + r^2), with C = scale * width: Tolstikhin et al. 2018, section 4, where width is 2 d sigma^2, the mean
    squared distance of two draws from the prior.
    """
    return torch.stack([scale * width / (scale * width + squared) for scale in SCALES]).sum(0)


def rbf(squared: Tensor, width: float) -> Tensor:
    """Computes the Gaussian kernel of squared distances, exp(-r^2 / width) (Zhao et al. 2019, section 3.2)."""
    return (-squared / width).exp()


KERNELS = {"imq": imq, "rbf": rbf}


def mmd(x: Tensor, y: Tensor, kernel: str) -> Tensor:
    """Estimates the squared maximum mean discrepancy of two samples, without bias (Gretton et al. 2012, eq. 3).

    It is 0 in expectation if both are of one distribution, and can be below 0. x, y: [B, d], B at least 2 (0 for a
    single one). kernel: `imq` or `rbf`, of width 2 d.
    """
    count = len(x)
    if count < 2:
        return 0 * (x.sum() + y.sum())
    width = 2.0 * x.shape[1]
    function = KERNELS[kernel]
    points = torch.cat([x, y])
    norms = points.square().sum(1)
    squared = (norms[:, None] + norms - 2 * points @ points.t()).clamp_min(0)
    values = function(squared, width)
    own, other, across = values[:count, :count], values[count:, count:], values[:count, count:]
    within = (own.sum() - own.diagonal().sum() + other.sum() - other.diagonal().sum()) / (count * (count - 1))
    return within - 2 * across.mean()


def covariance(x: Tensor) -> Tensor:
    """Computes the covariance of the rows of x, [d, d], with the mean's own degree of freedom counted: x is [B, d]."""
    centred = x - x.mean(0)
    return centred.t() @ centred / len(x)


def permuted(z: Tensor, keys: Tensor) -> Tensor:
    """Shuffles each dimension over the batch by itself: draws from prod_j q(z_j) (Kim & Mnih 2018, algorithm 1).

    z: [B, d]. keys: [B, d], whose order is the permutation of each dimension.
    """
    return z.gather(0, keys.argsort(0))
