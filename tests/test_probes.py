import numpy as np
import pytest

from vaelab.evaluation.metrics.probes import (
    entropy,
    equal_mass_bins,
    joint_counts,
    knn_accuracy,
    label_information,
    linear_probe,
    mutual_information,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_entropy_of_known_tables():
    counts = np.array([[25, 25, 25, 25], [50, 50, 0, 0], [7, 0, 0, 0]])
    np.testing.assert_allclose(entropy(counts), [np.log(4), np.log(2), 0])


def test_mutual_information_of_a_binary_symmetric_channel():
    # p(error) = 0.1 on a fair bit: log 2 - H(0.1), with the counts of 1,000 draws in exact proportion
    counts = np.array([[450, 50], [50, 450]])
    expected = np.log(2) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9)
    assert mutual_information(counts, corrected=False) == pytest.approx(expected)


def test_mutual_information_of_a_table_that_is_not_square():
    # A in {0, 1}, B in {0, 1, 2}: p = 1/4, 1/4, 0 and 0, 1/4, 1/4; I = H(B) - H(B|A) = 1.5 log 2 - log 2
    assert mutual_information(np.array([[50, 50, 0], [0, 50, 50]]), corrected=False) == pytest.approx(0.5 * np.log(2))


def test_the_correction_is_millers():
    # every cell in use: the plug-in is lowered by (A - 1)(B - 1) / 2N
    counts = np.array([[400, 50, 50], [50, 50, 400]])
    plain, corrected = mutual_information(counts, corrected=False), mutual_information(counts)
    assert plain - corrected == pytest.approx(1 * 2 / (2 * 1000))


def test_independence_costs_the_plug_in_its_bias_and_the_corrected_estimate_nothing():
    a, b = rng().integers(0, 20, (2000, 200)), rng(1).integers(0, 10, 2000)
    counts = joint_counts(a, b)
    bias = 19 * 9 / (2 * 2000)
    assert mutual_information(counts, corrected=False).mean() == pytest.approx(bias, rel=0.05)
    assert mutual_information(counts).mean() < 0.1 * bias
    assert (mutual_information(counts) >= 0).all()


def test_joint_counts_are_those_of_a_loop():
    bins, classes = rng().integers(0, 3, (50, 2)), rng(1).integers(0, 4, 50)
    expected = np.zeros((2, 3, 4))
    for row, k in zip(bins, classes, strict=True):
        expected[0, row[0], k] += 1
        expected[1, row[1], k] += 1
    np.testing.assert_array_equal(joint_counts(bins, classes), expected)


def test_bins_hold_equal_mass_whatever_the_distribution():
    x = np.exp(3 * rng().normal(size=(1000, 2)))
    bins = equal_mass_bins(x, 20)
    assert all((np.bincount(column) == 50).all() and len(np.bincount(column)) == 20 for column in bins.T)
    order = np.argsort(x[:, 0])
    assert (np.diff(bins[order, 0]) >= 0).all()


def test_equal_values_share_a_bin_and_a_constant_uses_one():
    x = np.stack([rng().integers(0, 3, 500), np.full(500, 7)], axis=1).astype(float)
    bins = equal_mass_bins(x, 20)
    assert len(np.unique(bins[:, 0])) == 3
    assert len(np.unique(bins[:, 1])) == 1


def test_label_information_is_the_entropy_for_the_label_itself_and_nothing_for_noise():
    labels = rng().choice(4, p=[0.4, 0.3, 0.2, 0.1], size=5000)
    codes = np.stack([labels, -3.0 * labels, rng(1).normal(size=5000), np.ones(5000)], axis=1)
    information = label_information(codes, labels)
    expected = entropy(np.bincount(labels))
    np.testing.assert_allclose(information[:2], expected)
    assert 0 <= information[2] < 0.005
    assert information[3] == 0


def test_label_information_of_a_gaussian_mixture():
    # y fair, z|y normal at -1 and 1: I = log 2 - E log(1 + exp(-2 z)) under z ~ N(1, 1)
    y = rng().integers(0, 2, 100_000)
    z = 2 * y - 1 + rng(1).normal(size=len(y))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = np.log(2) - weights @ np.log1p(np.exp(-2 * (1 + nodes))) / weights.sum()
    found = label_information(z[:, None], y)[0]
    assert found == pytest.approx(expected, abs=0.006)
    assert found == pytest.approx(label_information(np.exp(z)[:, None], y)[0], abs=1e-9)  # bins follow any monotone map


def clusters(n, seed):
    """Codes [n, 3] of three labels, far apart, in a dimension that varies little beside one that varies much."""
    labels = rng(seed).integers(0, 3, n)
    noise = rng(seed + 100).normal(size=(n, 3))
    return np.stack([0.01 * noise[:, 0] + labels, 0.01 * noise[:, 1] - (labels == 1), noise[:, 2]], axis=1), labels


@pytest.mark.parametrize("probe", [linear_probe, knn_accuracy])
def test_separable_labels_are_read_and_shuffled_ones_are_not(probe):
    codes, labels = clusters(900, 0)
    test_codes, test_labels = clusters(600, 1)
    assert probe(codes, labels, test_codes, test_labels) == 1
    assert probe(codes, labels, test_codes, rng(3).permutation(test_labels)) == pytest.approx(1 / 3, abs=0.07)
    noise, test_noise = rng(4).normal(size=(900, 3)), rng(5).normal(size=(600, 3))
    assert probe(noise, labels, test_noise, test_labels) == pytest.approx(1 / 3, abs=0.07)


def test_the_linear_probe_does_not_depend_on_scale():
    codes, labels = rng().normal(size=(500, 2)), rng(1).integers(0, 2, 500)
    codes[:, 0] += labels
    scaled = codes * [1e-4, 1e4] + [0, 1e5]
    args = labels[:300], labels[300:]
    plain = linear_probe(codes[:300], args[0], codes[300:], args[1])
    assert linear_probe(scaled[:300], args[0], scaled[300:], args[1]) == pytest.approx(plain, abs=1e-9)


def test_a_ring_is_for_neighbours_and_not_for_a_line():
    x = rng().normal(size=(2000, 2))
    y = (np.linalg.norm(x, axis=1) > 1.18).astype(int)
    assert knn_accuracy(x[:1500], y[:1500], x[1500:], y[1500:]) > 0.93
    assert linear_probe(x[:1500], y[:1500], x[1500:], y[1500:]) < 0.65


def test_neighbours_are_k_and_of_the_training_set():
    train, labels = np.array([[0.0], [1.0], [1.1]]), np.array([0, 1, 1])
    assert knn_accuracy(train, labels, np.array([[0.1]]), np.array([0]), k=1) == 1
    assert knn_accuracy(train, labels, np.array([[0.1]]), np.array([0]), k=3) == 0


CODES, LABELS = rng().normal(size=(40, 3)), rng(1).integers(0, 2, 40)


@pytest.mark.parametrize(
    ("codes", "labels"),
    [
        (CODES.T, LABELS),
        (CODES[:, 0], LABELS),
        (CODES.reshape(60, 2), LABELS),
        (CODES, LABELS[:, None]),
        (CODES, np.eye(2)[LABELS]),
        (CODES, LABELS.astype(float)),
        (CODES.astype(str), LABELS),
        (np.where(CODES > 2, np.nan, CODES), LABELS),
        (CODES[:0], LABELS[:0]),
    ],
)
def test_what_is_not_codes_and_labels_is_refused(codes, labels):
    with pytest.raises(ValueError, match="codes"):
        label_information(codes, labels)
    with pytest.raises(ValueError, match="test_codes"):
        linear_probe(CODES, LABELS, codes, labels)
    with pytest.raises(ValueError, match="train_codes"):
        knn_accuracy(codes, labels, CODES, LABELS)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="20 bins"):
        label_information(CODES[:10], LABELS[:10])
    with pytest.raises(ValueError, match="one value"):
        linear_probe(CODES, 0 * LABELS, CODES, LABELS)
    with pytest.raises(ValueError, match="dimensions"):
        linear_probe(CODES, LABELS, CODES[:, :2], LABELS)
    with pytest.raises(ValueError, match="k=41"):
        knn_accuracy(CODES, LABELS, CODES, LABELS, k=41)
