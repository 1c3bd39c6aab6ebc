"""The model that completes images: what it is told, what it counts, and that it reaches the best linear completion."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.conftest import fit
from tests.test_conf import composed
from vaelab import load
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.inference import coding
from vaelab.models.quadrants import KEPT, Quadrants, quadrants
from vaelab.nn.gaussian import kl_of_normals
from vaelab.nn.likelihoods import GaussianLearned
from vaelab.nn.networks import MLP
from vaelab.nn.posteriors import DiagonalGaussian

SHAPE = (2, 6, 5)


def made(seen=2, *more, shape=SHAPE):
    torch.manual_seed(0)
    config = composed("model=quadrants", f"model.seen={seen}", "model.latent_dim=3", "network.hidden_dims=[8]", *more)
    return build(config["model"], shape=shape, num_classes=3).eval()


def images(count=10, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_quadrants_are_given_from_the_bottom_left_clockwise(seen):
    mask = quadrants((1, 6, 5), seen)[0]
    corners = [mask[-1, 0], mask[0, 0], mask[0, -1], mask[-1, -1]]
    assert [bool(corner) for corner in corners] == [place < seen for place in range(4)]
    areas = [3 * 2, 3 * 2, 3 * 3]
    assert mask.sum() == sum(areas[:seen])


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_the_unseen_pixels_alone_are_counted(seen):
    model, x = made(seen), images()
    raw = torch.randn(10, *SHAPE)
    density = model.likelihood.log_density(raw, x)
    torch.testing.assert_close(model.likelihood.log_prob(raw, x), density[:, ~model.given].sum(1))
    other = torch.where(model.given, torch.rand(x.shape), x)
    torch.testing.assert_close(model.likelihood.log_prob(raw, other), model.likelihood.log_prob(raw, x))
    assert model.likelihood.dimensions(SHAPE) == int((~model.given).sum())


def test_the_code_is_the_seen_pixels_and_z():
    model, x = made(), images()
    posterior = model.encode(x)
    part, z = model.layout.split(posterior.code)
    assert torch.equal(part, x[:, model.given])
    assert torch.equal(z, posterior.mean)
    assert torch.equal(model.prior.image(posterior.code)[:, model.given], part)
    assert (model.prior.image(posterior.code)[:, ~model.given] == 0).all()
    torch.testing.assert_close(model.reconstruct(x)[:, model.given], x[:, model.given].clamp(1e-3, 1 - 1e-3))


def test_prior_and_decoder_are_told_the_seen_pixels_and_no_others():
    model, x = made(), images(4)
    noise = model.noise(4)
    unseen = torch.where(model.given, x, 1 - x)
    seen = torch.where(model.given, 1 - x, x)
    of = [model.prior.of_z(model.encode(images).code).mean for images in (x, unseen, seen)]
    assert torch.equal(of[0], of[1])
    assert not torch.allclose(of[0], of[2])
    assert not torch.allclose(model.encode(x).mean, model.encode(unseen).mean)
    z = model.encode(x).rsample(noise)
    changed = torch.cat([1 - z[:, : model.prior.size], z[:, model.prior.size :]], 1)
    assert (model.decode(z) - model.decode(changed))[:, ~model.given].abs().min(1).values.max() > 0


def test_the_kl_is_that_of_two_normals():
    torch.manual_seed(0)
    q, p = (DiagonalGaussian(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(2))
    wanted = kl_divergence(*(Normal(g.mean, (0.5 * g.logvar).exp()) for g in (q, p)))
    torch.testing.assert_close(kl_of_normals(q.mean, q.logvar, p.mean, p.logvar), wanted)


def test_samples_complete_parts_that_are_kept_of_the_first_batch():
    model, x = made(), images(20)
    model.place(Batch(x))
    model.place(Batch(1 - x))
    kept = x[:KEPT, model.given].clamp(1e-3, 1 - 1e-3)
    samples = model.sample(2 * KEPT)
    torch.testing.assert_close(samples[:, model.given], kept.repeat(2, 1))
    assert not torch.allclose(samples[:KEPT, ~model.given], samples[KEPT:, ~model.given])
    again = made()
    again.load_state_dict(model.state_dict())
    again.place(Batch(1 - x))  # a resumed run keeps them
    assert torch.equal(again.prior.parts, model.prior.parts)


def test_a_row_of_samples_completes_one_part_by_draws_of_z_given_it():
    model, x = made(), images(20)
    model.place(Batch(x))
    prior, size = model.prior, model.prior.size
    codes = prior.sample(2 * KEPT)
    rows = coding.share_rows(prior, codes, model.layout.span("z").start, KEPT)
    for row, part in zip(rows.split(KEPT), prior.parts, strict=False):
        assert torch.equal(row[:, :size], part.expand(KEPT, -1))
    own, other = prior.of_z(codes), prior.of_z(rows)
    assert (own.mean - other.mean).abs().max() > 0.01
    noise = [((z[:, size:] - of.mean) / (0.5 * of.logvar).exp()) for z, of in ((codes, own), (rows, other))]
    torch.testing.assert_close(*noise)
    assert torch.equal(coding.share_rows(prior, codes, 0, KEPT), codes)


def test_a_share_of_training_images_is_told_no_part():
    model, x = made(2, "model.drop=0.25"), images(4000)
    shown = model.untold(Batch(x)).images
    hidden = shown.isnan().flatten(1).any(1)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    assert torch.equal(shown[~hidden], x[~hidden])
    assert (shown[hidden].isnan() == model.given).all()
    torch.testing.assert_close(shown[hidden][:, ~model.given], x[hidden][:, ~model.given])
    plain = made(2)
    assert plain.untold(Batch(x)).images is x
    both = made(2, "model.drop=0.25", "condition=label", "condition.drop=1")
    labels = both.untold(Batch(x, torch.zeros(4000, dtype=torch.int64))).labels
    assert (labels == both.condition.null).all()


def test_the_null_is_a_part_of_zeros_that_is_told_from_black():
    model, x = made(2, "model.drop=0.25"), images(4)
    null, black = (x.masked_fill(model.given, value) for value in (torch.nan, 0.0))
    parts = [model.layout.split(model.encode(images).code)[0] for images in (x, black, null)]
    assert torch.equal(parts[0], torch.cat([x[:, model.given], torch.ones(4, 1)], 1))
    assert torch.equal(parts[1][:, -1], torch.ones(4))
    assert torch.equal(parts[2], torch.zeros_like(parts[2]))
    assert torch.equal(parts[1][:, :-1], parts[2][:, :-1])
    told, untold = (model.prior.of_z(part) for part in parts[1:])
    assert (told.mean - untold.mean).abs().min() > 0
    terms = model.terms(Batch(null), model.noise(4))
    assert all(term.isfinite().all() for term in terms.values())
    model.objective(terms).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_the_last_part_that_samples_complete_is_the_null():
    model, x = made(2, "model.drop=0.25"), images(20)
    model.place(Batch(x))
    assert torch.equal(model.prior.parts[:-1, :-1], x[: KEPT - 1, model.given])
    assert (model.prior.parts[:-1, -1] == 1).all()
    assert (model.prior.parts[-1] == 0).all()


def test_a_run_that_hides_most_parts_keeps_parts_that_are_seen(train):
    result = train("model=quadrants", "model.drop=0.9")
    assert result.code == 0, result.err
    parts = load(result.run).prior.parts
    assert (parts[:-1, -1] == 1).all()
    assert (parts[-1] == 0).all()


class Linear(Quadrants):
    """The model with linear parts, of images of a Gaussian of 16 correlated pixels."""

    def __init__(self, seen, drop=0.0):
        network = MLP(hidden_dims=[], activation="relu", norm="none")
        super().__init__((1, 4, 4), None, network, GaussianLearned(0.5), 2, seen, drop=drop)
        generator = torch.Generator().manual_seed(5)
        self.loadings = torch.randn(16, 5, generator=generator) / 2

    def images(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        factors = torch.randn(count, 5, generator=generator)
        noise = 0.5 * torch.randn(count, 16, generator=generator)
        return (factors @ self.loadings.T + noise).view(-1, 1, 4, 4)

    def optimum(self):
        """The greatest mean log p(unseen | seen), nats: probabilistic PCA of what regression leaves of the unseen.

        Of all of the unseen, where nothing is seen of any image.
        """
        covariance = (self.loadings @ self.loadings.T + 0.25 * torch.eye(16)).double()
        given = self.given.flatten()
        cross, left = covariance[~given][:, given], covariance[~given][:, ~given]
        if self.drop < 1:
            left = left - cross @ torch.linalg.solve(covariance[given][:, given], cross.T)
        values = torch.linalg.eigvalsh(left).flip(0)
        top, noise, count = values[:2], values[2:].mean(), len(values)
        logs = top.log().sum() + (count - 2) * noise.log()
        return -0.5 * (count * math.log(2 * math.pi) + logs + count).item()


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_a_linear_model_reaches_the_best_linear_completion_and_no_more(drop):
    torch.manual_seed(0)
    model = Linear(2, drop)
    fit(model, model.parameters(), 500)
    with torch.no_grad():
        terms = model.terms(model.untold(Batch(model.images(20_000, 1))), model.noise(20_000))
    elbo = -(terms["reconstruction"] + terms["kl"])
    error = 4 * elbo.std().item() / math.sqrt(len(elbo))
    assert elbo.mean().item() < model.optimum() + error
    assert elbo.mean().item() > model.optimum() - 0.15 - error


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 16, 1)])
def test_what_is_no_image_has_no_quadrants(shape):
    with pytest.raises(UserError, match=r"model=quadrants: .* has no quadrants"):
        quadrants(shape, 1)


def test_refusals_name_the_key(train):
    result = train("model=quadrants", "dataset.image_shape=[1,1,16]")
    assert result.code == 2
    assert "model=quadrants: 1x16 has no quadrants" in result.err
    assert "Traceback" not in result.err
    result = train("model=quadrants", "model.seen=4")
    assert result.code == 2
    assert "model.seen=4" in result.err
    assert "prior=gmm: Quadrants draws z given what is seen" in train("model=quadrants", "prior=gmm").err


def test_runs_that_see_different_parts_are_not_ranked(finished, capsys):
    from vaelab.cli import main

    runs = [finished(*words).run for words in (["model=vae"], ["model=quadrants"])]
    assert main(["compare", *map(str, runs)]) == 0
    assert "part of the image" in capsys.readouterr().out
