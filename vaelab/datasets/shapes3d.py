"""The 3D Shapes data set as published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.datasets.base import ImageData
from vaelab.datasets.sources import broken, fetch_url, find_files, indices_to_factors, take_test
from vaelab.datasets.splits import Batch

FILE = "3dshapes.h5"
URL = f"https://storage.googleapis.com/3d-shapes/{FILE}"
FACTORS = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
"""The factors and their numbers of values; the last one varies fastest in the index of an image."""
RANGES = ((0.0, 0.9), (0.0, 0.9), (0.0, 0.9), (0.75, 1.25), (0.0, 3.0), (-30.0, 30.0))
"""First and last value of each factor in the published `labels`; the values between are evenly spaced."""
TOTAL = math.prod(FACTORS.values())
"""Number of images."""


@dataclass(kw_only=True, eq=False)
class Shapes3D(ImageData):
    """480,000 RGB 64x64 images with six factors (Burgess and Kim, 2018); the label is the shape.

    It needs h5py: `pip install h5py`, or the extra `vaelab[shapes3d]`.

    root: the folder of the h5 file. download: whether it may be fetched (255 MB). test_size: images
    for testing, drawn at random once and for all.
    """

    root: str
    download: bool
    test_size: PositiveInt

    def load(self) -> tuple[H5Split, H5Split]:
        """Opens the file. Raises UserError if h5py is missing, or the file is missing, cut short or another one."""
        _import_h5py()
        (path,) = find_files(self.root, [FILE], self.download, lambda root: fetch_url(URL, root / FILE))
        _check(path)
        train, test = take_test(TOTAL, self.test_size)
        return H5Split(path, train), H5Split(path, test)

    @property
    def num_classes(self) -> int:
        return FACTORS["shape"]

    @property
    def factor_sizes(self) -> dict[str, int]:
        return dict(FACTORS)


class H5Split:
    """A split of the h5 file's images at `index`, [N] int64, read when asked for.

    The factors follow from the index: the file is in the order of the factors' cartesian product.
    """

    shape = (3, 64, 64)

    def __init__(self, path: Path, index: Tensor):
        self.path, self.index = path, index
        self.nbytes = len(index) * math.prod(self.shape)
        self._images: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open file out of a pickle: every process opens its own."""
        return {**self.__dict__, "_images": None}

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, index: Tensor) -> H5Split:
        return H5Split(self.path, self.index[index])

    def to(self, device: torch.device) -> H5Split:
        """Returns the split itself: a file has no device."""
        return self

    def batch(self, index: Tensor) -> Batch:
        """Reads a batch. Raises UserError, naming the file, if a part of it is damaged."""
        rows = self.index[index.cpu()]
        factors = indices_to_factors(rows, FACTORS)
        return Batch(self._read(rows), factors[:, list(FACTORS).index("shape")], factors)

    def _read(self, rows: Tensor) -> Tensor:
        if self._images is None:
            self._images = _import_h5py().File(self.path, "r")["images"]
        ascending, position = rows.unique(return_inverse=True)  # h5py takes ascending indices only
        low, high = int(ascending[0]), int(ascending[-1]) + 1
        try:
            if high - low <= 2 * len(ascending):  # one slice is much faster to read than a list of rows
                images = self._images[low:high][(ascending - low).numpy()]
            else:
                images = self._images[ascending.numpy()]
        except OSError as error:
            raise broken(self.path, f"images {low} to {high} cannot be read ({error})") from error
        return torch.from_numpy(images)[position].permute(0, 3, 1, 2).contiguous()


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("dataset=shapes3d needs h5py: pip install h5py") from error
    return h5py


def _check(path: Path) -> None:
    """Raises UserError unless the file holds the published arrays in the order of the cartesian product."""
    sample = np.linspace(0, TOTAL - 1, 97).astype(np.int64)
    try:
        with _import_h5py().File(path, "r") as file:
            images, labels = file["images"], file["labels"]
            if images.shape != (TOTAL, 64, 64, 3) or images.dtype != np.uint8 or labels.shape != (TOTAL, len(FACTORS)):
                raise broken(path, f"holds images {images.shape} and labels {labels.shape}: not 3D Shapes")
            sampled_labels = labels[sample]
    except (OSError, KeyError) as error:
        raise broken(path, f"not 3D Shapes, or cut short ({error})") from error
    low, high = np.array(RANGES).T
    factors = indices_to_factors(torch.from_numpy(sample), FACTORS).numpy()
    if not np.allclose(
        sampled_labels, low + factors * (high - low) / (np.array(list(FACTORS.values())) - 1), atol=1e-3
    ):
        raise broken(path, "its images are not in the published order")
