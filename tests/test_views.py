"""Views of a model: ends, corners and speeds of paths, moments of draws, and nothing left changed."""

from __future__ import annotations

import math

import pytest
import torch

from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.inference import coding, paths
from vaelab.nn.posteriors import DiagonalGaussian

MLP = {"_target_": "vaelab.nn.networks.MLP", "hidden_dims": [16], "activation": "relu", "norm": "none"}
UNIT = (0.0, 1.0)


@pytest.fixture
def make(finished):
    """A trained model of a variant, small: `make("vae")`."""
    import vaelab

    def made(name: str):
        result = finished(f"model={name}", "trainer.max_epochs=1")
        return vaelab.load(result.run)

    return made


def labels(model, count: int):
    return torch.arange(count) % model.num_classes if model.conditional else None


@pytest.fixture
def linear():
    """A VAE whose decoder is linear and whose posterior is known: mean and deviation of each pixel follow."""
    likelihood = {"_target_": "vaelab.nn.likelihoods.Gaussian", "sigma": 1.0}
    node = {"_target_": "vaelab.models.VAE", "network": MLP, "likelihood": likelihood, "latent_dim": 2}
    model = build(node, shape=(1, 2, 2), num_classes=None).eval()
    logvar = torch.tensor([[0.0, math.log(0.04)]])
    model.encode = lambda x, y=None: DiagonalGaussian(x.flatten(1)[:, :2], logvar.expand(len(x), 2))

    def decode(z, y=None):
        z = 0.1 * z
        return 0.5 + torch.stack([z[:, 0], z[:, 1], z.sum(1), 0 * z[:, 0]], 1).view(-1, 1, 2, 2)

    model.decode = decode
    return model


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [paths.line, paths.slerp])
def test_a_path_ends_at_both_codes(path):
    a, b = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    way = path(a, 3 * b, 6)
    assert way.shape == (6, 7)
    torch.testing.assert_close(way[[0, -1]], torch.stack([a, 3 * b]))


def test_a_line_has_equal_steps():
    way = paths.line(torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]), 5)
    torch.testing.assert_close(way.diff(dim=0), torch.tensor([0.25, 0.5, 1.0]).expand(4, 3))


def test_slerp_keeps_the_norm_and_turns_evenly():
    a, b = torch.nn.functional.normalize(torch.randn(2, 9, generator=torch.Generator().manual_seed(1)), dim=1)
    way = paths.slerp(a, b, 8).double()
    torch.testing.assert_close(way.norm(dim=1), torch.ones(8).double())
    turned = (way[1:] * way[:-1]).sum(1).clamp(-1, 1).acos()
    whole = math.acos(float(a.double() @ b.double()))
    torch.testing.assert_close(turned, torch.full((7,), whole / 7).double(), rtol=1e-4, atol=0)


def test_slerp_of_a_right_angle_is_known_and_its_norm_goes_evenly():
    way = paths.slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 3)
    torch.testing.assert_close(way[1], 2 * torch.tensor([0.5, 0.5]).sqrt())


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0, 1 + 1e-7])
def test_slerp_is_a_line_where_there_is_no_plane_to_turn_in(factor):
    a = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(paths.slerp(a, factor * a, 5), paths.line(a, factor * a, 5))
    torch.testing.assert_close(paths.slerp(factor * a, a, 5), paths.line(factor * a, a, 5))


def test_four_corners_are_met_and_the_middle_is_their_mean():
    corners = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    grid = paths.between_four(corners, 5)
    assert grid.shape == (5, 5, 3)
    torch.testing.assert_close(grid[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    torch.testing.assert_close(grid[2, 2], corners.mean(0))
    torch.testing.assert_close(grid[0], paths.line(corners[0], corners[1], 5))


# --- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "cvae", "ae", "vqvae"])
def test_codes_decode_to_reconstructions_in_any_batches(make, monkeypatch, name):
    model = make(name)
    x = torch.rand(7, *model.shape)
    codes = coding.codes(model, x, labels(model, 7))
    images = coding.decode(model, codes, labels(model, 7), UNIT)
    torch.testing.assert_close(images, model.reconstruct(x, labels(model, 7)))
    monkeypatch.setattr(coding, "batch_size", lambda shape: 3)
    assert torch.equal(coding.codes(model, x, labels(model, 7)), codes) or name != "vqvae"
    torch.testing.assert_close(coding.decode(model, codes, labels(model, 7), UNIT), images)


def test_images_are_moved_to_the_unit_range(linear):
    images = coding.decode(linear, torch.tensor([[1.0, -9.0]]), None, (-1.0, 1.0))
    torch.testing.assert_close(images.flatten(), torch.tensor([0.8, 0.3, 0.35, 0.75]))
    assert coding.decode(linear, torch.tensor([[99.0, -99.0]]), None, UNIT).flatten()[:2].tolist() == [1, 0]


def test_neither_mode_nor_random_state_nor_gradients_are_touched(make):
    model = make("vae").train()
    model.encoder.eval()
    x = torch.rand(3, *model.shape)
    state = torch.get_rng_state()
    images = [coding.sample(model, 3, None, UNIT, 0), *coding.uncertainty(model, x, None, 2, UNIT, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in (model, model.decoder, model.encoder)] == [True, True, False]
    assert not any(image.requires_grad for image in images)


# --- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "cvae", "vqvae"])
def test_the_prior_is_that_of_the_models_own_samples(make, name):
    """A variant with another prior has to be told to `coding.draws`."""
    model, seen = make(name), []
    decode = model.decode
    model.decode = lambda codes, labels=None: (seen.append(codes), decode(codes, labels))[1]
    model.sample(4000)
    own, ours = seen[0].double(), torch.cat(list(coding.draws(model, 4000, 0))).double()
    assert (ours.shape, seen[0].dtype) == (own.shape, next(coding.draws(model, 1, 0)).dtype)
    spread = own.std()
    assert float((ours.mean() - own.mean()) / spread) == pytest.approx(0, abs=0.03)
    assert float(ours.std() / spread) == pytest.approx(1, abs=0.03)
    assert float(ours.flatten(1).std(0).min() / spread) > 0.9


def test_draws_are_of_the_seed_and_not_of_their_number_or_batches(make, monkeypatch):
    model = make("vae")
    whole = coding.sample(model, 600, None, UNIT, 3)
    assert torch.equal(coding.sample(model, 600, None, UNIT, 3), whole)
    torch.testing.assert_close(coding.sample(model, 5, None, UNIT, 3), whole[:5])
    assert not torch.allclose(coding.sample(model, 5, None, UNIT, 4), whole[:5])
    monkeypatch.setattr(coding, "batch_size", lambda shape: 7)
    torch.testing.assert_close(coding.sample(model, 600, None, UNIT, 3), whole)


def test_temperature_scales_the_deviation(make):
    model = make("vae")
    whole, half = (torch.cat(list(coding.draws(model, 50, 0, t))) for t in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2)


def test_classes_come_in_turn(make):
    model = make("cvae")
    images = coding.sample(model, 300, None, UNIT, 0)
    torch.testing.assert_close(images, coding.sample(model, 300, labels(model, 300), UNIT, 0))
    one = torch.tensor([1])
    torch.testing.assert_close(coding.sample(model, 300, one, UNIT, 0)[1 :: model.num_classes],
                               images[1 :: model.num_classes])  # fmt: skip


def test_without_a_prior_there_are_no_samples(make):
    with pytest.raises(UserError, match="prior"):
        coding.sample(make("ae"), 2, None, UNIT, 0)


def test_uncertainty_has_the_moments_of_the_posterior(linear):
    x = torch.tensor([[0.2, -1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    mean, deviation = coding.uncertainty(linear, x, None, 4000, UNIT, 0)
    expected = torch.tensor([[0.52, 0.4, 0.42, 0.5], [0.6, 0.7, 0.8, 0.5]])
    torch.testing.assert_close(mean.flatten(1), expected, atol=0.006, rtol=0)
    spread = torch.tensor([0.1, 0.02, 0.1 * 1.04**0.5, 0.0]).expand(2, 4)
    torch.testing.assert_close(deviation.flatten(1), spread, atol=1e-6, rtol=0.05)


def test_uncertainty_of_two_draws_is_unbiased(linear):
    """Mean variance over many images: draws - 1 degrees of freedom, not draws."""
    _, deviation = coding.uncertainty(linear, torch.zeros(4000, 1, 2, 2), None, 2, UNIT, 0)
    assert float(deviation[:, 0, 0, 0].square().mean()) == pytest.approx(0.01, rel=0.1)


def test_uncertainty_needs_a_distribution(make):
    with pytest.raises(ValueError, match="density"):
        coding.uncertainty(make("ae"), torch.rand(2, 1, 8, 8), None, 2, UNIT, 0)


# --- traversals -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "cvae", "ae"])
def test_a_traversal_passes_through_the_reconstruction(make, name):
    model = make(name)
    x = torch.rand(1, *model.shape)
    own = labels(model, 1)
    start = coding.codes(model, x, own)
    for dim in (0, 3):
        values = torch.tensor([-1.0, float(start[0, dim]), 2.0])
        images = paths.traverse(model, start, [dim], values, own, UNIT)
        assert images.shape == (1, 3, *model.shape)
        torch.testing.assert_close(images[0, 1:2], model.reconstruct(x, own))


def test_a_traversal_changes_one_dimension_to_the_value(linear):
    images = paths.traverse(linear, torch.tensor([[1.0, 2.0]]), [1, 0], torch.tensor([-1.0, 3.0]), None, UNIT)
    expected = [[[0.6, 0.4, 0.5, 0.5], [0.6, 0.8, 0.9, 0.5]], [[0.4, 0.7, 0.6, 0.5], [0.8, 0.7, 1.0, 0.5]]]
    torch.testing.assert_close(images.flatten(2), torch.tensor(expected))


def test_a_traversal_of_points_counts_deviations_from_the_centre(linear):
    scale, centre = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0])
    images = paths.traverse(linear, torch.zeros(1, 2), [1], torch.tensor([0.0, 2.0]), None, UNIT, scale, centre)
    torch.testing.assert_close(images.flatten(2)[0, :, 1], torch.tensor([0.4, 0.8]))


def test_dimensions_are_ordered_by_their_kl(linear):
    x = torch.zeros(5, 1, 2, 2)
    x[:, 0, 0, 1] = 2.0
    dims, used = paths.usage(linear, x, None)
    assert dims.tolist() == [1, 0]
    torch.testing.assert_close(used.values, torch.tensor([(4 + 0.04 - 1 - math.log(0.04)) / 2, 0.0]))


def test_points_are_ordered_by_their_variance(make):
    model = make("ae")
    x = torch.rand(20, *model.shape)
    dims, used = paths.usage(model, x, None)
    torch.testing.assert_close(used.values, coding.codes(model, x, None).var(0, unbiased=False)[dims])
    assert (used.values.diff() <= 0).all()


def test_an_interpolation_goes_from_one_reconstruction_to_the_other(make):
    model = make("cvae")
    x, own = torch.rand(2, *model.shape), torch.tensor([1, 1])
    a, b = coding.codes(model, x, own)
    for spherical in (False, True):
        images = paths.interpolate(model, a, b, 5, spherical, own[:1], UNIT)
        assert images.shape == (5, *model.shape)
        torch.testing.assert_close(images[[0, -1]], model.reconstruct(x, own))
