"""The dSprites data set as published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelab.core.files import NO_ARRAYS
from vaelab.core.types import PositiveInt
from vaelab.datasets.base import ImageData
from vaelab.datasets.sources import broken, fetch_url, find_files, take_test
from vaelab.datasets.splits import Batch

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{FILE}"
FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "position_x": 32, "position_y": 32}
SHAPES = ["square", "ellipse", "heart"]


@dataclass(kw_only=True, eq=False)
class DSprites(ImageData):
    """737,280 binary 64x64 images with their factors (Matthey et al., 2017); the label is the shape.

    The published colour has one value and is left out. The first and the last orientation are 0
    and 360 degrees: the same pictures twice, which `Sprites` avoids.

    root: the folder of the npz file. download: whether it may be fetched (26 MB; 3 GB are needed
    for a moment to unpack it). test_size: images for testing, drawn at random once and for all.
    """

    root: str
    download: bool
    test_size: PositiveInt

    def load(self) -> tuple[PackedSplit, PackedSplit]:
        """Reads the file. Raises UserError if it is missing, cut short or another one."""
        (path,) = find_files(self.root, [FILE], self.download, lambda root: fetch_url(URL, root / FILE))
        images, classes = _read(path)
        whole = PackedSplit(torch.from_numpy(pack(images)), torch.from_numpy(classes[:, 1:].astype(np.int64)))
        train, test = take_test(len(whole), self.test_size)
        return whole.subset(train), whole.subset(test)

    @property
    def binary(self) -> bool:
        """True: the images are made so."""
        return True

    @property
    def num_classes(self) -> int:
        return FACTORS["shape"]

    @property
    def class_names(self) -> list[str]:
        return list(SHAPES)

    @property
    def factor_sizes(self) -> dict[str, int]:
        return dict(FACTORS)


class PackedSplit:
    """Binary images kept at one bit per pixel and unpacked when asked for: 377 MB instead of 3 GB.

    packed: [N, H * W / 8] uint8, the first pixel in the highest bit. factors: [N, F] int64; the
    first one is the label.
    """

    nbytes = 0

    def __init__(self, packed: Tensor, factors: Tensor, size: tuple[int, int] = (64, 64)):
        self.shape = (1, *size)
        self.packed, self.factors = packed, factors
        bytes_ = torch.arange(256, device=packed.device)[:, None]
        bits = torch.arange(7, -1, -1, device=packed.device)
        self._pixels = ((bytes_ >> bits) & 1).mul(255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.packed)

    def subset(self, index: Tensor) -> PackedSplit:
        index = index.to(self.packed.device)
        return PackedSplit(self.packed[index], self.factors[index], self.shape[1:])

    def to(self, device: torch.device) -> PackedSplit:
        return PackedSplit(self.packed.to(device), self.factors.to(device), self.shape[1:])

    def batch(self, index: Tensor) -> Batch:
        index = index.to(self.packed.device)
        bytes_ = self.packed.index_select(0, index).flatten().int()
        factors = self.factors[index]
        return Batch(self._pixels.index_select(0, bytes_).view(-1, *self.shape), factors[:, 0], factors)


def pack(images: np.ndarray) -> np.ndarray:
    """Packs images of zeros and ones, [N, H, W], into [N, H * W / 8] uint8."""
    packed = np.empty((len(images), math.prod(images.shape[1:]) // 8), dtype=np.uint8)
    for start in range(0, len(images), 8192):  # in parts, because packbits makes a copy of what it is given
        part = images[start : start + 8192]
        packed[start : start + 8192] = np.packbits(part.reshape(len(part), -1), axis=1)
    return packed


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads imgs [N, 64, 64] uint8 and latents_classes [N, 6]. The pickled metadata are not touched."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            classes, images = arrays["latents_classes"], arrays["imgs"]
    except NO_ARRAYS as error:
        raise broken(path, f"not dSprites, or cut short ({error})") from error
    if images.dtype != np.uint8 or images.shape[1:] != (64, 64) or classes.shape != (len(images), 1 + len(FACTORS)):
        raise broken(path, f"holds images {images.shape} {images.dtype} and factors {classes.shape}: not dSprites")
    if len(images) and ((classes < 0) | (classes >= [1, *FACTORS.values()])).any():
        raise broken(path, "a factor lies outside its range: not dSprites")
    return images, classes
