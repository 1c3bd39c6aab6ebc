import numpy as np
import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import DSprites
from vaelab.datasets.dsprites import FILE, PackedSplit, pack

COUNT = 60


def arrays():
    random = np.random.default_rng(0)
    images = random.integers(0, 2, (COUNT, 64, 64), dtype=np.uint8)
    classes = np.stack([random.integers(0, size, COUNT) for size in (1, 3, 6, 40, 32, 32)], axis=1)
    return images, classes


def write(root, images, classes):
    metadata = np.array({"title": "needs pickle, so it must not be read"}, dtype=object)
    np.savez_compressed(root / FILE, imgs=images, latents_classes=classes, metadata=metadata)
    return root / FILE


def dsprites(root, common, **changes):
    return DSprites(**{"root": str(root), "download": False, "test_size": 20} | common | changes)


def test_images_and_factors_are_those_of_the_file(tmp_path, common):
    images, classes = arrays()
    write(tmp_path, images, classes)
    data = dsprites(tmp_path, common)
    train, test = data.load()
    assert (len(train), len(test), train.shape) == (40, 20, (1, 64, 64))
    parts = [split.batch(torch.arange(len(split))) for split in (train, test)]
    found = {
        tuple(factors): image.numpy().tobytes()
        for part in parts
        for factors, image in zip(part.factors.tolist(), part.images, strict=True)
    }
    wanted = {tuple(row[1:]): (image * 255).tobytes() for row, image in zip(classes.tolist(), images, strict=True)}
    assert found == wanted
    assert parts[0].labels.equal(parts[0].factors[:, 0])
    assert data.factor_sizes == {"shape": 3, "scale": 6, "orientation": 40, "position_x": 32, "position_y": 32}


def test_packing_loses_nothing():
    images = arrays()[0]
    split = PackedSplit(torch.from_numpy(pack(images)), torch.zeros(COUNT, 5, dtype=torch.int64))
    index = torch.randint(0, COUNT, (100,))
    assert split.batch(index).images[:, 0].equal(torch.from_numpy(images)[index] * 255)
    assert split.packed.numel() == images.size // 8


def test_setup(tmp_path, common):
    write(tmp_path, *arrays())
    data = dsprites(tmp_path, common)
    data.setup()
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 20)
    assert 0.4 < data.mean_image.mean() < 0.6


def test_a_missing_file_is_named(tmp_path, common):
    with pytest.raises(UserError, match=rf"{FILE}\n.*dataset\.download=true"):
        dsprites(tmp_path, common).load()


def test_download_without_network(tmp_path, common, no_network):
    with pytest.raises(UserError, match=FILE):
        dsprites(tmp_path, common, download=True).load()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, common, keep):
    path = write(tmp_path, *arrays())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=FILE):
        dsprites(tmp_path, common).load()


def test_another_file_of_that_name_is_refused(tmp_path, common):
    images, classes = arrays()
    write(tmp_path, images[:, :32], classes)
    with pytest.raises(UserError, match="not dSprites"):
        dsprites(tmp_path, common).load()
    classes[3, 2] = 6
    write(tmp_path, images, classes)
    with pytest.raises(UserError, match="not dSprites"):
        dsprites(tmp_path, common).load()


def test_too_many_test_images_are_refused(tmp_path, common):
    write(tmp_path, *arrays())
    with pytest.raises(UserError, match=rf"dataset\.test_size={COUNT}"):
        dsprites(tmp_path, common, test_size=COUNT).load()
