import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import CIFAR10, KMNIST, MNIST, SVHN, FashionMNIST

COUNT, TEST_COUNT = 20, 10


def write_idx(path, array):
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(root, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", COUNT), ("t10k", TEST_COUNT)):
        write_idx(folder / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return folder


def write_cifar(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        entry = {"data": np.full((4, 3072), i, dtype=np.uint8), "labels": [i, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    return folder


def load(family, root, common, download=False):
    return family(root=str(root), download=download, **common).load()


@pytest.mark.parametrize("family", [MNIST, FashionMNIST, KMNIST])
def test_mnist_and_its_kin(tmp_path, common, family):
    write_mnist(tmp_path, family.__name__)
    train, test = load(family, tmp_path, common, download=True)
    assert (len(train), len(test), train.shape) == (COUNT, TEST_COUNT, (1, 28, 28))
    expected = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
    assert train.images[:, 0].numpy().tolist() == expected.tolist()
    assert train.labels.tolist() == [i % 10 for i in range(COUNT)]


def test_cifar10(tmp_path, common):
    write_cifar(tmp_path)
    train, test = load(CIFAR10, tmp_path, common)
    assert (len(train), len(test), train.shape) == (20, 4, (3, 32, 32))
    assert train.images[:, 0, 0, 0].tolist() == [i // 4 for i in range(20)]
    assert test.labels.tolist() == [5, 1, 2, 3]


def test_cifar10_planes_are_red_green_blue(tmp_path, common):
    folder = write_cifar(tmp_path)
    planes = np.repeat([10, 20, 30], 1024).astype(np.uint8)[None]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": planes, "labels": [0]}))
    assert load(CIFAR10, tmp_path, common)[1].images[0, :, 5, 7].tolist() == [10, 20, 30]


def test_svhn(tmp_path, common):
    from scipy import io as scipy_io

    images = np.zeros((32, 32, 3, 5), dtype=np.uint8)
    images[2, 3, 1, 4] = 9
    for name in ("train", "test"):
        scipy_io.savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": np.array([[10], [1], [2], [3], [9]])})
    train, _ = load(SVHN, tmp_path, common)
    assert train.shape == (3, 32, 32)
    assert train.labels.tolist() == [0, 1, 2, 3, 9]
    assert train.images[4, 1, 2, 3] == 9
    (tmp_path / "test_32x32.mat").write_bytes((tmp_path / "train_32x32.mat").read_bytes()[:300])
    with pytest.raises(UserError, match=r"test_32x32\.mat"):
        load(SVHN, tmp_path, common)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (MNIST, "MNIST/raw/train-images-idx3-ubyte"),
        (KMNIST, "KMNIST/raw/train-images-idx3-ubyte"),
        (CIFAR10, "cifar-10-batches-py/data_batch_1"),
        (SVHN, "train_32x32.mat"),
    ],
)
def test_missing_files_are_named_with_the_remedy(tmp_path, common, family, name):
    with pytest.raises(UserError) as error:
        load(family, tmp_path, common)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert f"dataset.root={tmp_path}" in lines[0]
    assert os.path.join(str(tmp_path), name) in lines[0]
    assert "dataset.download=true" in lines[1]


@pytest.mark.parametrize("family", [MNIST, CIFAR10, SVHN])
def test_a_download_without_network_says_which_file_goes_where(tmp_path, common, family, no_network):
    with pytest.raises(UserError) as error:
        load(family, tmp_path / "new", common, download=True)
    assert len(str(error.value).splitlines()) == 2
    assert f"dataset.root={tmp_path / 'new'}: no {tmp_path / 'new'}" in str(error.value)
    assert "the download failed" in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_torchvision_that_does_not_fit_torch_is_explained(tmp_path, common, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UserError, match="pip install -U torch torchvision"):
        load(MNIST, tmp_path, common, download=True)
    write_mnist(tmp_path)
    load(MNIST, tmp_path, common, download=True)  # files that are there need no torchvision


@pytest.mark.parametrize("length", [0, 3, 10, 5000])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_idx_file_is_named(tmp_path, common, name, length):
    path = write_mnist(tmp_path) / name
    path.write_bytes(path.read_bytes()[: min(length, path.stat().st_size - 1)])
    with pytest.raises(UserError) as error:
        load(MNIST, tmp_path, common, download=True)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_labels_that_do_not_fit_are_refused(tmp_path, common):
    folder = write_mnist(tmp_path)
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(COUNT - 1, dtype=np.uint8))
    with pytest.raises(UserError, match="train-labels"):
        load(MNIST, tmp_path, common)


def test_a_truncated_pickle_is_named(tmp_path, common):
    path = write_cifar(tmp_path) / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="data_batch_3"):
        load(CIFAR10, tmp_path, common)


def test_a_pickle_that_wants_to_execute_is_refused(tmp_path, common):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (write_cifar(tmp_path) / "test_batch").write_bytes(pickle.dumps({"data": Attack(), "labels": []}))
    with pytest.raises(UserError, match="test_batch"):
        load(CIFAR10, tmp_path, common)
    assert not (tmp_path / "executed").exists()


def test_reading_leaves_writable_tensors(tmp_path, common):
    write_mnist(tmp_path)
    train, _ = load(MNIST, tmp_path, common)
    train.images[0] = 0
    assert train.images[0].equal(torch.zeros(1, 28, 28, dtype=torch.uint8))
