import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.core.errors import UserError
from vaelab.datasets import CelebA


@pytest.fixture
def faces(tmp_path):
    """Ten images of the published size, white where the centred 148x148 square is."""
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    array = np.zeros((218, 178, 3), dtype=np.uint8)
    array[35:183, 15:163] = 255
    names = [f"{i:06}.jpg" for i in range(1, 11)]
    for name in names:
        Image.fromarray(array).save(folder / name, quality=95)
    lines = [f"{name} {0 if i < 6 else 1 if i < 8 else 2}" for i, name in enumerate(names)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def celeba(root, common, **changes):
    return CelebA(**{"root": str(root), "download": False, "size": 64} | common | changes)


def test_partitions_and_crop(faces, common):
    data = celeba(faces, common)
    train, test = data.load()
    assert (len(train), len(test), train.shape) == (8, 2, (3, 64, 64))
    assert train.batch(torch.arange(3)).images.min() > 200
    data.setup()
    assert data.num_classes is None
    assert data.train.labels is None


def test_missing_files_are_named(tmp_path, common):
    with pytest.raises(UserError, match=r"celeba/list_eval_partition\.txt.*\n.*dataset\.download=true"):
        celeba(tmp_path, common).load()


def test_a_missing_image_is_named(faces, common):
    (faces / "celeba" / "img_align_celeba" / "000007.jpg").unlink()
    with pytest.raises(UserError, match=r"000007\.jpg"):
        celeba(faces, common).load()


@pytest.mark.parametrize("text", ["", "000001.jpg 0\n000002.j", "<html>quota exceeded</html>"])
def test_a_broken_list_is_named(faces, common, text):
    (faces / "celeba" / "list_eval_partition.txt").write_text(text)
    with pytest.raises(UserError, match=r"list_eval_partition\.txt"):
        celeba(faces, common).load()


def test_download_without_network(tmp_path, common, no_network):
    with pytest.raises(UserError, match=r"list_eval_partition.*the download failed"):
        celeba(tmp_path, common, download=True).load()
