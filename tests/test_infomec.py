"""InfoMEC: closed cases, channels of known information, invariances, and the estimator beside scikit-learn's."""

import numpy as np
import pytest

from vaelab.evaluation.metrics.disentanglement import infomec as module
from vaelab.evaluation.metrics.disentanglement.factors import measured
from vaelab.evaluation.metrics.disentanglement.infomec import (
    infomec,
    linear_information,
    modularity_and_compactness,
    nearest_neighbour_information,
)

N = 2000


def rng(seed=0):
    return np.random.default_rng(seed)


def discrete(*sizes, n=N):
    return np.stack([rng(10 + i).integers(0, k, n) for i, k in enumerate(sizes)], axis=1)


FACTORS = {"discrete": discrete(2, 3, 6, 10), "continuous": rng(5).uniform(-1, 1, (N, 4))}
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("kind", FACTORS)
def test_factors_are_modular_explicit_and_compact_and_a_rotation_leaves_them_explicit_only(kind):
    codes = standardised(FACTORS[kind])
    assert infomec(codes, FACTORS[kind]) == pytest.approx((1, 1, 1), abs=0.03)
    infom, infoe, infoc = infomec(codes @ HADAMARD, FACTORS[kind])
    assert infoe == pytest.approx(1, abs=0.01)
    assert infom < 0.6
    assert infoc < 0.6


def test_a_factor_in_two_dimensions_is_not_compact_and_two_factors_in_one_are_not_modular():
    a, b = discrete(4, 4).T
    both = np.stack([a, b], axis=1)
    assert infomec(both[:, [0, 0, 1, 1]], both)[::2] == pytest.approx((1, (1 / 2 - 1 / 4) / (3 / 4)), abs=0.02)
    assert infomec(np.stack([a + 10 * b, np.zeros(N)], axis=1), both)[::2] == pytest.approx((0, 1), abs=0.01)


@pytest.mark.filterwarnings("error")
def test_a_fit_without_an_end_is_taken_after_its_iterations_without_a_word():
    """Two dimensions that each know which of 32 values it is: L-BFGS is not there after 300 iterations."""
    y = rng().integers(0, 32, (800, 2))
    codes = standardised(y[:, :1] + 0.5 * rng(1).normal(size=(800, 2)))
    assert 0.3 < infomec(codes, y)[1] < 0.6


@pytest.mark.parametrize("kind", FACTORS)
def test_codes_that_know_nothing_score_nothing(kind):
    found = infomec(rng(1).normal(size=(N, 4)), FACTORS[kind])
    assert found == pytest.approx((0, 0, 0), abs=0.01)
    assert min(found) >= 0


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (np.eye(3), (1, 1)),
        (np.ones((4, 3)), (0, 0)),
        (np.zeros((4, 3)), (0, 0)),  # a constant code
        (np.array([[1.0, 0], [0, 1], [0, 0]]), (1, 1)),
        (np.repeat(np.eye(2), 2, axis=0), (1, (1 / 2 - 1 / 4) / (3 / 4))),
        (np.array([[0.6, 0.2], [0, 0.8]]), ((0.875 - 0.5) / 0.5, (0.9 - 0.5) / 0.5)),
        (np.array([[0.5, 0, 0.5], [0.25, 0, 0]]), ((0.75 - 1 / 3) / (2 / 3), (5 / 6 - 0.5) / 0.5)),  # a factor missing
        (np.array([[0.4, 0.4]]), (0, 1)),  # one dimension
    ],
)
def test_known_matrices(shares, expected):
    assert modularity_and_compactness(shares) == pytest.approx(expected)


def test_a_bit_that_is_wrong_one_time_in_ten():
    bit, other = discrete(2, 2, n=20_000).T
    code = np.where(rng(1).random(20_000) < 0.1, 1 - bit, bit)
    capacity = 1 + 0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)
    codes, factors = np.stack([code, other], axis=1), np.stack([bit, other], axis=1)
    assert nearest_neighbour_information(code[:, None], bit) / np.log(2) == pytest.approx(capacity, abs=0.01)
    assert infomec(codes, factors)[1] == pytest.approx((capacity + 1) / 2, abs=0.01)


def test_infoe_of_continuous_factors_is_the_variance_that_a_line_explains():
    factors = rng(5).normal(size=(20_000, 2))
    codes = np.stack([factors[:, 0] + 0.5 * rng(6).normal(size=20_000), factors[:, 1] ** 2], axis=1)
    assert linear_information(measured(codes, factors, None), 0) == pytest.approx((1 / 1.25 + 0) / 2, abs=0.01)


def by_definition(z, y):
    """Ross's estimate of one dimension from all distances."""
    from scipy.special import digamma

    size, distance = np.bincount(y)[y], np.abs(z[:, None] - z)
    np.fill_diagonal(distance, np.inf)
    of_class = np.where(y[:, None] == y, distance, np.inf)
    reach = np.sort(of_class, axis=1)[np.arange(len(z)), np.minimum(10, size - 1) - 1, None]
    k, m = (of_class <= reach).sum(1), (distance <= reach).sum(1)
    return digamma(len(z)) - digamma(size).mean() + digamma(k).mean() - digamma(m).mean()


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_information_is_that_of_its_definition_and_of_scikit_learn_where_nothing_ties(noise):
    from sklearn.feature_selection import mutual_info_classif

    y = rng(1).choice(4, 500, p=[0.5, 0.3, 0.19, 0.01])
    assert 1 < (y == 3).sum() <= 10  # a class of fewer points than neighbours
    z = standardised(y[:, None] + noise * rng(2).normal(size=(500, 2)))
    found = nearest_neighbour_information(z, y)
    assert found == pytest.approx([max(by_definition(column, y), 0) for column in z.T])
    alone = np.append(y, 4)  # a point that is alone in its class plays no part
    assert nearest_neighbour_information(np.vstack([z, [[0.0, 0.0]]]), alone) == pytest.approx(found)
    if noise:
        several = np.minimum(y, 2)
        theirs = mutual_info_classif(z, several, discrete_features=False, n_neighbors=10, random_state=0)
        assert nearest_neighbour_information(z, several) == pytest.approx(theirs, abs=1e-6)


def test_information_of_codes_that_repeat_is_that_of_their_table():
    y = discrete(4, n=20_000)[:, 0]
    code = np.where(rng(3).random(20_000) < 0.5, y, rng(4).integers(0, 4, 20_000))
    table = np.histogram2d(code, y, bins=4)[0] / 20_000
    exact = (table * np.log(table / np.outer(table.sum(1), table.sum(0)))).sum()
    assert nearest_neighbour_information(standardised(code)[:, None], y) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("kind", FACTORS)
def test_order_sign_and_common_scale_of_dimensions_and_the_order_of_factors_play_no_part(kind):
    factors = FACTORS[kind]
    codes = np.hstack([standardised(factors) + 0.5 * rng(1).normal(size=(N, 4)), rng(2).normal(size=(N, 2))])
    changed = 1e-3 * (codes * [1, -1, 2, 0.5, -1, 1])[:, [3, 0, 5, 2, 1, 4]] + 7
    assert infomec(changed, factors) == pytest.approx(infomec(codes, factors), abs=1e-3)
    assert infomec(codes, factors[:, [2, 0, 3, 1]]) == pytest.approx(infomec(codes, factors))


def test_dimensions_of_a_small_range_are_pruned_whatever_they_know():
    factors = FACTORS["discrete"][:, :2]
    used, dead = standardised(factors), standardised(factors) * module.LEAST_RANGE * [0.5, 0.9]
    assert infomec(np.hstack([used, dead]), factors)[::2] == infomec(used, factors)[::2]
    assert infomec(np.hstack([used, 3 * dead]), factors)[2] < 0.7
