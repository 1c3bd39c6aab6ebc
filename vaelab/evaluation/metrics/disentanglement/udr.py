"""Ranks seeds without factors: UDR (Duan et al. 2020, arXiv:1905.12614).

Disentangled codes of two seeds are the same up to the order and the sign of their dimensions, entangled ones differ in
many ways. A run is scored by how far its dimensions correspond to single dimensions of the other seeds' runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vaelab.evaluation.metrics.disentanglement.factors import is_constant

PENALTY = 0.1
"""Weight of the Lasso's penalty: that of the paper and disentanglement_lib."""


def udr(
    codes: Sequence[np.ndarray],
    informative: Sequence[np.ndarray],
    correspondence: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Computes the UDR of each of M runs, [M], about 0 at chance, 1 at best: the median over the others of `agreement`.

    codes: of the same images in the same order, M arrays [N, d], d may differ. informative: which dimensions a run
    uses, M arrays [d] bool; a constant one is never. correspondence: `lasso` or `spearman`.
    """
    used = [_standardised(z[:, mask & ~is_constant(z)]) for z, mask in zip(codes, informative, strict=True)]
    return np.array([
        np.median([agreement(correspondence(other, own)) for j, other in enumerate(used) if j != i])
        for i, own in enumerate(used)
    ])  # fmt: skip


def agreement(strength: np.ndarray) -> float:
    """Computes how far two codes correspond dimension by dimension (Duan et al. 2020, eq. 3) of R, [d, d'].

    1 / (d + d') (sum over columns of max² / sum + sum over rows of max² / sum): a dimension counts as much as its
    strongest partner resembles it, times that partner's share. 0 where a code has no dimension; a dimension without
    any partner counts 0.
    """
    if not strength.size:
        return 0.0
    most = np.concatenate([strength.max(axis) for axis in (0, 1)])
    sums = np.concatenate([strength.sum(axis) for axis in (0, 1)])
    return float(np.mean(most**2 / np.where(sums > 0, sums, 1)))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes |rank correlation| of each dimension of a [N, d] with each of b [N, d'], [d, d']."""
    from scipy.stats import rankdata

    ranks = [_standardised(rankdata(z, axis=0)) for z in (a, b)]
    return np.abs(ranks[0].T @ ranks[1]) / len(a)


def lasso(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes |weights| with which each dimension of a [N, d] predicts each of b [N, d'], both standardised, [d, d'].

    Deviation. Divided by 1 - PENALTY: the penalty takes 0.1 off the weight of a dimension's very copy, so that as
    published the best score is 0.9. The order of runs is the same.
    """
    from sklearn.linear_model import Lasso

    if not a.shape[1] or not b.shape[1]:
        return np.zeros((a.shape[1], b.shape[1]))
    weights = Lasso(alpha=PENALTY).fit(a, b).coef_
    return np.abs(weights.reshape(b.shape[1], a.shape[1])).T / (1 - PENALTY)


def _standardised(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    return (z - z.mean(0)) / z.std(0)
