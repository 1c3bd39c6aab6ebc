"""Measures what codes know about labels: mutual information per dimension, a linear probe, nearest neighbours.

All take numpy arrays, one row per image. The estimator of mutual information here is also that of
the disentanglement metrics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def entropy(counts: np.ndarray) -> np.ndarray:
    """Computes the entropy of the table of frequencies on the last axis, nats: counts [..., K], returns [...].

    The plug-in estimate -sum p log p with p = counts / total; too low by about (K - 1) / 2N on average.
    """
    p = counts / counts.sum(-1, keepdims=True)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0.0).sum(-1)


def mutual_information(counts: np.ndarray, corrected: bool = True) -> np.ndarray:
    """Computes I(A; B) of joint tables of counts [..., A, B], nats; returns [...].

    I = H(A) + H(B) - H(A, B). The plug-in estimate (corrected=False) is too high by about
    (A - 1)(B - 1) / 2N when A and B are independent: with many bins and few images that is all one
    measures. The correction is Miller's (1955), the one of Miller and Madow: (cells in use - 1) / 2N
    is added to each of the three entropies. It removes the bias to first order in 1/N and is too
    little when most cells hold less than about one image. The result is kept within what is possible,
    [0, min(H(A), H(B))].
    """
    a, b, joint = counts.sum(-1), counts.sum(-2), counts.reshape(*counts.shape[:-2], -1)
    h_a, h_b = entropy(a), entropy(b)
    information = h_a + h_b - entropy(joint)
    if corrected:
        excess = (joint > 0).sum(-1) - (a > 0).sum(-1) - (b > 0).sum(-1) + 1
        information = information - excess / (2 * joint.sum(-1))
    return np.clip(information, 0, np.minimum(h_a, h_b))


def joint_counts(bins: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Counts how often bin and class meet in each dimension: bins [N, d] and classes [N], both integers from 0.

    Returns [d, bins, classes].
    """
    d, b, k = bins.shape[1], bins.max() + 1, classes.max() + 1
    cells = (np.arange(d) * b + bins) * k + classes[:, None]
    return np.bincount(cells.ravel(), minlength=d * b * k).reshape(d, b, k)


def equal_mass_bins(x: np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each entry, [N, d] int: in each dimension, about N / bins images to a bin.

    Edges are the quantiles of the dimension. Equal values share a bin, so a dimension with few
    distinct values uses fewer bins. x: [N, d].
    """
    edges = np.quantile(x, np.arange(1, bins) / bins, axis=0, method="inverted_cdf")
    index = [np.searchsorted(np.unique(e), column, side="left") for e, column in zip(edges.T, x.T, strict=True)]
    return np.stack(index, axis=1)


def label_information(codes: np.ndarray, labels: np.ndarray, bins: int = 20) -> np.ndarray:
    """Computes I(z_i; y), the mutual information of each dimension with the label, [d], nats.

    Between 0 and the entropy of the labels. Protocol: all images, each dimension cut into `bins`
    bins of equal mass, Miller-Madow correction (`mutual_information`). Binning can only lose
    information: the value is a lower bound up to its error. Two dimensions may know the same, so the
    values do not add up to what the code knows.

    codes: [N, d]. labels: [N], integers. Raises ValueError for other shapes, NaN, or fewer than
    `bins` images.
    """
    codes, labels = _check(codes, labels, "")
    if len(codes) < bins:
        raise ValueError(f"codes {codes.shape}: {bins} bins need at least {bins} images")
    classes = np.unique(labels, return_inverse=True)[1]
    return mutual_information(joint_counts(equal_mass_bins(codes, bins), classes))


def linear_probe(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> float:
    """Computes the share of test images whose label a linear classifier reads off the code, in [0, 1].

    Protocol: codes standardised by the training images' means and deviations, then scikit-learn's
    multinomial logistic regression with its L2 penalty (C = 1), by L-BFGS, at most 1,000 iterations.
    Nothing is drawn at random. Chance is the share of the commonest label.

    codes: [N, d]. labels: [N], integers. Raises ValueError for other shapes, NaN, or a single label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = _check_pair(train_codes, train_labels, test_codes, test_labels)
    if len(np.unique(y)) < 2:
        raise ValueError("train_labels have one value only: there is nothing to tell apart")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with stopped_in_time():
        model.fit(x, y)
    return float(model.score(test_x, test_y))


@contextmanager
def stopped_in_time() -> Iterator[None]:
    """Takes a fit as it is after its iterations, as protocols say: scikit-learn warns of one that has not converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def knn_accuracy(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray, k: int = 10
) -> float:
    """Computes the share of test images whose label is the commonest among the k nearest training codes, in [0, 1].

    Protocol: Euclidean distance between the codes as they are, not standardised: a dimension that
    varies little counts little. Equal votes go to the smallest label. Chance is the share of the
    commonest label.

    codes: [N, d]. labels: [N], integers. Raises ValueError for other shapes, NaN, or k beyond the
    number of training images.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y, test_x, test_y = _check_pair(train_codes, train_labels, test_codes, test_labels)
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k} neighbours of {len(x)} training images: k must lie in 1..{len(x)}")
    return float(KNeighborsClassifier(k).fit(x, y).score(test_x, test_y))


def _check_pair(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = _check(train_codes, train_labels, "train_")
    test_x, test_y = _check(test_codes, test_labels, "test_")
    if x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train_codes {x.shape} and test_codes {test_x.shape} differ in their dimensions")
    return x, y, test_x, test_y


def _check(codes: np.ndarray, labels: np.ndarray, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes in double precision, and the labels. prefix: of the arguments' names."""
    codes, labels = np.asarray(codes), np.asarray(labels)
    shapes = f"{prefix}codes {codes.shape} and {prefix}labels {labels.shape}"
    if codes.ndim != 2 or labels.ndim != 1 or len(codes) != len(labels) or not codes.size:
        raise ValueError(f"{shapes} must be [N, d] and [N]: one row per image")
    if codes.dtype.kind not in "fiu" or labels.dtype.kind not in "iub":
        raise ValueError(f"{shapes} must be numbers and integers, not {codes.dtype} and {labels.dtype}")
    if not np.isfinite(codes).all():
        raise ValueError(f"{prefix}codes {codes.shape} hold NaN or infinity")
    return codes.astype(np.float64), labels
