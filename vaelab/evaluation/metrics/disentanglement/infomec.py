"""Measures disentanglement by InfoMEC (Hsu et al. 2023, *Disentanglement via Latent Quantization*, section 5).

InfoM, modularity: does a dimension know about one factor only? InfoE, explicitness: does a linear model read the
factors off the code? InfoC, compactness: is a factor in one dimension only? Each is of information, and in [0, 1].

Takes codes [N, d] and factors [N, F] (see `factors.measured` for what is refused, and for `continuous`). The authors'
repository, kylehkhsu/latent_quantization, has the settings of published values.
"""

from __future__ import annotations

import numpy as np

from vaelab.evaluation.metrics.disentanglement.factors import Continuous, Measured, measured, split
from vaelab.evaluation.metrics.disentanglement.information import information_about
from vaelab.evaluation.metrics.probes import entropy, stopped_in_time

NEIGHBOURS = 10
"""Neighbours of the estimator of mutual information: the authors' number."""
LEAST_RANGE = 1 / 20
"""Range of an active dimension, in that of the widest one: the authors' number."""


def infomec(
    codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0
) -> tuple[float, float, float]:
    """Computes InfoM, InfoE and InfoC (Hsu et al. 2023, section 5), each in [0, 1].

    InfoM and InfoC are of the matrix of I(z_i; v_j) / H(v_j), see `modularity_and_compactness`; InfoE is how much of
    the uncertainty about a factor a linear model of the whole code takes away, see `linear_information`, averaged
    over the factors.

    Protocol. Mutual information by 10 nearest neighbours (`nearest_neighbour_information`), all rows; a continuous
    factor is cut into 20 bins of equal mass. The matrix has the active dimensions, whose range is more than a twentieth
    of the widest one's: common scale plays no part, that of a single dimension does.

    Deviations. An active dimension without significant information about any factor (G-test, p < 1e-6), and a factor
    that no active dimension has any about, are left out: theirs would be ratios of estimation errors. With one active
    dimension InfoC is 1, where the paper's is 0 / 0. The authors fit InfoE's classifier with classes weighted to be
    equally frequent, and score it on the same rows; here the weights are equal and other rows are scored.
    """
    data = measured(codes, factors, continuous)
    ranges: np.ndarray = np.ptp(np.asarray(codes, np.float64), axis=0)
    active = data.active & (ranges > LEAST_RANGE * ranges.max())
    significant = np.stack([column for _, column, _ in information_about(data)], axis=1)
    shares = np.stack(
        [nearest_neighbour_information(data.codes, y) / entropy(np.bincount(y)) for y in data.classes.T], axis=1
    )
    shares, significant = np.minimum(shares[active], 1), significant[active]
    infom, infoc = modularity_and_compactness(shares * np.outer(significant.any(1), significant.any(0)))
    return infom, linear_information(data, seed), infoc


def modularity_and_compactness(shares: np.ndarray) -> tuple[float, float]:
    """Computes InfoM and InfoC of a matrix of information, each as a share of the factor's entropy, [d, F].

    InfoM = (mean over i of max_j R_ij / sum_j R_ij - 1 / F) / (1 - 1 / F), InfoC the same with rows and columns
    exchanged. A row, or column, of zeros is left out of the mean. 0 without any information; 1 where there is but one
    column, or row.
    """
    return _share_of_the_largest(shares), _share_of_the_largest(shares.T)


def _share_of_the_largest(shares: np.ndarray) -> float:
    """Computes the mean share of a row's largest entry in its sum, rescaled so that equal entries have 0."""
    rows, least = shares[shares.sum(1) > 0], 1 / shares.shape[1]
    if not len(rows):
        return 0.0
    return 1.0 if least == 1 else float((np.mean(rows.max(1) / rows.sum(1)) - least) / (1 - least))


def linear_information(data: Measured, seed: int) -> float:
    """Computes InfoE: the predictive information of linear models (Xu et al. 2020, definition 2), as a share.

    1 - H(v | z) / H(v), not below 0, averaged over the factors: H(v | z) is the loss of a model of the code on the
    held-out third, H(v) that of one without it. Discrete factor: log-loss of multinomial logistic regression without a
    penalty (L-BFGS, at most 300 iterations); values that are not in both parts are left out. Continuous factor:
    squared error of linear regression, so that the share is R².
    """
    from sklearn.linear_model import LinearRegression, LogisticRegression

    train, test = split(len(data.codes), seed)
    shares = []
    for j, is_continuous in enumerate(data.continuous):
        y = data.factors[:, j] if is_continuous else data.classes[:, j]
        if is_continuous:
            error = y[test] - LinearRegression().fit(data.codes[train], y[train]).predict(data.codes[test])
            loss, without = np.mean(error**2), np.mean((y[test] - y[train].mean()) ** 2)
        else:
            with stopped_in_time():
                model = LogisticRegression(C=np.inf, max_iter=300).fit(data.codes[train], y[train])
            fitted = test[np.isin(y[test], model.classes_)]
            place = np.searchsorted(model.classes_, y[fitted])
            frequency = np.unique(y[train], return_counts=True)[1] / len(train)
            told = model.predict_proba(data.codes[fitted])[np.arange(len(fitted)), place]
            loss, without = -np.log(np.maximum(told, 1e-15)).mean(), -np.log(frequency[place]).mean()
        shares.append(max(1 - loss / without, 0.0))
    return float(np.mean(shares))


def nearest_neighbour_information(z: np.ndarray, y: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Computes I(z_i; y), [d], nats, by nearest neighbours (Ross 2014, eq. 3), not below 0.

    ψ(N) - <ψ(N_y)> + <ψ(k)> - <ψ(m)>: around each point the interval that ends at its k-th neighbour among the N_y
    points of its class; m is how many points of any class it holds. k is less in a class that has fewer points, and a
    point alone in its class is left out. Ties count as k and as m, so that codes may repeat: of codes that are the
    classes it has the entropy, ψ in the place of the logarithm.

    z: [N, d], standardised. y: [N], integers from 0.
    """
    from scipy.special import digamma

    counts = np.bincount(y)
    kept = counts[y] > 1
    z, y = z[kept], y[kept]
    size = counts[y]
    return np.array([
        max(0.0, float(digamma(len(y)) - digamma(size).mean() + (digamma(k) - digamma(m)).mean()))
        for k, m in (_within_reach(column, y, np.minimum(neighbours, size - 1)) for column in z.T)
    ])  # fmt: skip


def _within_reach(z: np.ndarray, y: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the points no farther from each than its k-th neighbour of the same class: of this class, and of all.

    A point itself does not count. z: [N]. y, k: [N] integers. In one dimension the k nearest of a sorted class are
    among the k on either side: the least of the k + 1 windows of k + 1 points that hold the point gives the distance.
    """
    rounding = 1e-10
    order = np.lexsort((z, y))
    z, y, k = z[order], y[order], k[order]
    place, reach = np.arange(len(z)), np.full(len(z), np.inf)
    for before in range(k.max() + 1):
        first, last = place - before, place + k - before
        inside = (before <= k) & (first >= 0) & (last < len(z))
        first, last = first[inside], last[inside]
        same = (y[first] == y[inside]) & (y[last] == y[inside])
        here = place[inside][same]
        width = np.maximum(z[here] - z[first[same]], z[last[same]] - z[here])
        reach[here] = np.minimum(reach[here], width)
    apart = y * 4 * (np.ptp(z) + 1)  # so that points of other classes are out of reach
    return _between(z + apart, reach + rounding), _between(z, reach + rounding)


def _between(x: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Counts the other entries of x [N] no farther than reach [N] from each."""
    known = np.sort(x)
    return np.searchsorted(known, x + reach, side="right") - np.searchsorted(known, x - reach, side="left") - 1
