"""Conditions on several attributes and on a continuous vector: their laws, and what a user does with them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

import vaelab
from tests.test_conf import ATTRIBUTES, composed, options
from tests.test_ppca import density
from vaelab.cli import main
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.likelihood import importance_weighted
from vaelab.nn.conditions import Attributes, Vector

NAMES = ["one", "two", "three"]
KNOWN = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30.0, 0.0]) + 5


def vector(drop: float = 0.0) -> Vector:
    made = Vector(None, NAMES, drop)
    made.start_from(lambda: KNOWN, lambda: KNOWN[:40])
    return made


def attributes(names: list[str] = NAMES, drop: float = 0.0) -> Attributes:
    return Attributes(None, names, drop)


def refuse(label):
    raise AssertionError("no class is asked for")


# --- laws ---------------------------------------------------------------------------------------


def test_a_vector_is_told_standardised_by_the_labels_to_train_on():
    told = vector()(KNOWN)
    assert told.mean(0) == pytest.approx(torch.zeros(3), abs=1e-5)
    assert told[:, :2].std(0, correction=0) == pytest.approx(torch.ones(2), abs=1e-5)
    assert (told[:, 2] == 0).all()  # a number that never changes


def test_attributes_are_told_as_plus_and_minus_one():
    assert attributes()(torch.tensor([[0.0, 1.0, 1.0]])).tolist() == [[-1, 1, 1]]


@pytest.mark.parametrize("made", [vector(0.3), attributes(drop=0.3)], ids=["vector", "attributes"])
def test_the_null_is_told_as_zeros_and_is_not_the_mean(made):
    torch.manual_seed(0)
    labels = (KNOWN > 5).float().repeat(20, 1)
    dropped = made.dropped(labels)
    gone = dropped.isnan().all(1)
    assert gone.double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped[~gone], labels[~gone])
    assert made(dropped[gone]).abs().max() == 0
    told = made(labels)
    assert told.shape == (len(labels), made.size)
    assert (told[:, -1] == 1).all()


@pytest.mark.parametrize("made", [vector(), attributes()], ids=["vector", "attributes"])
def test_without_drop_nothing_is_dropped_or_drawn_and_there_is_no_null(made):
    state = torch.get_rng_state()
    assert made.dropped(KNOWN) is KNOWN
    assert torch.equal(torch.get_rng_state(), state)
    assert made.null is None
    assert made.size == 3


def test_labels_in_turn_are_those_of_held_out_images():
    made = vector()
    held_out = {tuple(row) for row in KNOWN[:40].tolist()}
    assert {tuple(row) for row in made.in_turn(300).tolist()} == held_out


def test_a_linear_cvae_reaches_the_density_of_x_given_c_in_closed_form():
    """Of x = A c + W z + noise: the best is a regression on c, with pPCA of what it leaves; never above it."""
    rows, columns = 500, 5
    dice = np.random.default_rng(0)
    c = dice.normal(size=(rows, 2)) * [1, 20] + [3, -50]
    x = ((c - [3, -50]) / [1, 20]) @ dice.normal(size=(2, columns)) + dice.normal(size=(rows, 1)) @ dice.normal(
        size=(1, columns)
    )
    x += 0.4 * dice.normal(size=x.shape)
    design = np.c_[c, np.ones(rows)]
    left = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    values, vectors = np.linalg.eigh(left.T @ left / rows)
    noise, top = values[:-1].mean(), vectors[:, -1:]
    best = density(left, np.zeros(columns), top @ top.T * (values[-1] - noise) + noise * np.eye(columns))

    config = composed(
        *("model=cvae", "condition=vector", "condition.names=[a,b]", "network=mlp", "network.hidden_dims=[]"),
        *("model.latent_dim=1", "likelihood=gaussian_learned"),
    )
    torch.manual_seed(0)
    model = build(config["model"], shape=(1, 1, columns), num_classes=None)
    images, labels = (torch.from_numpy(values).float() for values in (x[:, None, None], c))
    model.condition.start_from(lambda: labels, lambda: labels)
    model.start_from(images.mean(0), images.std().item(), rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        model.objective(model.terms(Batch(images, labels), model.noise(rows))).backward()
        optimizer.step()
    bound = importance_weighted(model, images, labels, 200, 2**24, torch.Generator().manual_seed(0))
    assert best - 0.05 < bound.log_p_hat.mean().item() < best + 0.02


def images_of(labels: np.ndarray) -> np.ndarray:
    """Images whose rows are bright where the attribute of that number is 1."""
    noise = np.random.default_rng(1).integers(0, 40, (len(labels), 3, 4))
    return (200 * labels[:, :, None] + noise).astype(np.uint8)


def test_the_order_of_attributes_changes_nothing_in_what_they_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.random.default_rng(0).integers(0, 2, (400, 3))
    for order in ([0, 1, 2], [2, 0, 1]):
        data = {"x": images_of(labels), "labels": labels[:, order], "label_names": np.array(NAMES)[order]}
        run = vaelab.train(data, model="cvae", condition="attributes", max_epochs=12, lr=0.003, report=False)
        assert run.model.condition.names == [NAMES[i] for i in order]
        for number, name in enumerate(NAMES):
            rows = run.sample(8, [name]).mean((0, 1, 3))
            assert rows.argmax() == number
            assert rows[number] > 0.6 > 0.4 > rows.sort().values[-2]


@pytest.mark.parametrize("model", options("model"))
def test_every_model_is_told_attributes_or_says_that_it_needs_classes(train, model):
    result = train(f"model={model}", "condition=attributes", ATTRIBUTES)
    if result.code == 2:
        assert "needs labels that are classes" in result.err
        return
    assert result.code == 0, result.err
    loaded = vaelab.load(result.run)
    x, labels = torch.rand(6, 1, 8, 8), (torch.arange(18) % 2).float().view(6, 3)
    assert not torch.allclose(loaded.reconstruct(x, labels), loaded.reconstruct(x, 1 - labels))
    assert main(["reconstruct", f"run={result.run}"]) == 0
    assert main(["sample", f"run={result.run}", "label=[one]", "n=4"]) == (2 if loaded.prior is None else 0)


# --- what a user asks for -----------------------------------------------------------------------


def test_a_label_is_asked_for_by_names_or_numbers():
    assert attributes().read(["three", "ONE"], refuse).tolist() == [[1, 0, 1]]
    assert attributes().read("two", refuse).tolist() == [[0, 1, 0]]
    assert attributes().read([], refuse).tolist() == [[0, 0, 0]]
    assert attributes().read([0, 1, 1], refuse).tolist() == [[0, 1, 1]]
    assert vector().read([0.5, -3, 2], refuse).tolist() == [[0.5, -3, 2]]
    for made in (attributes(), vector()):  # what is shown as an example is taken
        asked = re.findall(r"[\w.]+", made.example.removeprefix("label="))
        assert made.read([float(a) if a.isdecimal() else a for a in asked], refuse).shape == (1, 3)


@pytest.mark.parametrize(
    ("made", "label", "said"),
    [
        (attributes(), ["one", "tow"], r"label=\[one,tow\]: no attribute is called tow; there is two"),
        (attributes(), [0, 1], r"label=\[0,1\]: give 3 numbers"),
        (attributes(), [0, 2, 1], "attributes are 0 or 1"),
        (vector(), [1.0], r"label=\[1\.0\]: give 3 numbers, as in label=\[0,0,0\]: one, two, three"),
        (vector(), "one", "label=one: give 3 numbers"),
        (vector(), [1, 2, math.nan], "give 3 numbers"),
    ],
)
def test_a_label_that_cannot_be_is_refused(made, label, said):
    with pytest.raises(UserError, match=said):
        made.read(label, refuse)


def test_a_run_is_sampled_reconstructed_and_evaluated(finished, capsys):
    run = finished("model=cvae", "condition=attributes", ATTRIBUTES, "condition.drop=0.2").run
    for label in ("[one,three]", "one", "[1,0,0]", "unknown"):
        assert main(["sample", f"run={run}", f"label={label}", "n=4", "out=made.npz"]) == 0, label
        with np.load("made.npz") as made:
            assert made["images"].shape == (4, 8, 8, 1)
            assert ("labels" in made) == (label != "unknown")
    assert main(["sample", f"run={run}", "n=4", "out=made.npz"]) == 0
    assert "of labels as the data have them" in capsys.readouterr().out
    with np.load("made.npz") as made:
        assert set(made["labels"].flatten()) <= {0, 1}
        assert made["labels"].shape == (4, 3)
    for command in ("reconstruct", "traverse", "interpolate"):
        assert main([command, f"run={run}"]) == 0
    assert main(["traverse", f"run={run}", "image=null"]) == 2
    assert "give label=[one,two]" in capsys.readouterr().err
    assert main(["eval", f"run={run}", "importance_samples=2", "gap_images=2", "device=cpu"]) == 0
    skipped = json.loads((run / "evaluation.json").read_text())["skipped"]
    assert "classes" in skipped["conditional"]
    assert "classes" in skipped["labels"]


def test_codes_of_own_images_are_encoded_and_decoded_with_a_label(finished, capsys):
    run = finished("model=cvae", "condition=attributes", ATTRIBUTES, "condition.drop=0.2").run
    assert main(["sample", f"run={run}", "n=3", "out=made/"]) == 0
    assert main(["encode", f"run={run}", "input=made", "out=codes.npz"]) == 2
    assert "give label=[one,two]" in capsys.readouterr().err
    assert main(["encode", f"run={run}", "input=made", "out=codes.npz", "label=two"]) == 0
    with np.load("codes.npz") as codes:
        assert codes["labels"].tolist() == [[0, 1, 0]] * 3
    assert main(["decode", f"run={run}", "codes=codes.npz", "out=back"]) == 0
    assert main(["score", f"run={run}", "input=made", "label=[]", "importance_samples=2"]) == 0


def test_a_model_that_was_always_told_the_attributes_knows_no_null(finished, capsys):
    run = finished("model=cvae", "condition=attributes", ATTRIBUTES).run
    assert main(["sample", f"run={run}", "n=4", "out=made/", "class_folders=true"]) == 2
    assert "leave it out, or train condition=label" in capsys.readouterr().err
    assert main(["sample", f"run={run}", "label=unknown"]) == 2
    assert "label=unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["model=cvae", "condition=vector"],
            "condition=vector needs labels that are vectors, [N, A], and this data set",
        ),
        (["model=cvae", "condition=attributes", "dataset.classes=null"], "and this data set has no labels"),
        (["model=cvae", ATTRIBUTES], "condition=attributes or condition=vector"),
        (["model=vae", "condition=vector", "condition.names=[a,b]"], "classes, which condition=label tells"),
        (["model=vae", "condition=vector", "condition.names=[a]", ATTRIBUTES], "condition.names: 1 of them"),
        (
            ["model=vae", "condition=vector", "condition.names=[a]", "dataset.classes=null"],
            "condition.names: 1 of them",
        ),
        (["model=m2", "condition=vector", ATTRIBUTES], "model=m2 needs labels that are classes"),
        (["model=vae", "dataset.balance=true", ATTRIBUTES], "these data have no classes"),
    ],
)
def test_what_does_not_go_together_is_refused(train, arguments, said):
    result = train(*arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_learned_prior_of_pseudo_inputs_keeps_the_vectors_of_their_images(train):
    result = train("model=cvae", "condition=vector", ATTRIBUTES, "prior=vamp", "prior.components=4")
    assert result.code == 0, result.err
    assert vaelab.load(result.run).prior.pseudo_labels.shape == (4, 3)


def test_pseudo_inputs_that_are_fitted_afterwards_have_vectors_too(finished, capsys):
    run = finished("model=cvae", "condition=attributes", ATTRIBUTES, "condition.drop=0.2").run
    assert main(["prior", f"run={run}", "prior=vamp", "prior.components=4", "prior.epochs=1", "device=cpu"]) == 0
    assert vaelab.load(run, prior="vamp").prior.pseudo_labels.shape == (4, 3)
    assert main(["sample", f"run={run}", "prior=vamp", "label=one", "n=4", "out=made.npz"]) == 0


# --- data ---------------------------------------------------------------------------------------


def test_vectors_come_from_python_with_arrays_and_with_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    x, c = dice.integers(0, 255, (60, 8, 8), dtype=np.uint8), dice.normal(size=(60, 2)).astype(np.float32)
    for data, labels in ((x, c), (list(zip(x, c, strict=True)), None)):
        run = vaelab.train(data, labels, model="cvae", condition="vector", max_epochs=1, report=False)
        assert run.model.condition.names == ["label_0", "label_1"]
        assert run.sample(3, [0.5, 1]).shape == (3, 1, 8, 8)
        assert run.reconstruct(x[:3], c[:3]).shape == (3, 1, 8, 8)
        assert torch.equal(run.encode(x[:3], [0.5, 1]), run.encode(x[:3], [[0.5, 1]] * 3))
        with pytest.raises(UserError, match="2 for 3 examples"):
            run.encode(x[:3], c[:2])


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"labels": np.full((40, 2), np.nan)}, [], "labels holds NaN"),
        ({"labels": np.full((40, 2), 0.5)}, ["condition=attributes"], "attributes are 0 or 1, and label_0 is 0.5"),
        ({"labels": np.zeros((40, 2))}, ["dataset.label_names=[a]"], "1 name for 2 numbers"),
        ({"labels": np.zeros(40, int)}, ["dataset.label_names=[a]"], "are no vectors"),
        (
            {"labels": np.zeros((40, 2)), "test_x": np.zeros((9, 8, 8)), "test_labels": np.zeros((9, 3))},
            [],
            "make them alike",
        ),
    ],
)
def test_labels_of_arrays_that_cannot_be_are_refused(train, tmp_path, arrays, options, said):
    np.savez(tmp_path / "x.npz", **({"x": np.random.default_rng(0).random((40, 8, 8))} | arrays))
    result = train("model=vae", "dataset=arrays", f"dataset.root={tmp_path / 'x.npz'}", *options, small=False)
    assert result.code == 2
    assert said in result.err


def test_a_model_without_condition_trains_on_data_whose_labels_are_vectors(train):
    result = train("model=vae", ATTRIBUTES, "report=true")
    assert result.code == 0, result.err
    assert main(["eval", f"run={result.run}", "importance_samples=2", "gap_images=2", "device=cpu"]) == 0


def test_a_prepared_file_holds_vectors_and_their_names(train):
    keys = ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=60", ATTRIBUTES]
    assert main(["data", "prepare", *keys, "out=x.vaelab"]) == 0
    told = ["model=cvae", "condition=attributes", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    result = train(*told, "dataset=prepared", "dataset.root=x.vaelab", small=False)
    assert result.code == 0, result.err
    model = vaelab.load(result.run)
    assert model.condition.names == NAMES
    assert set(model.condition.rows.flatten().tolist()) == {0, 1}
