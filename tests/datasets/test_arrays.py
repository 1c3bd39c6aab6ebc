"""dataset=arrays: a user's own arrays of numbers, of any depth and in any usual order of axes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vaelab
from tests.test_conf import composed
from vaelab.cli import main
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.core.errors import UserError

QUICK = ["dataset=arrays", "trainer.max_epochs=1", "trainer.accelerator=cpu", "report=false"]


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def opened(path: Path, *more: str) -> Any:
    """The data set of a file, set up."""
    data = build(composed("dataset=arrays", f"dataset.root={path}", "dataset.val_size=0", *more)["dataset"])
    data.setup()
    return data


def saved(folder: Path, *arrays: np.ndarray, **named: np.ndarray) -> Path:
    path = folder / ("x.npy" if arrays else "x.npz")
    np.save(path, arrays[0]) if arrays else np.savez(path, **named)
    return path


def everything(data: Any) -> torch.Tensor:
    """All images as the model sees them: those to train on, then those to test on."""
    parts = [split.batch(torch.arange(len(split))) for split in (data.train, data.test)]
    return torch.cat([data.as_model_sees(part).images for part in parts])


@pytest.mark.parametrize(
    ("layout", "shape", "seen"),
    [
        (None, (9, 5), (1, 1, 5)),
        (None, (9, 4, 6), (1, 4, 6)),
        (None, (9, 3, 8, 6), (3, 8, 6)),
        (None, (9, 8, 6, 3), (3, 8, 6)),
        ("nhwc", (9, 3, 6, 3), (3, 3, 6)),
        ("nchw", (9, 2, 5, 6), (2, 5, 6)),
        ("ncl", (9, 2, 7), (2, 1, 7)),
        ("nlc", (9, 7, 2), (2, 1, 7)),
    ],
)
def test_axes_become_those_of_images(tmp_path, layout, shape, seen):
    """Each value stands where it stood: the axes are moved, and not reshaped."""
    x = values(*shape)
    test = values(2, *shape[1:], seed=1)
    data = opened(saved(tmp_path, x=x, test_x=test), *([f"dataset.layout={layout}"] if layout else []))
    assert data.shape == seen
    back = {"nhwc": (0, 2, 3, 1), "nlc": (0, 2, 3, 1)}.get(layout or ("nhwc" if shape[-1] == 3 else ""), (0, 1, 2, 3))
    found = data.as_model_sees(data.train.batch(torch.arange(9))).images.permute(back).reshape(shape)
    np.testing.assert_array_equal(found.numpy(), x)


@pytest.mark.parametrize(
    ("array", "given", "expected"),
    [
        (np.uint8([0, 51, 255]), "", [0, 0.2, 1]),
        (np.uint16([0, 13107, 65535]), "", [0, 0.2, 1]),
        (np.array([0, 13107, 65535], ">u2"), "", [0, 0.2, 1]),
        (np.uint16([0, 819, 4095]), "dataset.value_range=[0,4095]", [0, 0.2, 1]),
        (np.uint8([0, 51, 255]), "dataset.value_range=[0,510]", [0, 0.1, 0.5]),
        (np.array([False, True, True]), "", [0, 1, 1]),
        (np.float16([0.25, 0.5, 1]), "", [0.25, 0.5, 1]),
        (np.float64([-2, 0, 8]), "", [0, 0.2, 1]),
        (np.float64([1e9, 1e9 + 1, 1e9 + 5]), "", [0, 0.2, 1]),
        (np.float16([-60000, 0, 60000]), "", [0, 0.5, 1]),
        (np.int64([-2, 0, 8]), "", [0, 0.2, 1]),
        (np.float32([3, 3, 3]), "", [0, 0, 0]),
        (np.float32([-1, 0, 1]), "dataset.value_range=[-2,2] dataset.pixel_range=[-2,2]", [-1, 0, 1]),
    ],
)
def test_every_type_of_number_keeps_its_values(tmp_path, array, given, expected):
    data = opened(saved(tmp_path, np.tile(array, (10, 1))), *given.split())
    torch.testing.assert_close(everything(data), torch.tensor(expected).float().expand(10, 1, 1, 3))


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_16_bits_stay_16_bits_in_memory_and_from_the_file(tmp_path, storage):
    x = np.arange(40_000).astype(np.uint16).reshape(10, 50, 80)
    data = opened(saved(tmp_path, x), f"dataset.storage={storage}")
    assert data.train.batch(torch.arange(2)).images.dtype == torch.uint16
    assert data.train.nbytes == 9 * 8_000
    assert len(everything(data).unique()) == 40_000
    assert set((everything(data).double() * 65535).round().long().flatten().tolist()) == set(range(40_000))


def test_a_file_in_use_is_opened_anew_by_workers(tmp_path):
    split = opened(saved(tmp_path, values(50, 100)), "dataset.storage=stream").train
    assert isinstance(split.values, np.memmap)
    there = pickle.dumps(split)
    assert len(there) < 2_000
    assert torch.equal(pickle.loads(there).batch(torch.tensor([3])).images, split.batch(torch.tensor([3])).images)


def test_static_binarisation_takes_any_depth(tmp_path):
    """Each pixel is white with its grey value as probability."""
    for name, x in {"a": np.full((10, 1000), 0.25, np.float32), "b": np.full((10, 1000), 16384, np.uint16)}.items():
        (tmp_path / name).mkdir()
        seen = everything(opened(saved(tmp_path / name, x), "dataset.binarize=static"))
        assert set(seen.unique().tolist()) == {0, 1}
        assert seen.mean() == pytest.approx(0.25, abs=0.03)


def test_labels_are_numbers_or_names_and_factors_go_along(tmp_path):
    x, factors = values(10, 4), np.stack([np.arange(10), np.arange(10) % 2], 1)
    names = np.array(["b", "a"] * 5)
    data = opened(saved(tmp_path, x=x, labels=names, factors=factors))
    assert data.class_names == ["a", "b"]
    batch = data.train.batch(torch.arange(len(data.train)))
    assert torch.equal(batch.labels, 1 - batch.factors[:, 1])
    np.testing.assert_array_equal(batch.images[:, 0, 0].numpy(), x[batch.factors[:, 0].numpy()])
    assert data.factor_sizes == {"factor_0": 10, "factor_1": 2}
    data = opened(saved(tmp_path, x=x, labels=np.arange(10) % 3, test_x=x[:4], test_labels=np.arange(4)))
    assert (data.num_classes, data.class_names) == (4, ["0", "1", "2", "3"])
    assert data.test.batch(torch.arange(4)).labels.tolist() == [0, 1, 2, 3]


def test_classes_are_the_labels_that_occur(tmp_path):
    """In training or in testing; where there are `class_names`, integers are places in them."""
    x, labels = values(10, 4), 2010 + 5 * (np.arange(10) % 2)
    data = opened(saved(tmp_path, x=x, labels=labels, test_x=x[:3], test_labels=np.array([2015, 7, 2010])))
    assert (data.num_classes, data.class_names) == (3, ["7", "2010", "2015"])
    assert data.train.batch(torch.arange(10)).labels.tolist() == [1, 2] * 5
    assert data.test.batch(torch.arange(3)).labels.tolist() == [2, 0, 1]
    data = opened(saved(tmp_path, x=x, labels=np.full(10, 2), class_names=np.array(["a", "b", "c", "d"])))
    assert data.class_names == ["a", "b", "c", "d"]
    assert set(data.train.batch(torch.arange(9)).labels.tolist()) == {2}
    data = opened(saved(tmp_path, x=x, labels=np.full((10, 2), 0.25)))
    assert data.class_names is None
    assert data.train.batch(torch.arange(9)).labels.unique().tolist() == [0.25]


def test_a_run_keeps_the_range_that_it_has_found(tmp_path, monkeypatch):
    """So other values are seen as those of the training were, and a resumed run goes on with them."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, x=10 * values(40, 2, 6), test_x=10 * values(8, 2, 6))
    words = ["train", *QUICK, "dataset.root=x.npz", "dataset.layout=ncl", "run.dir=run"]
    assert main([*words, "model=vae", "network=mlp"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    low, high = config["dataset"]["value_range"]
    assert 0 < low < 0.5 < 9.5 < high < 10
    assert vaelab.load("run").shape == (2, 1, 6)
    assert main(["train", "resume=run", "trainer.max_epochs=2"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["dataset"]["value_range"] == [low, high]
    assert json.loads(Path("run/summary.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    ("arrays", "more", "words"),
    [
        ({"x": values(9, 3, 8, 3)}, [], ["channels", "dataset.layout=nchw or nhwc"]),
        ({"x": values(9, 8, 8, 2)}, [], ["dataset.layout=nchw or nhwc"]),
        ({"x": values(9, 8)}, ["dataset.layout=ncl"], ["dataset.layout=ncl"]),
        ({"x": values(9)}, [], ["vectors [N, D]"]),
        ({"x": np.array([["a"]] * 9)}, [], ["numbers are wanted"]),
        ({"x": np.array([[None]] * 9)}, [], ["Python objects"]),
        ({"x": np.array([[1j]] * 9)}, [], ["numbers are wanted"]),
        ({"x": values(0, 4)}, [], ["empty array"]),
        ({"x": values(2, 4)}, [], ["too few", "dataset.test_size"]),
        ({"x": np.float32([[1], [2], [np.nan], [4]])}, [], ["row 2", "NaN"]),
        ({"x": np.float32([[1], [2], [np.inf], [4]])}, [], ["row 2", "infinite"]),
        ({"x": values(9, 4), "labels": np.arange(8)}, [], ["labels is int64 [8]", "[9]"]),
        (
            {"x": values(9, 4), "labels": np.arange(9) - 1},
            [],
            ["labels holds -1", "from 0 on", "leave out rows"],
        ),
        ({"x": values(9, 4), "labels": values(9)}, [], ["labels is float32"]),
        ({"x": values(9, 4), "test_x": values(9, 5)}, [], ["test_x", "[9, 5]"]),
        ({"x": values(9, 4), "labels": np.arange(9), "test_x": values(9, 4)}, [], ["no test_labels"]),
        ({"x": values(9, 4), "test_labels": np.arange(9)}, [], ["no test_x"]),
        ({"a": values(9, 4), "b": values(9, 4)}, [], ["a, b", "name one of them x"]),
        ({"x": values(9, 4)}, ["dataset.value_range=[0,0.5]"], ["dataset.value_range=[0, 0.5]", "reach from"]),
        ({"x": values(9, 4)}, ["dataset.value_range=[1,0]"], ["dataset.value_range=[1, 0]"]),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(tmp_path, arrays, more, words):
    with pytest.raises(UserError) as error:
        opened(saved(tmp_path, **arrays), *more)
    assert str(error.value).count("\n") <= 1
    for word in words:
        assert word in str(error.value)


NESTED = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {'(' * 500 + ')' * 500}, }}\n".encode()
NO_HEADER = b"\x93NUMPY\x01\x00" + len(NESTED).to_bytes(2, "little") + NESTED
"""A file whose header no parser follows; which error that is depends on the version of Python."""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b""),
        ("x.npz", b"PK"),
        ("w.npz", b"PK\x03\x04cut short"),
        ("x.txt", b"1"),
        ("y.npy", None),
        ("z.npy", NO_HEADER),
    ],
)
def test_a_file_that_is_no_array_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"dataset.root=.*{name}"):
        opened(tmp_path / name)


def test_what_is_no_array_is_told_from_an_array_of_objects(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"garbage")
    with pytest.raises(UserError, match="it is no file of NumPy's"):
        opened(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.array([None] * 9), allow_pickle=True)
    with pytest.raises(UserError, match="it holds Python objects"):
        opened(tmp_path / "y.npy")


def test_labels_of_other_axes_or_words_end_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, values(9, 3, 8, 3))
    assert main(["train", *QUICK, "dataset.root=x.npy"]) == 2
    assert "dataset.layout=nchw or nhwc" in (err := capsys.readouterr().err)
    assert "Traceback" not in err


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.float32, 1)])
def test_a_reconstruction_is_nearer_than_8_bits_could_be(tmp_path, dtype, white):
    """Of pictures with two degrees of freedom, by a linear autoencoder with two: rounding to 256 levels errs more."""
    dice = np.random.default_rng(0)
    shapes, weights = dice.random((2, 1, 8, 8)), dice.random((300, 2, 1, 1, 1))
    grey = (weights * shapes).sum(1) / 2
    x = (grey * white).round().astype(dtype) if white > 1 else grey.astype(dtype)
    data = opened(saved(tmp_path, x))
    words = ["model=ae", "network.hidden_dims=[]", "model.latent_dim=2", "likelihood=gaussian", "dataset=arrays"]
    torch.manual_seed(0)
    config = composed(*words, f"dataset.root={tmp_path / 'x.npy'}")
    model = build(config["model"], shape=data.shape, num_classes=None)
    model.start_from(data.mean_image, data.spread, len(data.train))
    seen = data.as_model_sees(data.train.batch(torch.arange(len(data.train)))).images
    optimizer, steps = torch.optim.Adam(model.parameters(), lr=0.01), 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        model.objective(model.terms(Batch(seen), None)).backward()
        optimizer.step()
    test = data.as_model_sees(data.test.batch(torch.arange(len(data.test)))).images
    error = (model.reconstruct(test) - test).square().mean().item()
    rounding = ((test * 255).round() / 255 - test).square().mean().item()
    assert error < 0.5 * rounding


def test_no_file_of_8_bits_is_prepared_of_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, values(20, 4, 4))
    assert main(["data", "prepare", "dataset=arrays", "dataset.root=x.npy", "out=x.vaelab"]) == 2
    assert "8 bits" in capsys.readouterr().err
    assert not Path("x.vaelab").exists()
    np.save("x.npy", np.zeros((20, 4, 4), np.uint8))
    assert main(["data", "prepare", "dataset=arrays", "dataset.root=x.npy", "out=x.vaelab"]) == 0
