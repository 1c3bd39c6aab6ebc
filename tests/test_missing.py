"""Values that are missing: NaN in the data, 0 for an encoder, nothing for a likelihood."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import vaelab
from tests.test_contract import PARTS, batch, made, placed
from vaelab.cli import main


def holed(missing: float = 0.3, model=None):
    """A batch of images with holes, and where they are; with such labels as a model takes."""
    whole = batch(model=model)
    holes = torch.rand(whole.images.shape, generator=torch.Generator().manual_seed(3)) < missing
    return whole._replace(images=whole.images.masked_fill(holes, math.nan)), holes


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_every_variant_learns_from_images_with_holes(parts):
    """Terms and gradients are finite; what is reconstructed there has a value."""
    model = placed(made(*parts))
    model.likelihood.missing = True
    images, holes = holed(model=model)
    terms = model.terms(images, model.noise(6))
    assert all(term.isfinite().all() for term in terms.values())
    model.objective(terms).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    filled = model.eval().reconstruct(images.images, images.labels)
    assert filled[holes].isfinite().all()


def test_a_model_that_was_not_told_of_holes_does_not_take_them_for_values():
    model = placed(made("model=vae"))
    assert not model.objective(model.terms(holed()[0], model.noise(6))).isfinite()


def test_an_array_with_holes_trains_is_loaded_and_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).random((60, 8))
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    x[:, 0] = np.arange(60) / 60
    np.save("x.npy", x)
    words = ["train", "dataset=arrays", "dataset.root=x.npy", "likelihood=gaussian_learned", "trainer.max_epochs=2"]
    assert main([*words, "report=false", "run.dir=refused"]) == 2
    assert "dataset.missing=mask" in capsys.readouterr().err
    assert main([*words, "report=false", "run.dir=run", "dataset.missing=mask", "dataset.batch_size=16"]) == 0
    assert main(["export", "run=run"]) == 0
    seen = torch.from_numpy(x[:5]).float()[:, None, None]
    own, exported = vaelab.load("run"), vaelab.load(Path("run/export"))
    assert own.likelihood.missing
    assert torch.equal(own.reconstruct(seen), exported.reconstruct(seen))
    assert own.reconstruct(seen).isfinite().all()
