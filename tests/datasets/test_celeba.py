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


@pytest.fixture
def described(faces):
    """The faces with three attributes: of every second image, of the last five, and of none."""
    rows = [f"{i + 1:06}.jpg {1 if i % 2 else -1:2} {1 if i > 4 else -1:2} -1" for i in reversed(range(10))]
    text = "\n".join(["10", "Smiling Male Bald", *rows]) + "\n"
    (faces / "celeba" / "list_attr_celeba.txt").write_text(text)
    return faces


def test_labels_are_the_attributes_of_each_image_or_those_asked_for(described, common):
    train, test = celeba(described, common).load()
    assert train.labels.tolist() == [[i % 2, i > 4, 0] for i in range(8)]
    assert test.batch(torch.arange(2)).labels.tolist() == [[0, 1, 0], [1, 1, 0]]
    some = celeba(described, common, label_names=["Bald", "Smiling"])
    some.setup()
    assert some.found == {"label_names": ["Bald", "Smiling"]}
    assert some.num_classes is None
    assert some.load()[0].labels.tolist() == [[0, i % 2] for i in range(8)]


def test_an_attribute_that_is_not_there_is_named(described, common):
    with pytest.raises(UserError, match=r"dataset\.label_names: did you mean Smiling\? Smilling is no attribute"):
        celeba(described, common, label_names=["Smilling"]).load()


def test_attributes_are_missed_where_they_are_asked_for(faces, common):
    assert celeba(faces, common).found == {}
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt"):
        celeba(faces, common, label_names=["Male"]).load()


@pytest.mark.parametrize(
    "text",
    ["", "10\nSmiling\n", "1\nSmiling Male\n000001.jpg 1\n", "1\nSmiling\n000001.jpg 3\n", "1\nMale\n000001.jpg 1"],
)
def test_a_broken_list_of_attributes_is_named(faces, common, text):
    (faces / "celeba" / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt"):
        celeba(faces, common).load()
