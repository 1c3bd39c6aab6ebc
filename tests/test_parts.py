"""Every option of a part of a model is trained, resumed, evaluated, drawn and exported; a new one by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vaelab
from tests.test_conf import condition, in_training, options, with_part
from tests.test_evaluate import QUICK, assert_measured
from tests.test_gallery import assert_drawn
from tests.test_resume import interrupted, same_weights
from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.evaluation import sections
from vaelab.models import VAE
from vaelab.nn.conditions import Unconditional
from vaelab.nn.posteriors import Diagonal

GROUPS = ("codebook", "posterior", "prior", "condition")
FEWER = {
    "posterior=planar": "posterior.layers=2",
    "posterior=spline": "posterior.transforms=1",
    "codebook=residual": "codebook.depth=2",
    "codebook=grouped": "codebook.groups=2",
}
"""Words that make an option smaller which is the same several times over: its export takes a second for each."""


def words() -> list[list[str]]:
    """For each option, the words that choose it, with the first model that takes it.

    A model takes a part if it names the group. An option without a class, `none`, is what models without it have;
    one that is the model's own is there with the model, and a prior that no model trains with is not there.
    """
    texts = {model: (CONF / "model" / f"{model}.yaml").read_text() for model in options("model")}
    found = [[f"model={model}"] for model in texts]
    for group in GROUPS:
        taking = [model for model, text in texts.items() if f"${{{group}}}" in text]
        with_class = [o for o in options(group) if "_target_" in (CONF / group / f"{o}.yaml").read_text()]
        with_class = [o for o in with_class if group != "prior" or in_training(o)]
        own = f"override /{group}@_global_.{group}: "
        more = [option for option in with_class if own + option not in texts[taking[0]]]
        if group in ("posterior", "prior"):  # some go with no other than those of one model
            more = [option for option in more if f"{group}={option}" in with_part(group, option)]
        found += [
            [f"model={taking[0]}", *(condition(option) if group == "condition" else [f"{group}={option}"])]
            for option in more
        ]
    return found


every_option = pytest.mark.parametrize("words", words(), ids=" ".join)


def computed(model: Any) -> tuple[Any, ...]:
    """What the encoder and the decoder in an export are made of; many variants are a VAE with another objective."""
    return type(model).encode, type(model).decode, type(getattr(model, "posterior", None)), type(model.condition)


def trained(train, words: list[str], *more: str) -> Path:
    """The folder of a run with these words; the test is skipped if they need an extra that is not installed."""
    result = train(*words, *more)
    if "needs another package" in result.err:
        pytest.skip(result.err)
    assert result.code == 0, result.err
    return result.run


def test_a_model_takes_the_options_that_stand_for_no_part(train):
    assert train("model=ae", *(f"{group}=none" for group in GROUPS)).code == 0


@every_option
def test_it_trains_and_goes_on_exactly_after_an_interruption(train, monkeypatch, words):
    whole = trained(train, words, "trainer.max_epochs=3")
    cut = interrupted(train, monkeypatch, "on_train_batch_end", 4, *words, "trainer.max_epochs=3").run
    resumed = train(f"resume={cut}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(cut, whole)
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("parsed_once")
@every_option
def test_it_is_evaluated_drawn_and_exported(train, capsys, monkeypatch, shared, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    monkeypatch.setattr(sections, "GAP_STEPS", 5)  # of 100, each through a flow
    smaller = (FEWER[word] for word in words if word in FEWER)
    run = trained(train, words, "dataset.size=400", "dataset.classes=5", *smaller)

    assert main(["eval", f"run={run}", *QUICK]) == 0, capsys.readouterr().err
    assert capsys.readouterr().err == ""
    assert_measured(run, words)

    assert main(["report", f"run={run}", "device=cpu"]) == 0
    assert "could not be" not in capsys.readouterr().out
    assert_drawn(run)

    own = vaelab.load(run)
    onnx = words == ["model=vae"] or computed(own) != (VAE.encode, VAE.decode, Diagonal, Unconditional)
    assert main(["export", f"run={run}", f"onnx={str(onnx).lower()}", "out=export"]) == 0, capsys.readouterr().err
    exported = vaelab.load("export")
    x, labels = torch.rand(5, *own.shape), own.in_turn(5)
    assert torch.equal(exported.reconstruct(x, labels), own.reconstruct(x, labels))
