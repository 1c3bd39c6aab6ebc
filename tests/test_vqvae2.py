"""Models with several levels of codes: VQ-VAE-2, and a VQ-VAE whose codebook has several."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import vaelab
from tests.conftest import terms_of
from vaelab.core.errors import UserError
from vaelab.models import VQVAE, VQVAE2
from vaelab.nn.likelihoods import Gaussian
from vaelab.nn.networks import Conv
from vaelab.nn.quantizers import EMACodebook, code_counts
from vaelab.nn.quantizers.several import GroupedVQ, ResidualVQ

EMA = partial(EMACodebook, restart_after=None, decay=0.5, epsilon=1e-5)
RESIDUAL = partial(ResidualVQ, of=EMA, depth=3, shared=False, dropout=0.0)
GROUPED = partial(GroupedVQ, of=EMA, groups=2, shared=False)
NAMES = ["residual", "grouped", "two levels", "three levels"]
every_one = pytest.mark.parametrize("name", NAMES)


def made(name: str, shape=(1, 28, 28)):
    torch.manual_seed(0)
    parts = shape, None, Conv([4, 8], "relu", False, 0), Gaussian(1.0)
    if "levels" in name:
        return VQVAE2(*parts, EMA, 16, 6, 2 if name == "two levels" else 3, 0.25)
    return VQVAE(*parts, RESIDUAL if name == "residual" else GROUPED, 16, 6, 0.25)


def images(model, count=5):
    return torch.rand(count, *model.shape, generator=torch.Generator().manual_seed(1))


def started(name: str, shape=(1, 28, 28)):
    """A model whose codes lie on what its encoder makes of images."""
    from vaelab.core.batch import Batch

    model = made(name, shape).train()
    model.place(Batch(images(model, 40), None, None))
    return model


def test_the_levels_are_from_the_top_down():
    """Each is half as large as the one below it, rounded down."""
    assert [(level.name, level.shape) for level in made("three levels").layout.levels] == [
        ("top", (1, 1)),
        ("middle", (3, 3)),
        ("bottom", (7, 7)),
    ]
    assert [level.name for level in made("residual").layout.levels] == ["stage1", "stage2", "stage3"]
    assert made("two levels").layout.shape == (9 + 49,)
    assert made("grouped").layout.shape == (2 * 49,)


@every_one
def test_what_is_trained_on_is_what_is_encoded_and_decoded(name):
    """And no level is left aside: another code at any one of them is another image."""
    model = started(name)
    x = images(model)
    terms, codes = terms_of(model, x), model.encode(x).code
    assert codes.shape == (5, *model.layout.shape)
    counts = model.vectors(terms)
    for level, part in zip(model.layout.levels, model.layout.split(codes), strict=True):
        assert torch.equal(counts[f"code_counts_{level.name}"], code_counts(part, 16))
    torch.testing.assert_close(terms["reconstruction"], -model.likelihood.log_prob(model.decode(codes), x))
    for position in (0, *torch.tensor(model.layout.sizes).cumsum(0).sub(1).tolist()):
        other = codes.clone()
        other[:, position] = (other[:, position] + 1) % 16
        assert (model.decode(other) - model.decode(codes)).flatten(1).any(1).all()


@every_one
def test_codes_that_are_encoded_are_the_nearest_and_others_are_farther(name):
    model = started(name)
    x = images(model)
    codes = model.encode(x).code
    assert model.excess(codes, x).shape == (5, sum(model.layout.sizes))
    assert model.excess(codes, x).abs().max() < 1e-6
    other = model.excess((codes + 1) % 16, x)  # of a lower level another code may be the nearest, given those above
    assert (other > -1e-6).all()
    assert (other[:, : model.layout.sizes[0]] > 0).all()


@every_one
def test_fewer_levels_are_a_coarser_image(name):
    """The first alone is decoded whatever the others are, and all of them are the image that training sees."""
    model = started(name)
    codes = model.encode(images(model)).code
    others = codes.clone()
    others[:, model.layout.sizes[0] :] = 0
    assert torch.equal(model.decode(codes, levels=1), model.decode(others, levels=1))
    assert torch.equal(model.decode(codes, levels=len(model.layout.levels)), model.decode(codes))
    assert not torch.equal(model.decode(codes, levels=1), model.decode(codes))


@pytest.mark.parametrize("name", ["two levels", "three levels"])
def test_each_level_learns_from_its_own_rows(name):
    model = started(name)
    x = images(model)
    before = [book.codes.clone() for book in model.codebooks]
    terms = terms_of(model, x)
    from vaelab.core.batch import Batch

    model.learn([model.observe(Batch(x, None, None), terms)])
    rows, chosen = model.by_level(terms["quantized"]), model.by_level(terms["codes"])
    for book, codes, own, index in zip(model.codebooks, before, rows.values(), chosen.values(), strict=True):
        alone = EMA(num_embeddings=16, embedding_dim=6)
        alone.codes.copy_(codes)
        alone.cluster_sum.copy_(codes)
        alone.learn([model.observe(Batch(x, None, None), terms)._replace(rows=own, indices=index)])
        torch.testing.assert_close(book.codes, alone.codes)
        assert not torch.equal(book.codes, codes)


def test_the_bottom_is_quantised_given_the_top():
    """Another code of the top is another input of the bottom's codebook."""
    model = started("two levels")
    features = model.features(images(model))
    seen = []

    def shifted(by):
        def quantise(book, z):
            seen.append(z)
            return book.lookup(book.search(z)) + by

        return quantise

    for by in (0.0, 1.0):
        model._descend(features, shifted(by))
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[1], seen[3])


def test_perplexity_is_of_all_levels_and_of_each():
    counts = {"code_counts_top": torch.tensor([4.0, 0, 0, 0]), "code_counts_bottom": torch.full((4,), 3.0)}
    found = made("two levels").derived({}, counts)
    assert found["perplexity_top"] == pytest.approx(1)
    assert found["perplexity_bottom"] == pytest.approx(4)
    assert found["perplexity"] == pytest.approx(4**0.75)  # 12 of 16 indices have log 4 nats
    assert found["codebook_usage"] == pytest.approx(5 / 8)


def test_what_cannot_be_is_refused():
    parts = None, Conv([4, 8], "relu", False, 0), Gaussian(1.0)
    with pytest.raises(UserError, match=r"model.num_levels=3: the feature map of 2x2 can be halved 1 times: give at"):
        VQVAE2((1, 8, 8), *parts, EMA, 16, 6, 3, 0.25)
    with pytest.raises(UserError, match="codebook: each level of model=vqvae2"):
        VQVAE2((1, 28, 28), *parts, RESIDUAL, 16, 6, 2, 0.25)


# --- as its user sees it ----------------------------------------------------------------------

SMALL = ["model.num_embeddings=8", "model.embedding_dim=8", "network.hidden_dims=[8]"]
FITTED = ["prior=pixelcnn", "prior.epochs=1", "prior.channels=8", "prior.layers=2"]


RESIDUAL_WORDS = ["model=vqvae", "codebook=residual", "codebook.depth=2", "codebook.shared=true"]


@pytest.mark.parametrize("chosen", [["model=vqvae2"], RESIDUAL_WORDS])
def test_it_is_trained_given_a_prior_measured_and_sampled(train, command, monkeypatch, shared, chosen):
    """And its report is made, its codes are written and decoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    result = train(*chosen, *SMALL, *FITTED, "report=true")
    assert result.code == 0, result.err
    levels = [level.name for level in vaelab.load(result.run).layout.levels]
    for name in ("perplexity", "codebook_usage"):
        assert all(result.series(f"train/{name}_{level}") for level in levels)
    assert f'"level":"{levels[0]}"' in (result.run / "report.html").read_text()
    for name in "abc":
        Image.effect_noise((8, 8), 60).save(f"{name}.png")
    quick = ["device=cpu", "generated=100", "sections=[likelihood,codebook,samples]"]
    run = f"run={result.run}"
    for words in (
        ["eval", run, *FITTED[:1], *quick],
        ["sample", run, "device=cpu", "label=3", "n=4"],
        ["encode", run, "device=cpu", "input=.", "out=codes.npz"],
        ["decode", run, "device=cpu", "codes=codes.npz", "out=decoded"],
        ["reconstruct", run, "device=cpu"],
    ):
        code, _, err = command(*words)
        assert code == 0, (words, err)
    code, _, err = command("sample", run, "device=cpu", f"level={levels[1]}")
    assert code == 2
    assert f"level={levels[1]}: the model draws the codes of all levels at once" in err
    assert f"level=nope: the levels are {levels[0]} and {levels[1]}" in command("sample", run, "level=nope")[2]
    figures = vaelab.runs.read_evaluation(result.run, "test", "pixelcnn")["figures"]
    assert all(1 <= figures[f"codebook/perplexity_{level}"] <= 8 for level in levels)
    assert figures["codebook/codes"] == (8 if "codebook.shared=true" in chosen else 16)
    sizes = vaelab.load(result.run).layout.sizes
    assert figures["likelihood/rate_uniform_bits"] == pytest.approx(3 * sum(sizes))
    entropy = sum(n * np.log2(figures[f"codebook/perplexity_{level}"]) for n, level in zip(sizes, levels, strict=True))
    assert figures["likelihood/rate_empirical_bits"] == pytest.approx(entropy)
    assert np.log2(figures["codebook/perplexity"]) == pytest.approx(entropy / sum(sizes))
