"""Measures disentanglement by how well the codes predict the factors: SAP, DCI, explicitness.

Every function takes codes [N, d] and factors [N, F] (see `factors.measured` for what is refused, and for
`continuous`), fits on two thirds of the rows and scores on the rest.
`disentanglement_lib` (Locatello et al. 2019) draws 10,000 and 5,000 fresh images for that instead.
"""

from __future__ import annotations

import warnings

import numpy as np

from vaelab.evaluation.metrics.disentanglement.factors import Continuous, measured, split
from vaelab.evaluation.metrics.probes import entropy, stopped_in_time

TREES = 20
DEPTHS = (4, 7, 10)


def sap(
    codes: np.ndarray,
    factors: np.ndarray,
    continuous: Continuous = None,
    seed: int = 0,
    adjusted: bool = True,
) -> float:
    """Computes the separated attribute predictability (Kumar et al. 2018, section 3), in [0, 1].

    S[i, j] is how well dimension i alone predicts factor j; the score is the gap between the best
    and the second-best dimension, averaged over the factors.

    Protocol. Discrete factor with K values: thresholds on the dimension, K - 1 at most (a balanced
    decision tree with K leaves), balanced accuracy on the held-out third. Continuous factor: R² of a
    line, the squared correlation, on all rows.

    Deviations. The paper's balanced accuracy of a dimension that knows nothing is 1 / K, so that
    perfect codes have SAP 1 - 1 / K: 0.5 for a binary factor. Here S is rescaled to
    (S - 1/K) / (1 - 1/K), not below 0: zero at chance as R² is, and perfect codes score 1 less the luck
    of the second-best: of dimensions that know nothing the luckiest is a little above chance, by 0.02 to
    0.05 on 1,200 images, and 0.01 on 10,000. (The paper fits and scores on the same images, which is luckier.)
    adjusted=False leaves it as published. disentanglement_lib fits a linear SVM (C = 0.01) in place of the
    thresholds: on one dimension it cannot tell the middle values of a factor apart, and scores
    perfect codes far lower.
    """
    data = measured(codes, factors, continuous)
    train, test = split(len(data.codes), seed)
    gaps = []
    for j, is_continuous in enumerate(data.continuous):
        if is_continuous:
            target = data.factors[:, j]
            scores = (data.codes.T @ (target - target.mean()) / len(target)) ** 2 / target.var()
        else:
            y = data.classes[:, j]
            k = y.max() + 1
            scores = _threshold_accuracies(data.codes[train], y[train], data.codes[test], y[test])
            scores = np.maximum(scores - 1 / k, 0) / (1 - 1 / k) if adjusted else scores
        second, best = np.sort(scores)[-2:]
        gaps.append(best - second)
    return float(np.mean(gaps))


def _threshold_accuracies(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Computes the balanced accuracy on the test rows of thresholds on each dimension alone, [d]."""
    from sklearn.tree import DecisionTreeClassifier

    scores, present = [], np.bincount(test_y) > 0
    for i in range(x.shape[1]):
        tree = DecisionTreeClassifier(max_leaf_nodes=int(y.max()) + 1, class_weight="balanced", random_state=0)
        right = tree.fit(x[:, [i]], y).predict(test_x[:, [i]]) == test_y
        scores.append(np.mean(np.bincount(test_y, right)[present] / np.bincount(test_y)[present]))
    return np.array(scores)


def dci(
    codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0
) -> tuple[float, float, float]:
    """Computes disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2), each in [0, 1].

    R[i, j] is the importance of dimension i in predicting factor j. See `dci_of_importance` for the
    first two. Informativeness is the predictor's success on the held-out third, averaged over the
    factors: accuracy for a discrete factor, R² (not below 0) for a continuous one. For accuracy
    chance is the share of the commonest value.

    Protocol. One random forest per factor, on the codes' ranks: 20 trees, every dimension tried at
    every split, at least two rows in a leaf. Depth is 4, 7 or 10: the shallowest whose out-of-bag
    score is within 0.01 of the best. Importance is the decrease in impurity. Deep trees spend splits
    on noise and spread the importance, which lowers D and C: hence the choice, and a maximum of 10.

    Deviations. The paper takes lasso and random forests, depth chosen by validation, and an error
    (0 is best) for informativeness. disentanglement_lib takes gradient boosted trees (100 of depth 3
    for each value of a factor) and accuracy. Boosting takes minutes at 40 values and 10,000 images;
    a forest of few, shallow trees splits less on noise, and follows interactions that depth 3 does
    not: D and C come out higher on noisy codes and lower on codes that mix factors, and are not to be
    compared with published ones.
    """
    data = measured(codes, factors, continuous)
    train, test = split(len(data.codes), seed)
    z = _ranks(data.codes)
    importance, success = [], []
    for j, is_continuous in enumerate(data.continuous):
        y = data.factors[:, j] if is_continuous else data.classes[:, j]
        forest = _forest(z[train], y[train], bool(is_continuous), seed)
        importance.append(forest.feature_importances_)
        success.append(max(forest.score(z[test], y[test]), 0.0))
    disentanglement, completeness = dci_of_importance(np.stack(importance, axis=1))
    return disentanglement, completeness, float(np.mean(success))


def _ranks(codes: np.ndarray) -> np.ndarray:
    """Returns the codes' ranks in each dimension, [N, d], dimensions in an order that depends on the ranks alone.

    Trees see only the order of values, but break ties by the order of dimensions, and round. With
    ranks in a fixed order neither the scale nor the order of the dimensions can change the forest.
    """
    from scipy.stats import rankdata

    ranks = rankdata(codes, method="dense", axis=0)
    return ranks[:, np.lexsort(ranks[::-1])]


def _forest(x: np.ndarray, y: np.ndarray, is_continuous: bool, seed: int):
    """Fits a random forest of the shallowest of DEPTHS that does about as well out of bag as the best.

    On one thread: several add up the trees' votes in any order, and ties would not repeat.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if is_continuous else RandomForestClassifier
    settings = {"max_features": None, "min_samples_leaf": 2, "oob_score": True, "random_state": seed}
    with warnings.catch_warnings():  # one or two of 10,000 rows are in every tree's sample
        warnings.filterwarnings("ignore", message="Some inputs do not have OOB scores")
        forests = [kind(TREES, max_depth=depth, **settings).fit(x, y) for depth in DEPTHS]
    best = max(forest.oob_score_ for forest in forests)
    return next(forest for forest in forests if forest.oob_score_ >= best - 0.01)


def dci_of_importance(importance: np.ndarray) -> tuple[float, float]:
    """Computes disentanglement and completeness of a matrix of importances R [d, F], not negative.

    D_i = 1 - H(R[i, :] / sum) / log F: one if dimension i serves one factor only. D is their mean
    weighted by the dimensions' shares of R. C_j = 1 - H(R[:, j] / sum) / log d: one if factor j is
    in one dimension only. C weights by the factors' shares, as disentanglement_lib does. A
    dimension without any importance has weight zero.
    """
    return _concentration(importance), _concentration(importance.T)


def _concentration(importance: np.ndarray) -> float:
    """Computes one minus the entropy of each row over its maximum, weighted by the rows' sums."""
    rows = importance[importance.sum(1) > 0]
    if not len(rows):
        return 0.0
    return float(np.average(1 - entropy(rows) / np.log(rows.shape[1]), weights=rows.sum(1)))


def explicitness(codes: np.ndarray, factors: np.ndarray, continuous: Continuous = None, seed: int = 0) -> float:
    """Computes the explicitness (Ridgeway & Mozer 2018, section 3): 0.5 at chance, 1 at best.

    It is how well a linear classifier on the whole code tells each value of a factor from the others: the
    area under its ROC curve, averaged over the values of a factor, then over the factors.

    Protocol. scikit-learn's logistic regression (multinomial, L2 with C = 1, L-BFGS, at most 300
    iterations) on standardised codes, scored on the held-out third. A continuous factor is cut into
    20 bins of equal mass. Values that are not in both parts are left out.

    Deviations. The paper fits one classifier per value against the rest; one for all values is what
    disentanglement_lib's call means in today's scikit-learn, and it can single out a middle value
    of an ordered factor.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    data = measured(codes, factors, continuous)
    train, test = split(len(data.codes), seed)
    areas = []
    for y in data.classes.T:
        with stopped_in_time():
            model = LogisticRegression(max_iter=300).fit(data.codes[train], y[train])
        both = np.isin(model.classes_, y[test])
        truth = y[test][:, None] == model.classes_[both]
        areas.append(roc_auc_score(truth, model.predict_proba(data.codes[test])[:, both], average="macro"))
    return float(np.mean(areas))
