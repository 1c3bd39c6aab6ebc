"""Grey images of 16 bits in files keep their levels, and images of 8 bits are what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_bad_input import refused
from vaelab.cli import main
from vaelab.datasets.files import FileSplit
from vaelab.datasets.splits import unit

LEVELS = np.random.default_rng(0).integers(0, 65536, (40, 8, 8), dtype=np.uint16)


def save(folder, arrays, suffix="png"):
    folder.mkdir(parents=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:02}.{suffix}")
    return sorted(map(str, folder.iterdir()))


def read(files, size=(8, 8), bits=16):
    return FileSplit(files, None, size, 1, bits=bits).batch(torch.arange(len(files))).images


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_levels_come_back_as_they_are(tmp_path, suffix):
    images = read(save(tmp_path / "x", LEVELS, suffix))
    assert images.dtype == torch.uint16
    assert np.array_equal(images[:, 0].numpy(), LEVELS)


def test_images_of_8_bits_are_the_same_floats(tmp_path):
    files = save(tmp_path / "x", (LEVELS >> 8).astype(np.uint8))
    assert torch.equal(unit(read(files)), unit(read(files, bits=8)))
    small, fine = unit(read(files, (4, 4), bits=8)), unit(read(files, (4, 4)))
    assert (small - fine).abs().max() <= 1.01 / 255  # PIL rounds to 8 bits twice, after each direction


def test_they_are_trained_on_and_encoded(train, tmp_path):
    save(tmp_path / "photos", LEVELS)
    words = ["dataset=folder", "dataset.root=photos", "dataset.bits=16", "trainer.max_epochs=1", "network=mlp"]
    refused(train(*words, "trainer.accelerator=cpu", small=False), "dataset.bits=16: it is for grey images")
    done = train(*words, "dataset.channels=1", "trainer.accelerator=cpu", small=False)
    assert done.code == 0, done.err
    assert main(["encode", f"run={done.run}", "input=photos", "out=codes.npz"]) == 0
    import vaelab

    run = vaelab.open(done.run)
    with np.load("codes.npz") as codes:
        assert np.allclose(codes["mean"], run.encode(LEVELS).numpy(), atol=1e-6)
