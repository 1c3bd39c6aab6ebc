from functools import cache

import numpy as np
import pytest

from vaelab.evaluation.metrics.disentanglement import (
    beta_vae_score,
    disentanglement,
    factor_vae_score,
    mig,
    mig_of_active,
    modularity,
)
from vaelab.evaluation.metrics.disentanglement import groups as module
from vaelab.evaluation.metrics.disentanglement.predictability import dci, dci_of_importance, explicitness, sap

N = 1200
NAMES = ["beta_vae", "factor_vae", "mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness"]
NAMES += ["mig_active", "modularity", "explicitness", "infom", "infoe", "infoc"]
METRICS = [beta_vae_score, factor_vae_score, mig, sap, dci, modularity, explicitness]


def rng(seed=0):
    return np.random.default_rng(seed)


def discrete(*sizes, n=N):
    return np.stack([rng(10 + i).integers(0, k, n) for i, k in enumerate(sizes)], axis=1)


FACTORS = {"discrete": discrete(2, 3, 6, 10), "continuous": rng(5).uniform(-1, 1, (N, 4))}


def standardised(factors):
    return (factors - factors.mean(0)) / factors.std(0)


HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
"""A rotation that spreads each factor evenly over four dimensions."""


@cache
def figures_of(kind, name):
    """Figures of known codes of FACTORS[kind]."""
    perfect, noise = standardised(FACTORS[kind]), rng(1).normal(size=(N, 4))
    codes = {
        "perfect": np.hstack([perfect, noise]),
        "noise": np.hstack([noise, rng(2).normal(size=(N, 4))]),
        "twice": np.hstack([perfect, perfect]),
        "rotated": np.hstack([perfect @ HADAMARD, noise]),
    }
    return disentanglement(codes[name], FACTORS[kind])[0]


@pytest.mark.parametrize("kind", FACTORS)
def test_the_factors_themselves_are_disentangled(kind):
    figures = figures_of(kind, "perfect")
    assert set(figures) == set(NAMES)
    for name in NAMES:
        assert 0.9 <= figures[name] <= 1, name


@pytest.mark.parametrize("kind", FACTORS)
def test_noise_scores_at_chance(kind):
    figures = figures_of(kind, "noise")
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "modularity", "infom", "infoe", "infoc"):
        assert 0 <= figures[name] <= 0.1, name
    # one of four factors; a figure's spread is that of the few images that the groups are drawn from
    assert figures["beta_vae"] == pytest.approx(1 / 4, abs=0.05)
    assert figures["factor_vae"] == pytest.approx(1 / 4, abs=0.05)
    assert figures["explicitness"] == pytest.approx(1 / 2, abs=0.03)
    chance = np.mean([1 / 2, 1 / 3, 1 / 6, 1 / 10]) if kind == "discrete" else 0
    assert figures["dci_informativeness"] == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize("kind", FACTORS)
def test_a_factor_in_two_dimensions_costs_the_gaps_and_completeness(kind):
    once, twice = figures_of(kind, "perfect"), figures_of(kind, "twice")
    assert twice["mig"] <= 0.01
    assert twice["sap"] <= 0.01
    assert twice["dci_completeness"] < 0.75  # two of eight dimensions evenly: 1 - log 2 / log 8 = 2/3
    assert once["dci_completeness"] > 0.95
    for name in ("factor_vae", "beta_vae", "modularity", "dci_disentanglement"):
        assert twice[name] >= 0.95


@pytest.mark.parametrize("kind", FACTORS)
def test_a_rotation_lowers_all_that_look_at_single_dimensions(kind):
    for name in NAMES:
        if name not in ("explicitness", "infoe", "dci_informativeness", "beta_vae"):
            assert figures_of(kind, "rotated")[name] < figures_of(kind, "perfect")[name] - 0.05, name
    for name in ("explicitness", "infoe"):  # a linear map is undone by a linear classifier
        assert figures_of(kind, "rotated")[name] == pytest.approx(figures_of(kind, "perfect")[name], abs=0.02)


@pytest.mark.parametrize(("images", "least"), [(1200, 0.03), (10_000, 0.007)])
def test_perfect_codes_miss_a_sap_of_1_by_the_luck_of_the_second_best_dimension(images, least):
    factors = discrete(3, 6, 4, n=images)
    luck = 1 - sap(factors, factors)
    assert 0 < luck < least
    only = np.stack([factors[:, 0], np.zeros(images)], axis=1)  # whose second dimension cannot be lucky
    assert sap(only, factors[:, [0, 0]]) == 1


def noisy(factors):
    """Factors with noise, and two dimensions of noise alone, so that no metric is at its end."""
    n, k = factors.shape
    return np.hstack([standardised(factors) + 0.5 * rng(1).normal(size=(n, k)), rng(2).normal(size=(n, 2))])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", FACTORS)
def test_the_order_and_the_scale_of_dimensions_play_no_part(metric, kind):
    factors = FACTORS[kind][:, 1:]
    codes = noisy(factors)
    order = rng(4).permutation(codes.shape[1])
    changed = (codes * rng(6).choice([1e-3, 0.3, 7.0, 1e4], codes.shape[1]) + rng(7).normal(size=codes.shape[1]))[
        :, order
    ]
    assert not np.array_equal(order, np.arange(len(order)))
    np.testing.assert_allclose(metric(changed, factors), metric(codes, factors), atol=0.01)


def test_dci_is_the_same_to_the_last_digit_where_dimensions_tie():
    factors = discrete(3, 4, n=500)
    codes = noisy(factors).round()
    assert dci(codes[:, ::-1] * 1e-3 + 0.1, factors) == dci(codes, factors)


@pytest.mark.slow
def test_a_forest_is_kinder_than_boosting_to_noise_and_harsher_to_mixtures():
    """Why these D and C are not those of disentanglement_lib, which boosts trees of depth 3."""
    from sklearn.ensemble import GradientBoostingClassifier

    factors, noise = discrete(2, 3, 4), rng(1).normal(size=(N, 3))
    perfect, idle = standardised(factors), rng(2).normal(size=(N, 2))
    mixing = np.linalg.qr(rng(3).normal(size=(3, 3)))[0]
    for codes, kinder in ((perfect + 0.5 * noise, True), (perfect @ mixing, False)):
        z = np.hstack([codes, idle])
        boosted = [GradientBoostingClassifier(random_state=0).fit(z, y).feature_importances_ for y in factors.T]
        for forest, published in zip(dci(z, factors)[:2], dci_of_importance(np.stack(boosted, axis=1)), strict=True):
            assert (forest > published) == kinder


def test_at_most_ten_thousand_images_are_looked_at(monkeypatch):
    assert module.ROWS == 10_000
    monkeypatch.setattr(module, "ROWS", 300)
    factors = discrete(2, 3)
    assert disentanglement(noisy(factors), factors)[1].startswith("300 images,")


def test_dci_takes_trees_deep_enough_for_many_values():
    factors = discrete(30, 30)
    assert dci(np.hstack([factors, rng(1).normal(size=(N, 2))]), factors)[2] > 0.95


@pytest.mark.parametrize("metric", [beta_vae_score, factor_vae_score])
def test_what_few_images_have_in_common_by_chance_is_not_scored(metric):
    factors = discrete(3, 4, n=240)
    found = [metric(rng(seed).normal(size=(240, 20)), factors, seed=seed) for seed in range(8)]
    assert np.mean(found) == pytest.approx(1 / 2, abs=0.06)


@pytest.mark.parametrize("metric", [mig, sap, modularity, explicitness])
def test_the_order_of_the_factors_and_the_sign_of_a_dimension_play_no_part(metric):
    factors = FACTORS["discrete"]
    codes = noisy(factors)
    plain = metric(codes, factors)
    assert metric(codes, factors[:, [2, 0, 3, 1]]) == pytest.approx(plain)
    assert metric(-codes, factors) == pytest.approx(plain, abs=0.01)


def test_one_seed_one_figure_and_the_global_generator_is_left_alone():
    factors = FACTORS["discrete"][:400, :2]
    codes = noisy(factors)
    np.random.seed(0)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    first, second, other = (disentanglement(codes, factors, seed=seed)[0] for seed in (0, 0, 1))
    assert first == second
    assert all(first[name] != other[name] for name in ("sap", "dci_disentanglement", "explicitness"))
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def test_constant_dimensions_change_what_they_must_only():
    factors = FACTORS["discrete"][:600, :3]
    codes = noisy(factors)
    more = np.hstack([codes, np.full((len(codes), 2), 3.3)]).astype(np.float32)
    plain, padded = disentanglement(codes, factors)[0], disentanglement(more, factors)[0]
    for name in set(NAMES) - {"dci_completeness"}:  # completeness divides by the log of the number of dimensions
        assert padded[name] == pytest.approx(plain[name], abs=0.01), name
    missing = (1 - plain["dci_completeness"]) * np.log(5) / np.log(7)
    assert 1 - padded["dci_completeness"] == pytest.approx(missing, abs=0.01)


def test_mixed_factors_are_told_apart_by_words():
    factors = np.stack([discrete(3)[:, 0], FACTORS["continuous"][:, 0]], axis=1)
    figures, protocol = disentanglement(factors.copy(), factors, continuous=[False, True])
    assert all(figures[name] > 0.9 for name in NAMES)
    assert "(1 continuous)" in protocol
    with pytest.raises(ValueError, match="discrete"):
        mig(factors, factors, continuous=False)


@pytest.mark.parametrize("kind", FACTORS)
def test_a_dead_dimension_that_follows_a_factor_counts_in_mig_but_not_of_the_active_ones(kind):
    factors = FACTORS[kind][:, :2]
    used = standardised(factors)
    with_dead = np.hstack([used, 1e-3 * used])
    assert mig(with_dead, factors) == pytest.approx(0, abs=0.01)
    assert mig_of_active(with_dead, factors) == pytest.approx(mig(used, factors))
    assert mig_of_active(1e-3 * used, factors) == 0
    assert disentanglement(with_dead, factors)[0]["mig_active"] > 0.95


def test_mig_of_a_known_channel():
    # the dimension is the bit, wrong one time in ten; the other dimension knows a tenth less
    counts = np.array([[450, 50], [50, 450]])
    bit = np.repeat([0, 0, 1, 1], counts.ravel())
    code = np.tile(np.repeat([0, 1], [450, 50]), 1)
    code = np.concatenate([code, np.repeat([0, 1], [50, 450])]).astype(float)
    order = rng().permutation(1000)
    bit, code = bit[order], code[order]
    other = rng(1).permutation(np.arange(1000) % 2)
    channel = (np.log(2) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9) - 1 / 2000) / np.log(2)
    # the second factor is the second dimension itself: a gap of all its entropy
    factors, codes = np.stack([bit, other], axis=1), np.stack([code, other], axis=1)
    assert mig(codes, factors) == pytest.approx((channel + 1) / 2, abs=0.005)


def test_mig_reaches_one_with_more_values_than_bins():
    factors = discrete(40, 32, n=10_000)
    assert mig(factors, factors) > 0.97


def test_sap_as_published_cannot_exceed_one_minus_chance():
    factors = discrete(2, 4, 10)
    codes = standardised(factors)
    published = sap(codes, factors, adjusted=False)
    assert published == pytest.approx(1 - np.mean([1 / 2, 1 / 4, 1 / 10]), abs=0.03)
    assert sap(codes, factors) == pytest.approx(1, abs=0.03)


def test_sap_of_continuous_factors_is_a_gap_of_squared_correlations():
    factors = rng(5).normal(size=(20_000, 2))
    codes = factors @ [[1, 0.5], [0, np.sqrt(0.75)]]
    # factor 0: 1 and 0.25; factor 1: 0 and 0.75
    assert sap(codes, factors) == pytest.approx((0.75 + 0.75) / 2, abs=0.02)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (np.eye(3), (1, 1)),
        (np.ones((4, 3)), (0, 0)),
        (np.repeat(np.eye(2), 2, axis=0), (1, 0.5)),  # a factor in two of four dimensions
        (np.array([[0.5, 0.5, 0], [0, 0, 2]]), (1 - np.log(2) / np.log(3) / 3, 1)),  # weights 1/3 and 2/3
        (np.array([[1.0, 0], [0, 1], [0, 0]]), (1, 1)),  # an idle dimension has no weight
        (np.zeros((3, 2)), (0, 0)),
    ],
)
def test_dci_of_known_importances(importance, expected):
    assert dci_of_importance(importance) == pytest.approx(expected)


def test_modularity_of_a_known_mixture():
    # each dimension holds a whole factor of two bits and a whole factor of one: informations 2 and 1
    a, b, c = discrete(4, 2, 4, n=20_000).T
    codes = np.stack([a + 10 * b, c], axis=1).astype(float)
    mixed = 1 - (np.log(2) / np.log(4)) ** 2 / 2
    assert modularity(codes, np.stack([a, b, c], axis=1)) == pytest.approx((mixed + 1) / 2, abs=0.005)


def test_explicitness_is_linear():
    factors = discrete(2, 2)
    x, y = rng(8).normal(size=(2, N))
    outside = x**2 + y**2 > 2 * np.log(2)  # half of the mass
    factors = np.stack([outside, rng(9).permutation(outside)], axis=1).astype(int)
    assert explicitness(np.stack([x, y], axis=1), factors) == pytest.approx(0.5, abs=0.04)
    assert explicitness(np.stack([x**2 + y**2, y], axis=1), factors) == pytest.approx((1 + 0.5) / 2, abs=0.04)


def test_factor_vae_counts_the_dimensions_that_vote():
    # two factors in one dimension: it can answer for one of them only
    a, b = discrete(4, 4).T
    codes = np.stack([a + b, np.ones(N)], axis=1).astype(float)
    assert factor_vae_score(codes, np.stack([a, b], axis=1)) == pytest.approx(1 / 2, abs=0.01)


def test_groups_and_pairs_share_their_value_and_pairs_are_of_two_images():
    classes = rng().choice(4, p=[0.5, 0.3, 0.15, 0.05], size=300)
    groups = module._groups(classes, 4000, rng(1))
    assert (classes[groups] == classes[groups[:, :1]]).all()
    shares = np.bincount(classes[groups[:, 0]]) / 4000
    np.testing.assert_allclose(shares, np.bincount(classes) / 300, atol=0.03)
    first, second = module._pairs(classes, 2000, rng(2))
    assert (classes[first] == classes[second]).all()
    assert (first != second).all()
    for rows in (groups, first, second):
        assert len(np.unique(rows)) == 300  # every image takes part
    # any other row of the value is as likely
    of_one = second[first == np.flatnonzero(classes == 3)[0]]
    assert len(np.unique(of_one)) == (classes == 3).sum() - 1


def test_a_factor_with_one_value_is_left_out_of_all_and_refused_by_one():
    factors = np.insert(FACTORS["discrete"][:600, :3], 1, 7, axis=1)
    codes = noisy(np.delete(factors, 1, axis=1))
    figures, protocol = disentanglement(codes, factors)
    assert "factor 1 left out" in protocol
    assert figures == disentanglement(codes, np.delete(factors, 1, axis=1))[0]
    for metric in METRICS:
        with pytest.raises(ValueError, match=r"factors\[:, 1\] takes one value"):
            metric(codes, factors)
    with pytest.raises(ValueError, match="fewer than two"):
        disentanglement(codes, factors[:, [0, 1]])


def test_too_few_images_of_a_value_cost_the_metrics_with_groups_only():
    factors = discrete(3, 40, n=400)
    codes = standardised(factors)
    for metric in (beta_vae_score, factor_vae_score):
        with pytest.raises(ValueError, match=r"factors\[:, 1\] has a value with \d of \d+ rows"):
            metric(codes, factors)
    figures, protocol = disentanglement(codes, factors)
    assert sorted(figures) == sorted(NAMES[2:])
    assert "beta_vae and factor_vae left out: factors[:, 1]" in protocol


CODES, SMALL = rng().normal(size=(200, 6)), discrete(3, 4, n=200)


@pytest.mark.parametrize("metric", [*METRICS, disentanglement])
@pytest.mark.parametrize(
    ("codes", "factors", "says"),
    [
        (CODES.T, SMALL, "transposed"),
        (CODES, SMALL.T, "transposed"),
        (CODES.T, CODES.T.astype(int), "rows"),
        (CODES.reshape(400, 3), SMALL, "reshaped"),
        (CODES.reshape(200, 2, 3), SMALL, "reshaped"),
        (CODES, SMALL[:, 0], "reshaped"),
        (CODES[:50], SMALL[:50], "50 rows"),
        (CODES[:, :1], SMALL, "two dimensions"),
        (CODES, SMALL[:, :1], "two factors"),
        (np.where(CODES > 2, np.nan, CODES), SMALL, "codes .* NaN"),
        (np.where(CODES > 2, np.inf, CODES), SMALL, "codes .* infinity"),
        (CODES, np.where(SMALL == 1, np.nan, SMALL), "factors .* NaN"),
        (CODES, SMALL.astype(str), "numbers"),
        (np.full_like(CODES, 0.1), SMALL, "constant"),
        (CODES, np.stack([np.arange(200), SMALL[:, 0]], axis=1), "declare it continuous"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric, codes, factors, says):
    with pytest.raises(ValueError, match=says):
        metric(codes, factors)


def test_words_for_the_wrong_number_of_factors_are_refused():
    with pytest.raises(ValueError, match="continuous has shape"):
        sap(CODES, SMALL, continuous=[True, False, True])
