import pickle
import sys

import numpy as np
import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import Shapes3D
from vaelab.datasets.shapes3d import FACTORS, FILE, RANGES, TOTAL, H5Split
from vaelab.datasets.sources import indices_to_factors

WRITTEN = 400
"""Images that are not black; the others take no space in the file."""


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def write(root, h5py, reverse=False):
    low, high = np.array(RANGES).T
    factors = indices_to_factors(torch.arange(TOTAL), FACTORS).numpy()
    labels = low + factors * (high - low) / (np.array(list(FACTORS.values())) - 1)
    with h5py.File(root / FILE, "w") as file:
        images = file.create_dataset("images", (TOTAL, 64, 64, 3), np.uint8, chunks=(50, 64, 64, 3))
        images[:WRITTEN] = (np.arange(WRITTEN) % 251)[:, None, None, None] + np.array([0, 1, 2])
        file["labels"] = labels[::-1] if reverse else labels
    return root / FILE


def shapes3d(root, common, **changes):
    return Shapes3D(**{"root": str(root), "download": False, "test_size": 10_000} | common | changes)


def test_splits_and_factors(tmp_path, common, h5py):
    write(tmp_path, h5py)
    data = shapes3d(tmp_path, common, storage="stream")
    data.setup()
    assert (len(data.train), len(data.val), len(data.test)) == (423_000, 47_000, 10_000)
    assert data.shape == (3, 64, 64)
    assert data.test.nbytes == 10_000 * 64 * 64 * 3
    assert data.num_classes == 4


@pytest.mark.parametrize("index", [[5, 5, 399, 0, 17], [3, 4, 5, 6], [TOTAL - 1, 2]])
def test_images_and_factors_belong_to_their_index(tmp_path, common, h5py, index):
    whole = H5Split(write(tmp_path, h5py), torch.arange(TOTAL))
    whole.batch(torch.tensor([0]))
    split = pickle.loads(pickle.dumps(whole))  # while the file is open
    batch = split.batch(torch.tensor(index))
    assert batch.images[:, :, 9, 9].tolist() == [[i % 251 + c if i < WRITTEN else 0 for c in range(3)] for i in index]
    assert batch.factors.equal(indices_to_factors(torch.tensor(index), FACTORS))
    assert batch.labels.tolist() == [i // 15 % 4 for i in index]
    assert whole.subset(torch.tensor([7, 9])).batch(torch.tensor([1])).images[0, 0, 0, 0] == 9


def test_a_missing_file_is_named(tmp_path, common, h5py):
    with pytest.raises(UserError, match=rf"{FILE}\n.*dataset\.download=true"):
        shapes3d(tmp_path, common).load()


def test_download_without_network(tmp_path, common, h5py, no_network):
    with pytest.raises(UserError, match=FILE):
        shapes3d(tmp_path, common, download=True).load()


@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_a_truncated_file_is_named(tmp_path, common, h5py, keep):
    path = write(tmp_path, h5py)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=FILE):
        shapes3d(tmp_path, common).load()


def test_images_in_another_order_are_refused(tmp_path, common, h5py):
    write(tmp_path, h5py, reverse=True)
    with pytest.raises(UserError, match="published order"):
        shapes3d(tmp_path, common).load()


def test_missing_h5py_is_explained(tmp_path, common, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        shapes3d(tmp_path, common).load()
