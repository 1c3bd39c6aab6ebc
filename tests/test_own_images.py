"""A user's own images: read as a model takes them, encoded, and decoded again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vaelab
from tests.test_conf import options
from vaelab.core.errors import UserError
from vaelab.datasets import images

KINDS = {"ae": ("codes",), "vae": ("mean", "logvar"), "vqvae": ("indices",)}
"""Arrays of the codes, which files of version 0.1 have, too."""


def save(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """A grey image of noise, [H, W] uint8."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


# --- reading ----------------------------------------------------------------------------------


def test_a_picture_of_the_models_size_is_read_pixel_by_pixel(tmp_path):
    pixels = save(tmp_path / "a.png")
    assert np.array_equal(images.read(tmp_path / "a.png", (1, 8, 8), "image")[0, 0].numpy(), pixels)
    assert np.array_equal(images.read(tmp_path / "a.png", (3, 8, 8), "image")[0, 2].numpy(), pixels)


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path):
    pixels = np.tile(np.array([[0, 255]], np.uint8).repeat(8, 1), (8, 1))  # [8, 16]: dark left of bright
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: [16, 8], dark above bright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read = images.read(tmp_path / "a.png", (1, 16, 8), "image")[0, 0]
    assert torch.equal(read[:8], torch.zeros(8, 8).byte())
    assert torch.equal(read[8:], torch.full((8, 8), 255).byte())


def test_resizing_keeps_the_centre_in_its_proportions(tmp_path):
    pixels = np.full((10, 30), 255, np.uint8)
    pixels[:, 10:20] = 100
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png", (1, 5, 5), "image", resize=True).unique().tolist() == [100]


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    first, second = save(tmp_path / "in/b/x.png", seed=1), save(tmp_path / "in/a/y.png", seed=2)
    (tmp_path / "in/empty").mkdir()
    names, read, classes, labels = images.read_folder(tmp_path / "in", (1, 8, 8), "input")
    assert (names, classes) == (["a/y.png", "b/x.png"], ["a", "b"])
    assert labels is not None
    assert labels.tolist() == [0, 1]
    assert np.array_equal(read[:, 0].numpy(), np.stack([second, first]))


@pytest.mark.parametrize("binary", [False, True])
def test_pixels_come_in_the_models_range(binary):
    seen = images.as_model_sees(torch.tensor([0, 51, 204, 255], dtype=torch.uint8), (-1.0, 1.0), binary)
    wanted = [-1, -1, 1, 1] if binary else [-1, -0.6, 0.6, 1]
    assert seen.tolist() == pytest.approx(wanted)


def test_a_picture_that_cannot_be_taken_is_named_with_the_remedy(tmp_path):
    save(tmp_path / "wide.png", 8, 9)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no")
    save(tmp_path / "both/a.png")
    save(tmp_path / "both/class/a.png")
    cases = {
        "wide.png": ("wide.png", "8x9", "8x8", "resize=true"),
        "nowhere.png": ("image=", "nowhere.png", "no such"),
        "broken.png": ("broken.png", "not an image"),
        "empty": ("image=", "empty", "folder"),
    }
    for name, words in cases.items():
        with pytest.raises(UserError) as raised:
            images.read(tmp_path / name, (1, 8, 8), "image")
        assert all(word in str(raised.value) for word in words), str(raised.value)
    for name, words in {"empty": ("no images",), "both": ("`class`",), "wide.png": ("file",)}.items():
        with pytest.raises(UserError) as raised:
            images.read_folder(tmp_path / name, (1, 8, 8), "input")
        assert all(word in str(raised.value) for word in ("input=", *words)), str(raised.value)


# --- encode and decode ------------------------------------------------------------------------


@pytest.mark.parametrize("model", options("model"))
def test_what_is_encoded_and_decoded_is_the_models_reconstruction(finished, command, tmp_path, model):
    run = finished(f"model={model}", "likelihood=gaussian", "dataset.pixel_range=[-1,1]").run
    for i in range(5):
        save(tmp_path / f"in/{i % 2}/{i}.png", seed=i)
    assert command("encode", f"run={run}", "input=in")[0] == 0
    code, out, err = command("decode", f"run={run}", "out=made")
    assert (code, err) == (0, "")
    assert "note" not in out

    trained = vaelab.load(run)
    names, read, _, labels = images.read_folder("in", (1, 8, 8), "input")
    x = images.as_model_sees(read, (-1.0, 1.0), False)
    with np.load("codes.npz", allow_pickle=False) as codes:
        expected = trained.blank().outputs
        assert set(codes.files) == {"files", "about", "labels", *expected}
        assert set(KINDS.get(model, expected)) == set(expected)
        assert codes["files"].tolist() == names
        assert codes["labels"].tolist() == [0, 0, 0, 1, 1]
        about = json.loads(str(codes["about"]))
        assert (about["latents"], about["shape"]) == (trained.blank().name, [1, 8, 8])
        assert about["classes"] == {"0": "0", "1": "1"}
        with torch.no_grad():
            outputs = trained.encode(x, labels).outputs
        for name, values in outputs.items():
            np.testing.assert_allclose(codes[name], values.numpy(), atol=1e-5)
    wanted = ((trained.reconstruct(x, labels) + 1) / 2).clamp(0, 1).mul(255)
    for name, pixels in zip(names, wanted, strict=True):
        made = np.asarray(Image.open(Path("made") / name)).astype(float)
        assert np.abs(made - pixels[0].numpy()).max() < 0.51


def test_long_inputs_are_encoded_in_batches(finished, command, monkeypatch, tmp_path):
    run = finished("model=vae").run
    for i in range(7):
        save(tmp_path / f"in/{i}.png", seed=i)
    assert command("encode", f"run={run}", "input=in", "out=whole.npz")[0] == 0
    monkeypatch.setattr("vaelab.evaluation.metrics.judge.batch_size", lambda shape: 3)
    assert command("encode", f"run={run}", "input=in", "out=parts.npz")[0] == 0
    with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
        np.testing.assert_allclose(whole["mean"], parts["mean"], atol=1e-6)
    assert command("decode", f"run={run}", "codes=parts.npz", "out=made")[0] == 0
    assert len(list(Path("made").glob("*.png"))) == 7


def test_a_binary_model_sees_binary_pixels(finished, command, tmp_path):
    run = finished("model=vae", "dataset.binarize=dynamic").run
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save("grey.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("white.png")
    for name in ("grey", "white"):
        assert command("encode", f"run={run}", f"input={name}.png", f"out={name}.npz")[0] == 0
    with np.load("grey.npz") as grey, np.load("white.npz") as white:
        assert np.array_equal(grey["mean"], white["mean"])


def test_labels_of_a_conditional_model(finished, command, tmp_path):
    run = finished("model=cvae", "dataset.classes=4").run
    save(tmp_path / "in/1/a.png")
    save(tmp_path / "in/3/a.png")
    save(tmp_path / "in/3/b.png")
    save(tmp_path / "named/x/a.png")
    assert command("encode", f"run={run}", "input=in")[0] == 0  # fewer folders than classes: by their numbers
    with np.load("codes.npz") as codes:
        assert codes["labels"].tolist() == [1, 3, 3]
        assert not np.allclose(codes["mean"][0], codes["mean"][1])  # the same picture, as two classes
    code, _, err = command("encode", f"run={run}", "input=in/1")
    assert code == 2
    assert "label=0" in err
    code, _, err = command("encode", f"run={run}", "input=named")
    assert code == 2
    assert "0 to 3" in err
    assert command("encode", f"run={run}", "input=named", "label=2", "out=two.npz")[0] == 0
    with np.load("two.npz") as codes:
        assert codes["labels"].tolist() == [2]
    code, _, err = command("encode", f"run={run}", "input=named", "label=4")
    assert code == 2
    assert "label=4" in err
    np.savez("bare.npz", z=np.zeros((2, 20)))
    code, _, err = command("decode", f"run={run}", "codes=bare.npz")
    assert code == 2
    assert "label" in err
    assert command("decode", f"run={run}", "codes=bare.npz", "label=1")[0] == 0
    assert command("decode", f"run={run}", "codes=bare.npz", "label=3", "out=three")[0] == 0
    assert Path("decoded/000001.png").read_bytes() != Path("three/000001.png").read_bytes()


def test_codes_of_ones_own_take_z_before_mean_and_are_numbered(finished, command):
    run = finished("model=vae").run
    z = np.random.default_rng(0).normal(size=(3, 20)).astype("float32")
    np.savez("mine.npz", z=z, mean=np.zeros((3, 20)))
    assert command("decode", f"run={run}", "codes=mine.npz", "out=made")[0] == 0
    assert sorted(p.name for p in Path("made").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    model = vaelab.load(run)
    with torch.no_grad():
        wanted = model.likelihood.mean(model.decode(torch.from_numpy(z)))[2, 0].mul(255).numpy()
    assert np.abs(np.asarray(Image.open("made/000002.png")) - wanted).max() < 0.51


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("input=nowhere", ("input=nowhere",)),
        ("", ("input",)),
        ("input=in out=codes.txt", ("out=codes.txt", ".npz")),
        ("input=in label=1", ("label=1",)),
        ("input=in label=-1", ("label=-1",)),
        ("input=in resize=maybe", ("resize",)),
        ("input=in checkpoint=newest", ("checkpoint",)),
        ("input=in device=abacus", ("device=abacus",)),
        ("input=in run=nowhere", ("nowhere",)),
        ("input=wide", ("wide.png", "resize=true")),
        ("input=in inputs=x", ("inputs",)),
    ],
)
def test_encode_says_what_is_wrong(finished, command, tmp_path, arguments, words):
    run = finished("model=vae", "trainer.max_epochs=1").run
    save(tmp_path / "in/a.png")
    save(tmp_path / "wide/wide.png", 8, 9)
    given = arguments.split()
    code, _, err = command("encode", *([] if "run=" in arguments else [f"run={run}"]), *given)
    assert code == 2
    assert all(word in err for word in words), err
    assert not list(Path().glob("*.npz*"))


@pytest.mark.slow
def test_decode_says_what_is_wrong(finished, command, tmp_path):
    run, codebook = finished("model=vae").run, finished("model=vqvae").run
    good, indices = np.zeros((2, 20), "float32"), np.zeros((2, 2, 2), "int64")
    broken = good.copy()
    broken[1, 3] = np.nan
    cases = [
        (run, {"codes": good}, ("`codes`", "`mean`")),
        (run, {"mean": good[:, :7]}, ("`mean`", "[2, 7]", "[N, 20]")),
        (run, {"mean": good[:0]}, ("`mean`", "[0, 20]")),
        (run, {"mean": broken}, ("`mean`", "1 of 2")),
        (run, {"mean": good.astype("U3")}, ("`mean`", "numbers")),
        (run, {"mean": good, "files": np.array(["a.png"])}, ("`files`", "2 names")),
        (run, {"mean": good, "files": np.array(["a.png", "../b.png"])}, ("../b.png", "outside")),
        (run, {"mean": good, "files": np.array(["/a.png", "b.png"])}, ("/a.png", "outside")),
        (run, {"mean": good, "files": np.array(["a.png", "a.png"])}, ("twice",)),
        (run, {"mean": np.array([[{}]])}, ("damaged",)),  # pickled: never read
        (codebook, {"mean": good}, ("`mean`", "`indices`")),
        (codebook, {"indices": indices + 64}, ("64", "0 to 63")),
        (codebook, {"indices": indices - 1}, ("-1", "0 to 63")),
        (codebook, {"indices": indices.astype(float)}, ("integers",)),
        (codebook, {"indices": indices[:, :1]}, ("[2, 1, 2]", "[N, 2, 2]")),
    ]
    for folder, arrays, words in cases:
        np.savez("codes.npz", **arrays)
        code, _, err = command("decode", f"run={folder}")
        assert code == 2, words
        assert all(word in err for word in ("codes=", *words)), err
    whole = Path("codes.npz").read_bytes()
    for content in (b"", b"no", whole[:200], whole[: len(whole) // 2]):
        Path("codes.npz").write_bytes(content)
        code, _, err = command("decode", f"run={run}")
        assert code == 2
        assert "codes=codes.npz" in err
    assert not Path("decoded").exists()


def test_originals_and_others_files_are_not_overwritten(finished, command, tmp_path):
    run = finished("model=vae").run
    before = save(tmp_path / "in/a.png")
    assert command("encode", f"run={run}", "input=in")[0] == 0
    code, _, err = command("decode", f"run={run}", "out=in")  # where the originals are
    assert code == 2
    assert "out=in" in err
    assert np.array_equal(np.asarray(Image.open("in/a.png")), before)
    assert command("decode", f"run={run}", "out=made")[0] == 0
    assert command("decode", f"run={run}", "out=made")[0] == 0  # its own images are made anew
    Path("made/notes.txt").write_text("mine")
    code, _, err = command("decode", f"run={run}", "out=made")
    assert code == 2
    assert "notes.txt" in err


def test_codes_of_another_run_are_noted(finished, command, tmp_path):
    first, second = finished("model=vae").run, finished("model=beta", "model.latent_dim=20").run
    save(tmp_path / "in/a.png")
    assert command("encode", f"run={first}", "input=in")[0] == 0
    assert "note: the codes are of VAE" in command("decode", f"run={second}")[1]
