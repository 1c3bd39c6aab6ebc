import math

import pytest
import torch
from torch import nn

from vaelab.evaluation.metrics import samples
from vaelab.evaluation.metrics.samples import (
    as_data,
    frechet_distance,
    generate,
    memorisation_ratio,
    nearest_neighbours,
    precision_recall,
)


def normals(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count, mean, covariance, seed):
    """Points whose sample mean and covariance are exactly those given."""
    x = normals(count, len(mean), seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    values, vectors = torch.linalg.eigh(covariance)
    return white @ (vectors * values.clamp_min(0).sqrt()).T + mean


def rotation(width, seed):
    return torch.linalg.qr(normals(width, width, seed)).Q


# --- Fréchet distance -------------------------------------------------------------------------


def test_the_distance_of_a_set_to_itself_is_zero():
    x = normals(300, 20, 0)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-10)


def test_covariances_that_commute_have_a_closed_form():
    """|m|^2 + sum (sqrt a - sqrt b)^2, in any rotated basis."""
    a, b, shift = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 1.0, 0.25]), torch.tensor([1.0, -2.0, 0.5])
    basis = rotation(3, 1)
    x = with_moments(50, torch.zeros(3).double(), basis @ torch.diag(a.double()) @ basis.T, 2)
    y = with_moments(80, shift.double(), basis @ torch.diag(b.double()) @ basis.T, 3)
    expected = (shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()).item()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_do_not_commute():
    """In two dimensions tr((A B)^(1/2)) = sqrt(tr(A B) + 2 sqrt(det A det B))."""
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[0.5, -0.4], [-0.4, 3.0]]).double()
    x, y = (with_moments(60, torch.zeros(2).double(), c, s) for s, c in enumerate((a, b)))
    overlap = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.det(a) * torch.det(b)))
    expected = (a.trace() + b.trace()).item() - 2 * overlap
    assert abs((a @ b - b @ a).norm()) > 0.1
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_no_problem():
    """Features that never fire, and one that copies another: what is left decides."""
    x, y = normals(200, 4, 5), normals(150, 4, 6) * 2 + 1

    def embed(points):
        return torch.cat([points, points[:, :1], torch.zeros(len(points), 20)], 1)

    assert frechet_distance(embed(x), embed(x)) == pytest.approx(0, abs=1e-10)
    padded = [torch.cat([p, torch.zeros(len(p), 20)], 1) for p in (x, y)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    doubled = [p[:, :1] for p in (x, y)]
    copies = [torch.cat([p, p], 1) for p in doubled]
    assert frechet_distance(*copies) == pytest.approx(2 * frechet_distance(*doubled), rel=1e-9)


def test_constants_are_as_far_apart_as_their_means():
    assert frechet_distance(torch.zeros(9, 2), torch.tensor([3.0, 4.0]).expand(9, 2)) == pytest.approx(25)


# --- precision and recall ---------------------------------------------------------------------


def test_a_set_covers_itself_and_nothing_far_away(monkeypatch):
    x = normals(400, 3, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)
    whole = precision_recall(x, normals(300, 3, 1) * 0.7)
    monkeypatch.setattr(samples, "MEMORY", 8 * 400 * 7)
    assert precision_recall(x, normals(300, 3, 1) * 0.7) == whole


def test_a_dropped_mode_costs_recall_alone_and_an_invented_one_precision_alone():
    x, y = normals(1000, 2, 2), normals(1000, 2, 3)
    two_modes = torch.cat([x[:500] + 50, x[500:]])
    one_mode = y[:500]
    real, generated = precision_recall(two_modes, one_mode)
    assert real > 0.9
    assert 0.4 < generated < 0.5
    assert precision_recall(one_mode, two_modes) == (generated, real)


def test_balls_reach_to_the_kth_neighbour():
    """Centres 0, 1, 3, 7, 20: the radius to the first neighbour is 1, 1, 2, 4, 13; to the second 3, 2, 3, 6, 17."""
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    generated = torch.tensor([[-1.0], [-1.1], [6.99], [33.0], [33.1], [36.9], [37.1]])
    # k = 1: inside are -1 (touches the ball of 0), 6.99, 33 (touches the ball of 20)
    assert precision_recall(real, generated, k=1)[0] == pytest.approx(3 / 7)
    # k = 2: outside is 37.1 alone
    assert precision_recall(real, generated, k=2)[0] == pytest.approx(6 / 7)


def test_copies_of_a_repeated_image_are_inside_its_ball_of_radius_zero():
    real = normals(30, 4, 7) * 100
    real[:5] = real[0]
    generated = torch.cat([real[:1].expand(10, 4), real[:1].expand(10, 4) + 1e-3])
    assert (
        precision_recall(real[:6], generated, k=3)[0]
        == 0.5
        + 0.5
        * (  # the sixth point's ball may hold the rest
            (real[5] - generated[-1]).norm() <= (real[5] - real[:5]).norm(dim=1).max()
        )
    )


@pytest.mark.parametrize("function", [frechet_distance, precision_recall])
@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (normals(30, 4, 0).T, normals(30, 4, 1).T, "more images"),
        (normals(30, 4, 0), normals(30, 5, 1), "same features"),
        (normals(30, 4, 0).flatten(), normals(30, 4, 1), "N, F"),
        (normals(4, 4, 0), normals(30, 4, 1), "more images"),
        (normals(30, 4, 0), normals(30, 4, 1).index_fill(0, torch.tensor([2]), torch.nan), "1 of 30 rows"),
        (normals(30, 4, 0), normals(30, 4, 1).index_fill(0, torch.tensor([2, 3]), torch.inf), "2 of 30 rows"),
    ],
)
def test_bad_features_are_refused(function, a, b, named):
    with pytest.raises(ValueError, match=named):
        function(a, b)


@pytest.mark.parametrize("k", [0, 5])
def test_a_ball_needs_neighbours(k):
    with pytest.raises(ValueError, match="k must"):
        precision_recall(normals(9, 2, 0), normals(5, 2, 1), k=k)


# --- nearest neighbours -----------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 5_000, 2**26])
def test_neighbours_are_those_of_brute_force(memory):
    queries, references = normals(40, 48, 0).float(), normals(90, 48, 1).float()
    distances, which = nearest_neighbours(queries.view(40, 3, 4, 4), references.view(90, 3, 4, 4), memory)
    expected = torch.cdist(queries.double(), references.double()).min(1)
    assert torch.equal(which, expected.indices)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-5, atol=0)


def test_a_copy_is_at_distance_zero_and_bytes_are_fractions():
    noise = torch.Generator().manual_seed(0)
    references = torch.randint(0, 256, (500, 1, 28, 28), generator=noise, dtype=torch.uint8)
    distances, which = nearest_neighbours(references[100:150].float() / 255, references)
    assert which.tolist() == list(range(100, 150))
    assert (distances == 0).all()
    white, black = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert nearest_neighbours(white, black)[0].item() == 2.0


@pytest.mark.parametrize(
    "shapes", [((5, 4), (5, 3)), ((5,), (5,)), ((0, 4), (5, 4)), ((5, 4), (0, 4)), ((5, 2, 2), (5, 4))]
)
def test_images_of_different_shapes_have_no_distance(shapes):
    with pytest.raises(ValueError, match="queries"):
        nearest_neighbours(*(torch.zeros(shape) for shape in shapes))


def test_the_ratio_tells_copies_from_new_images():
    training, unseen, new = (normals(600, 20, s).float() for s in range(3))
    baseline, _ = nearest_neighbours(unseen, training)
    fresh, _ = nearest_neighbours(new, training)
    copies, _ = nearest_neighbours(training[:300] + 0.01 * new[:300], training)
    assert memorisation_ratio(fresh, baseline) == pytest.approx(1, abs=0.05)
    assert memorisation_ratio(copies, baseline) < 0.05
    assert memorisation_ratio(2 * baseline, baseline) == pytest.approx(2)
    assert memorisation_ratio(torch.tensor([1.0, 3.0, 90.0]), torch.tensor([2.0, 4.0])) == pytest.approx(1)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0), torch.tensor([1.0, torch.nan]), torch.ones(2, 2)])
def test_distances_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="unseen"):
        memorisation_ratio(torch.ones(3), bad)


# --- generated images -------------------------------------------------------------------------


class Stub(nn.Module):
    """Draws images in [-1, 1] whose first pixel is the label."""

    shape, device = (1, 8, 8), torch.device("cpu")

    def sample(self, count, labels=None):
        assert not self.training
        images = torch.rand(count, 1, 8, 8) * 2 - 1
        if labels is not None:
            images[:, 0, 0, 0] = labels / 5 - 1
        return images


def drawn(count, labels=None, binary=False, seed=0):
    return torch.cat(list(generate(Stub(), count, labels, (-1.0, 1.0), binary, seed)))


def test_generated_images_are_a_function_of_the_seed():
    before = torch.get_rng_state()
    images = drawn(1300)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(images, drawn(1300))
    assert not torch.equal(images, drawn(1300, seed=1))
    assert len(images.flatten(1).unique(dim=0)) == 1300  # batches differ among themselves
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.mean() == pytest.approx(0.5, abs=0.01)


def test_labels_go_with_their_images():
    labels = torch.arange(1300) % 10
    torch.testing.assert_close(drawn(1300, labels)[:, 0, 0, 0] * 10, labels.float())


def test_a_model_in_training_is_so_afterwards_and_between_batches():
    model = Stub().train()
    for _ in generate(model, 1300, None, (-1.0, 1.0), False, 0):
        assert model.training
        assert torch.is_grad_enabled()
    assert model.training


def test_binary_data_is_drawn_with_the_means_as_probabilities():
    means = torch.tensor([-1.0, -0.4, 1.0, 1.2]).repeat(20_000, 1)
    images = as_data(means, (-1.0, 1.0), binary=True)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(images.mean(0), torch.tensor([0.0, 0.3, 1.0, 1.0]), atol=0.015, rtol=0)
    assert as_data(means, (-1.0, 1.0), binary=False)[0].tolist() == pytest.approx([0.0, 0.3, 1.0, 1.0])
    assert set(drawn(10, binary=True).unique().tolist()) == {0.0, 1.0}
