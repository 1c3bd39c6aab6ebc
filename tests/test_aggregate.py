"""Estimates of the aggregate posterior from a batch: against closed forms, and against sums written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vaelab.core.distributed import Share, all_rows
from vaelab.nn.aggregate import (
    SCALES,
    covariance,
    log_aggregate,
    minibatch_weighted,
    mmd,
    permuted,
    stratified,
)

N, D = 10_000, 10


def correlated_codes(seed=0):
    """Codes z ~ N(0, S), of posteriors N(mean, I): the means' covariance is one factor. Returns z, mean, logvar and R,
    the correlations of z.
    """
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linspace(0.3, 0.9, D)
    mean = torch.randn(N, 1, generator=generator) * factor + 0.3 * torch.randn(N, D, generator=generator)
    z = mean + torch.randn(N, D, generator=generator)
    total = factor.outer(factor) + (0.09 + 1) * torch.eye(D)
    scale = total.diagonal().rsqrt()
    return z, mean, torch.zeros(N, D), scale[:, None] * total * scale


def total_correlations(weights, batch, images):
    z, mean, logvar, _ = correlated_codes()
    found = []
    for part in range(0, images, batch):
        rows = slice(part, part + batch)
        joint, marginals = log_aggregate(z[rows], mean[rows], logvar[rows], weights(batch, torch.tensor(float(images))))
        found.append(joint - marginals)
    return torch.cat(found)


def test_the_total_correlation_of_gaussian_codes():
    """TC = -1/2 ln det R; what is left is the error of 10,000 draws, and a few hundredths of batches of 500."""
    exact = -0.5 * correlated_codes()[3].logdet().item()
    found = total_correlations(stratified, 500, N)
    error = found.std().item() / math.sqrt(N)
    assert found.mean().item() == pytest.approx(exact, abs=4 * error + 0.03)


def test_weighted_sampling_is_too_large_by_the_logarithm_of_the_images():
    """For a batch of all images each log q is too small by log N: the total correlation is (d - 1) log N too large."""
    exact = total_correlations(lambda batch, images: -images.log(), 1000, 1000)
    weighted = total_correlations(minibatch_weighted, 1000, 1000)
    assert (weighted - exact).mean().item() == pytest.approx((D - 1) * math.log(1000), rel=1e-4)


@pytest.mark.parametrize(("weights", "value"), [(minibatch_weighted, (D - 1) * math.log(N)), (stratified, 0.0)])
def test_a_factorised_posterior_that_ignores_the_image(weights, value):
    """Where q(z|x) = q(z) factorises, weighted sampling says (d - 1) log N in a batch of any size, and not 0."""
    z = torch.randn(32, D)
    joint, marginals = log_aggregate(z, torch.zeros(32, D), torch.zeros(32, D), weights(32, torch.tensor(float(N))))
    assert (joint - marginals).tolist() == pytest.approx([value] * 32, abs=1e-3)


def test_stratified_sampling_is_unbiased():
    """Over all batches that hold the image a z is of, the mean of q(z) is the mixture of all images' posteriors."""
    images, batch = 6, 4
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, images, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    log_weights = stratified(batch, torch.tensor(float(images))).double()
    found = []
    for others in itertools.permutations(range(1, images), batch - 1):
        rows = [0, *others]
        joint, _ = log_aggregate(z.expand(batch, 2), mean[rows], logvar[rows], log_weights)
        found.append(joint[0].exp())
    exact, _ = log_aggregate(z, mean, logvar, -torch.tensor(float(images)).log())
    assert torch.stack(found).mean().item() == pytest.approx(exact.exp().item(), rel=1e-6)


def test_one_image_has_no_total_correlation():
    joint, marginals = log_aggregate(*torch.randn(3, 1, 4), stratified(1, torch.tensor(1.0)))
    assert (joint - marginals).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_is_zero_on_equal_samples(kernel):
    """The estimate is unbiased: over 400 pairs of samples of one distribution its mean is 0 within its error."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 400, 16, 3, generator=generator)
    found = torch.stack([mmd(a, b, kernel) for a, b in zip(x, y, strict=True)])
    assert abs(found.mean()) < 3 * found.std() / 20
    assert (found < 0).any()
    assert mmd(x[0] + 3, y[0], kernel) > 0.5


def test_mmd_is_the_sum_written_out():
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def kernel(a, b):
        squared = ((a - b) ** 2).sum().item()
        return sum(scale * 6 / (scale * 6 + squared) for scale in SCALES)

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 20
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 25
    assert mmd(x, y, "imq").item() == pytest.approx(within - 2 * across, rel=1e-9)
    assert mmd(x[:1], y[:1], "imq") == 0


def test_the_covariance_of_rows():
    x = torch.randn(7, 3, dtype=torch.float64)
    assert torch.allclose(covariance(x), torch.cov(x.t(), correction=0))


def test_each_dimension_is_shuffled_by_itself():
    z, keys = torch.arange(12.0).view(4, 3), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    shuffled = permuted(z, keys)
    assert torch.equal(shuffled.sort(0).values, z)
    rows = (shuffled - torch.arange(3.0)) / 3
    assert not torch.equal(rows[:, 0], rows[:, 1])


def test_rows_of_one_process_are_all(monkeypatch):
    """Of two processes, one has the first of three rows: the others come from the sum, without a gradient."""
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert all_rows(x, None) is x
    theirs = torch.tensor([[0.0, 0.0], [3.0, 4.0], [5.0, 6.0]])
    monkeypatch.setattr("vaelab.core.distributed.all_sum", lambda rows: rows.add_(theirs))
    rows = all_rows(x, Share(0, 1, 3, 2))
    assert rows.tolist() == [[1, 2], [3, 4], [5, 6]]
    rows.mean(0).sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([1, 1])  # 1/3 of the mean, times 3 images to 1 of its own
