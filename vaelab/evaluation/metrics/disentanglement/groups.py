"""Computes disentanglement metrics on arrays of codes and factors: two that draw groups of images, and all at once.

Every function takes codes [N, d] and factors [N, F], one row per image, and refuses with ValueError
what `factors.measured` lists; `continuous` is explained there. Codes are
standardised first, so the scale of a dimension plays no part but in `mig_of_active` and `infomec`.
Nothing is drawn but by `seed`.

`disentanglement_lib` (Locatello et al. 2019, *Challenging Common Assumptions in the Unsupervised
Learning of Disentangled Representations*) has the settings that published values use; deviations
from it stand in each docstring.
"""

from __future__ import annotations

import numpy as np

from vaelab.evaluation.metrics.disentanglement.factors import (
    BINS,
    MIN_OTHERS,
    Continuous,
    Measured,
    as_classes,
    checked,
    measured,
    others_than_commonest,
    split,
    which_continuous,
)
from vaelab.evaluation.metrics.disentanglement.infomec import LEAST_RANGE, NEIGHBOURS, infomec
from vaelab.evaluation.metrics.disentanglement.information import mig, mig_of_active, modularity
from vaelab.evaluation.metrics.disentanglement.predictability import DEPTHS, TREES, dci, explicitness, sap
from vaelab.evaluation.metrics.latents import ACTIVE_VARIANCE
from vaelab.evaluation.metrics.probes import stopped_in_time

GROUPS = (10_000, 5_000)
"""Numbers of groups of images to fit on and to score: those of disentanglement_lib."""
GROUP_SIZE = 64
FEWEST = 5
"""Fewest rows that a value of a factor needs in either part for groups to be drawn from it."""
ROWS = 10_000
"""Most images that are measured: more take longer and change little."""


def disentanglement(
    codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0
) -> tuple[dict[str, float], str]:
    """Computes all metrics of this module, of `information`, `predictability` and `infomec`, and words the protocol.

    Returns metrics beta_vae, factor_vae, mig, mig_active, sap, dci_disentanglement, dci_completeness,
    dci_informativeness, modularity, explicitness, infom, infoe, infoc. Of more than 10,000 images that many are drawn
    at random. A factor with one value is left out. Where a factor has too few images of a value
    for the two metrics that draw groups, these two are left out. The protocol says so.

    Raises ValueError where nothing can be measured (see `measured`).
    """
    codes, factors = checked(codes, factors)
    kinds = which_continuous(factors, continuous)
    chosen = np.random.default_rng(seed).permutation(len(codes))[:ROWS]
    codes, factors = codes[chosen], factors[chosen]
    others = np.array([others_than_commonest(column) for column in as_classes(factors, kinds).T])
    varies = others >= MIN_OTHERS
    if varies.sum() < 2:
        raise ValueError(f"factors {factors.shape}: fewer than two take more than one value")
    arrays = codes, factors[:, varies], kinds[varies]
    notes = [f"factor {j} left out: one value in all but {others[j]} rows" for j in np.flatnonzero(~varies)]
    figures: dict[str, float] = {}
    reason = _too_few(measured(*arrays), seed)
    if reason:
        notes.append(f"beta_vae and factor_vae left out: {reason}")
    else:
        figures |= {"beta_vae": beta_vae_score(*arrays, seed=seed), "factor_vae": factor_vae_score(*arrays, seed=seed)}
    figures |= {"mig": mig(*arrays), "mig_active": mig_of_active(*arrays), "sap": sap(*arrays, seed=seed)}
    names = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
    figures |= dict(zip(names, dci(*arrays, seed=seed), strict=True))
    figures |= {"modularity": modularity(*arrays), "explicitness": explicitness(*arrays, seed=seed)}
    figures |= dict(zip(("infom", "infoe", "infoc"), infomec(*arrays, seed=seed), strict=True))
    return figures, "; ".join([_protocol(codes, kinds[varies], seed), *notes])


def _protocol(codes: np.ndarray, kinds: np.ndarray, seed: int) -> str:
    return (
        f"{len(codes):,} images, codes standardised, {len(kinds)} factors "
        f"({int(kinds.sum())} continuous), seed {seed}; two thirds of the images to fit, one third to score; "
        f"beta_vae: logistic regression, factor_vae: majority vote, each on {GROUPS[0]:,} groups and scored on "
        f"{GROUPS[1]:,}, of {GROUP_SIZE} images drawn from the data, not from a simulator; mig and modularity: "
        f"{BINS} bins of equal width (more if the factor has more values), Miller-Madow correction; mig_active: of "
        f"dimensions with a variance of the codes above {ACTIVE_VARIANCE}; sap: thresholds, "
        f"balanced accuracy rescaled so that chance is 0 (discrete), R² (continuous); dci: random forests of {TREES} "
        f"trees, depth out of {', '.join(map(str, DEPTHS))} by out-of-bag score, impurity importance; explicitness: "
        f"logistic regression, area under the ROC curve; infom and infoc: {NEIGHBOURS} nearest neighbours, of "
        f"dimensions with more than {LEAST_RANGE} of the widest range; infoe: logistic regression without a penalty, "
        "log-loss (discrete), linear regression, R² (continuous)"
    )


def beta_vae_score(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0) -> float:
    """Computes the β-VAE score (Higgins et al. 2017, section 3), an accuracy: 1 / F at chance, 1 at best.

    One factor is chosen and 64 pairs of images are drawn that agree in it. The mean of |z - z'| over
    the pairs, [d], is one point; a linear classifier predicts the factor.

    Protocol. 10,000 points to fit, from two thirds of the rows; 5,000 to score, from the rest; as many
    for each factor. scikit-learn's logistic regression (L2 with C = 1) on standardised points. A
    continuous factor is cut into 20 bins of equal mass: a pair agrees if it shares the bin.

    Deviations. The paper and disentanglement_lib have a simulator draw fresh images with the factor
    held; here both images are rows of the arrays, the first drawn from all, the second from the
    others of its value. Pairs repeat, and if the factors are correlated in the data so are they in the
    pairs. Codes and points are standardised, which they are not in disentanglement_lib; the paper's
    classifier is trained by Adagrad.

    Raises ValueError also if a value has fewer than 5 rows in either part.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = measured(codes, factors, continuous)
    _refuse_too_few(data, seed)

    def points(rows: np.ndarray, groups: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        z, by_factor = data.codes[rows], []
        for classes in data.classes[rows].T:
            first, second = _pairs(classes, groups // data.classes.shape[1], rng)
            parts = zip(_chunks(first), _chunks(second), strict=True)
            by_factor.append(np.concatenate([np.abs(z[a] - z[b]).mean(1) for a, b in parts]))
        return np.concatenate(by_factor), np.repeat(np.arange(len(by_factor)), [len(part) for part in by_factor])

    rng = np.random.default_rng(seed)
    train, test = split(len(data.codes), seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with stopped_in_time():
        model.fit(*points(train, GROUPS[0], rng))
    return float(model.score(*points(test, GROUPS[1], rng)))


def factor_vae_score(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0) -> float:
    """Computes the FactorVAE score (Kim & Mnih 2018, section 4), an accuracy: about 1 / F at chance, 1 at best.

    One factor is chosen, one of its values, and 64 images of that value. The dimension whose variance
    among them is the smallest share of its variance in all images votes for the factor. Each
    dimension predicts the factor it votes for most.

    Protocol. 10,000 votes to fit, from two thirds of the rows; 5,000 to score, from the rest; as many
    for each factor. Constant dimensions are pruned. A continuous factor is cut into 20 bins of equal
    mass, and its images share a bin.

    Deviations. The paper and disentanglement_lib have a simulator draw fresh images; here they are
    rows of the arrays, drawn with replacement from those of one value, itself drawn by its
    frequency. The paper's pruning leaves out dimensions that collapsed to the prior, and
    disentanglement_lib's published settings those with a standard deviation of z below 0.05: a rule
    that depends on the scale of z. Pass `codes[:, active]` to follow it.

    Raises ValueError also if a value has fewer than 5 rows in either part.
    """
    data = measured(codes, factors, continuous)
    _refuse_too_few(data, seed)
    z = data.codes[:, data.active]

    def votes(rows: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
        part, spread = z[rows], z[rows].var(0)
        table = np.zeros((data.classes.shape[1], z.shape[1]), dtype=np.int64)
        for j, classes in enumerate(data.classes[rows].T):
            members = _groups(classes, groups // len(table), rng)
            least = [(part[chunk].var(1) / spread).argmin(1) for chunk in _chunks(members)]
            table[j] = np.bincount(np.concatenate(least), minlength=z.shape[1])
        return table

    rng = np.random.default_rng(seed)
    train, test = split(len(z), seed)
    predicted = votes(train, GROUPS[0], rng).argmax(0)
    scored = votes(test, GROUPS[1], rng)
    return float(scored[predicted, np.arange(z.shape[1])].sum() / scored.sum())


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    """Splits groups [G, 64] into parts, so that their codes stay small in memory."""
    return np.array_split(rows, max(1, len(rows) // 250))


def _by_value(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows in the order of their values, where each value starts in it, and how many rows it has."""
    counts = np.bincount(classes)
    return np.argsort(classes, kind="stable"), counts.cumsum() - counts, counts


def _groups(classes: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Draws rows [groups, 64]; those of a group share one value."""
    order, starts, counts = _by_value(classes)
    value = classes[rng.integers(len(classes), size=(groups, 1))]
    return order[starts[value] + rng.integers(counts[value], size=(groups, GROUP_SIZE))]


def _pairs(classes: np.ndarray, groups: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws two arrays of rows [groups, 64]; those in the same place are two different rows of one value."""
    order, starts, counts = _by_value(classes)
    place = rng.integers(len(classes), size=(groups, GROUP_SIZE))
    value = classes[order[place]]
    step = rng.integers(1, counts[value])
    return order[place], order[starts[value] + (place - starts[value] + step) % counts[value]]


def _too_few(data: Measured, seed: int) -> str:
    """Returns why groups cannot be drawn from these rows; empty if they can."""
    for part in split(len(data.classes), seed):
        for j, classes in enumerate(data.classes.T):
            fewest = np.bincount(classes[part], minlength=classes.max() + 1).min()
            if fewest < FEWEST:
                return (
                    f"factors[:, {j}] has a value with {fewest} of {len(part)} rows: groups of images that share a "
                    f"value need {FEWEST}, so evaluate more images"
                )
    return ""


def _refuse_too_few(data: Measured, seed: int) -> None:
    reason = _too_few(data, seed)
    if reason:
        raise ValueError(reason)
