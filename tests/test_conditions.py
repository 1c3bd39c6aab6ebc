"""Conditioning is a part: every model takes it, samples by class and is audited, or says why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import vaelab
from tests.test_conf import options
from tests.test_resume import interrupted, same_weights
from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.inference import coding
from vaelab.nn.conditions import Label, Unconditional, beside


@pytest.mark.parametrize("model", options("model"))
def test_every_model_can_be_told_the_label(train, model):
    result = train(f"model={model}", "condition=label")
    assert result.code == 0, result.err
    loaded = vaelab.load(result.run)
    assert loaded.conditional
    x, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    assert not torch.allclose(loaded.reconstruct(x, labels), loaded.reconstruct(x, (labels + 1) % 2))
    code = main(["eval", f"run={result.run}", "importance_samples=2", "gap_images=2", "generated=100", "device=cpu"])
    evaluation = json.loads((result.run / "evaluation.json").read_text())
    assert code == 0, evaluation["skipped"]
    sampled = main(["sample", f"run={result.run}", "label=1", "n=4"])
    if loaded.prior is None:
        assert "prior" in evaluation["skipped"]["conditional"]
        assert sampled == 2
    else:
        assert 0 <= evaluation["figures"]["conditional/sample_accuracy"] <= 1
        assert sampled == 0


def test_a_conditional_model_that_is_told_nothing_is_refused(train):
    result = train("model=cvae", "condition=none")
    assert result.code == 2
    assert "condition=none" in result.err


def test_labels_are_needed_to_be_told(train):
    result = train("model=vae", "condition=label", "dataset=fake", "dataset.classes=null")
    assert result.code == 2
    assert "condition=label needs labels" in result.err
    with pytest.raises(UserError, match="labels"):
        Label(None, 3)


def test_a_label_is_its_vector_and_nothing_is_nothing():
    told, untold = Label(4, 3), Unconditional(4)
    labels = torch.tensor([2, 0, 2])
    assert torch.equal(told(labels), told.embedding.weight[labels])
    assert untold(labels) is None
    assert told.in_turn(6).tolist() == [0, 1, 2, 3, 0, 1]
    assert untold.in_turn(6) is None
    with pytest.raises(ValueError, match="labels"):
        told(None)


def test_context_stands_beside_vectors_and_in_planes_behind_maps():
    context = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x, maps = torch.zeros(2, 3), torch.zeros(2, 1, 2, 2)
    assert beside(x, context)[:, 3:].equal(context)
    planes = beside(maps, context)
    assert planes.shape == (2, 3, 2, 2)
    assert (planes[:, 1:] == context[:, :, None, None]).all()
    assert beside(maps, None) is maps


def test_a_label_starts_with_a_norm_of_about_one():
    torch.manual_seed(0)
    assert Label(1000, 16).embedding.weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)


def test_a_null_stands_for_the_share_of_labels_that_was_asked_for():
    torch.manual_seed(0)
    told, labels = Label(4, 3, drop=0.3), torch.arange(4).repeat(2500)
    dropped = told.dropped(labels)
    assert (dropped == told.null).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped[dropped != 4], labels[dropped != 4])
    assert told(torch.tensor([told.null])).shape == (1, 3)
    assert told.table.shape == (4, 3)
    assert told.in_turn(6).tolist() == [0, 1, 2, 3, 0, 1]
    always = Label(4, 3)
    state = torch.get_rng_state()
    assert always.dropped(labels) is labels  # and nothing is drawn
    assert always.null is None
    assert torch.equal(torch.get_rng_state(), state)
    assert Unconditional(4).dropped(labels) is labels


def test_a_dropped_label_trains_the_null_and_is_drawn(train, monkeypatch, capsys):
    given = ["model=cvae", "condition.drop=0.5", "trainer.max_epochs=2"]
    whole = train(*given)
    assert whole.code == 0, whole.err
    cut = interrupted(train, monkeypatch, "on_train_batch_end", 4, *given).run
    assert train(f"resume={cut}", "~callbacks.stop").code == 0
    assert same_weights(cut, whole.run)
    model = vaelab.load(whole.run)
    null = model.condition.null
    assert main(["sample", f"run={whole.run}", "label=unknown", "n=8", "out=made.npz"]) == 0
    with np.load("made.npz") as made:
        assert "labels" not in made
        wanted = coding.sample(model, 8, torch.tensor([null]), (0.0, 1.0), 0)
        assert abs(made["images"][..., 0] / 255 - wanted[:, 0].numpy()).max() < 0.51 / 255
    assert main(["sample", f"run={whole.run}", "label=unknown", "n=8", "out=made/", "class_folders=true"]) == 2
    capsys.readouterr()
    assert main(["sample", f"run={whole.run}", "label=unknwon"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(", or unknown")


def test_a_model_that_was_always_told_the_label_knows_no_null(finished, capsys):
    run = finished("model=cvae").run
    assert main(["sample", f"run={run}", "label=unknown"]) == 2
    assert "label=unknown: the model was always told one: train with condition.drop=0.1" in capsys.readouterr().err
