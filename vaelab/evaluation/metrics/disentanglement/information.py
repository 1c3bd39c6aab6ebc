"""Measures disentanglement by the information that single dimensions have about single factors: MIG and modularity.

Every function takes codes [N, d] and factors [N, F] (see `factors.measured` for what is refused, and for `continuous`),
and all rows.
"""

from __future__ import annotations

import numpy as np

from vaelab.evaluation.metrics.disentanglement.factors import BINS, Continuous, Measured, measured
from vaelab.evaluation.metrics.latents import ACTIVE_VARIANCE
from vaelab.evaluation.metrics.probes import entropy, joint_counts, mutual_information


def mig(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None) -> float:
    """Computes the mutual information gap (Chen et al. 2018, eq. 6), in [0, 1].

    For each factor, the information of the dimension that knows most about it minus that of the
    second, over the factor's entropy; averaged over the factors.

    Protocol. All rows. Each dimension, and a continuous factor, is cut into 20 bins of equal width;
    mutual information by the Miller-Madow correction (`probes.mutual_information`).

    Deviations. The paper integrates over q(z|x); as in disentanglement_lib, a code is one point here.
    disentanglement_lib does not correct the bias, and its 20 bins cannot tell 40 values apart, so
    that perfect codes get log 20 / log 40 = 0.81: here a factor with K > 20 values is compared with
    dimensions in K bins. Bins of equal width are unforgiving of outliers.
    """
    gaps = []
    for information, _, limit in information_about(measured(codes, factors, continuous)):
        second, best = np.sort(information)[-2:]
        gaps.append((best - second) / limit)
    return float(np.mean(gaps))


def mig_of_active(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None) -> float:
    """Computes `mig` of the dimensions that a VAE uses: those with a variance of the codes above 0.01; 0 if none has.

    They are active as `latents.active_dimensions` has it (Burda et al. 2016), for codes that are posterior means. A
    dimension that is not used still has a mean, which may follow a factor by a thousandth: standardised, as `mig` takes
    it, it knows as much as one in use. The one metric here in which the scale of a dimension plays a part.
    """
    active = codes.var(0, ddof=1) > ACTIVE_VARIANCE
    return mig(np.where(active, codes, 0.0), factors, continuous) if active.any() else 0.0


def modularity(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None) -> float:
    """Computes the modularity (Ridgeway & Mozer 2018, section 3), in [0, 1]; 0 if the codes know nothing.

    A dimension is modular if it knows about one factor only. With m_j its information about factor j
    and m* the largest, its score is 1 - sum of m_j² over the others / (m*² (F - 1)). The mean over
    the dimensions. It does not ask whether the code knows every factor, or how well.

    Protocol. As for `mig`: 20 bins of equal width, Miller-Madow correction.

    Deviations. The score of a dimension that knows nothing is 0 / 0. disentanglement_lib counts
    exact zeros as 0 and gives others a ratio of biases. Here a dimension without significant
    information about any factor (G-test, p < 1e-6) is left out. Bias and bins as in `mig`.
    """
    columns = [(m, significant) for m, significant, _ in information_about(measured(codes, factors, continuous))]
    information, significant = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    squares = information[significant.any(1)] ** 2
    if not len(squares):
        return 0.0
    most = squares.max(1)
    return float(np.mean(1 - (squares.sum(1) - most) / (most * (squares.shape[1] - 1))))


def information_about(data: Measured) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Computes for each factor I(z_i; v) [d] in nats, whether it is beyond chance [d], and the entropy of v.

    Beyond chance: 2 N I of independent columns is about chi-squared with (bins - 1)(values - 1)
    degrees of freedom.
    """
    from scipy.stats import chi2

    information = []
    for j, is_continuous in enumerate(data.continuous):
        classes = _equal_width_bins(data.factors[:, [j]], BINS)[:, 0] if is_continuous else data.classes[:, j]
        counts = joint_counts(_equal_width_bins(data.codes, max(BINS, classes.max() + 1)), classes)
        freedom = ((counts.sum(2) > 0).sum(1) - 1) * ((counts.sum(1) > 0).sum(1) - 1)
        evidence = 2 * len(classes) * mutual_information(counts, corrected=False)
        significant = (freedom > 0) & (evidence > chi2.isf(1e-6, np.maximum(freedom, 1)))
        information.append((mutual_information(counts), significant, float(entropy(np.bincount(classes)))))
    return information


def _equal_width_bins(x: np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each entry, [N, K] int, between the least and the greatest of its column; x [N, K]."""
    low, width = x.min(0), np.ptp(x, axis=0)
    return np.minimum((x - low) / np.where(width > 0, width, 1) * bins, bins - 1).astype(np.int64)
