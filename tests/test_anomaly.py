import math

import pytest
import torch

from vaelab.evaluation.metrics.anomaly import auroc, found_at, roc


def normals(count, seed, mean=0.0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def test_identical_scores_are_at_chance():
    scores = normals(500, 0)
    assert auroc(scores, scores)[0] == pytest.approx(0.5, abs=1e-12)
    assert auroc(torch.zeros(5), torch.zeros(3)) == (0.5, 0.0)


def test_separated_scores_are_told_apart():
    low, high = torch.arange(5.0), torch.arange(10.0, 17.0)
    assert auroc(low, high) == (1.0, 0.0)
    assert auroc(high, low) == (0.0, 0.0)


def test_pairs_are_counted_and_ties_count_half():
    """Pairs (n, a) of {1, 2, 3} and {2, 4}: a is greater in 4, equal in 1."""
    assert auroc(torch.tensor([1, 2, 3]), torch.tensor([2, 4]))[0] == pytest.approx(4.5 / 6)


@pytest.mark.parametrize("shift", [-0.5, 1.0, 2.0])
def test_two_normals_have_a_closed_form(shift):
    """P(a > n) = Phi(shift / sqrt 2) for unit variances."""
    value, error = auroc(normals(20_000, 1), normals(10_000, 2, shift))
    assert abs(value - 0.5 * math.erfc(-shift / 2)) < 4 * error
    assert error < 0.005


def test_it_depends_on_the_order_alone():
    normal, anomalous = normals(300, 3), normals(200, 4, 0.7)
    assert auroc(normal.exp(), anomalous.exp()) == auroc(normal, anomalous)
    value, error = auroc(normal, anomalous)
    assert auroc(-normal, -anomalous) == (pytest.approx(1 - value), pytest.approx(error))
    assert auroc(anomalous, normal) == (pytest.approx(1 - value), pytest.approx(error))


def test_infinite_scores_are_ranked():
    assert auroc(torch.tensor([-torch.inf, 0.0]), torch.tensor([1.0, torch.inf]))[0] == 1.0


def test_the_standard_error_under_no_difference():
    """The Mann-Whitney statistic's variance is (N + M + 1) / (12 N M); sizes differ, so that swapped ones show."""
    count, others = 400, 40
    errors = [auroc(normals(count, 2 * s), normals(others, 2 * s + 1))[1] for s in range(200)]
    expected = math.sqrt((count + others + 1) / (12 * count * others))
    assert sum(e**2 for e in errors) / 200 == pytest.approx(expected**2, rel=0.05)


def test_the_standard_error_is_the_spread_over_repetitions():
    """Few scores of wide spread against many: each set's part of the error belongs to its own size."""
    results = [auroc(normals(200, 2 * s), 3 * normals(30, 2 * s + 1, 0.5)) for s in range(1500)]
    values, errors = torch.tensor(results, dtype=torch.float64).T
    assert errors.square().mean().sqrt() == pytest.approx(values.std().item(), rel=0.07)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("bad", [torch.tensor([0.0, torch.nan]), torch.zeros(3, 2), torch.zeros(1), torch.zeros(0)])
def test_bad_scores_are_refused_by_name(position, bad):
    scores = [torch.arange(4.0), torch.arange(4.0)]
    scores[position] = bad
    with pytest.raises(ValueError, match=("normal_scores", "anomalous_scores")[position]):
        auroc(*scores)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_area_under_the_curve_is_the_auroc(rounded):
    """Also with ties, which the curve crosses slantwise."""
    normal, anomalous = normals(300, 5), normals(70, 6, 1.0)
    if rounded:
        normal, anomalous = normal.round(), anomalous.round()
    false, true = roc(normal, anomalous)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert torch.trapezoid(true, false).item() == pytest.approx(auroc(normal, anomalous)[0], abs=1e-12)


def test_a_curve_is_read_where_a_share_of_normal_images_is_taken_for_anomalies():
    """Of 0, 1, 2 and 3 against 2, 2.5 and 9: two thirds are above all normal ones but the last, one above all."""
    curve = roc(torch.arange(4.0), torch.tensor([2.0, 2.5, 9.0]))
    at = torch.tensor([0.0, 0.25, 0.375, 0.5, 1.0], dtype=torch.float64)
    assert found_at(*curve, at).tolist() == pytest.approx([1 / 3, 2 / 3, 5 / 6, 1, 1])
