"""Images in one file that is read where it lies: a data set may be larger than the memory.

`file` says what is in it.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveFloat
from vaelab.datasets.base import ImageData
from vaelab.datasets.loaders import epoch_order
from vaelab.datasets.prepared.file import AGAIN, MIB, PARTS, checksum, opened, read_header
from vaelab.datasets.splits import Batch, Split


@dataclass(kw_only=True, eq=False)
class Prepared(ImageData):
    """A data set in a file that `vaelab data prepare` wrote, held in memory or read as training goes.

    root: the file. order: how an epoch orders the training images. `blocks`: blocks of neighbours come
    in a random order, and each image then moves back by a random distance within `window`, so that
    a disk reads whole blocks; `random`: any order at all. block, window: their sizes in MiB of images. label_names: of
    the entries of labels that are vectors, None for those in the file.
    """

    root: str
    order: Literal["blocks", "random"]
    block: PositiveFloat
    window: PositiveFloat
    label_names: list[str] | None = None

    def load(self) -> tuple[PreparedSplit, PreparedSplit]:
        """Opens the file. Raises UserError if it is missing, damaged, cut short, or of another version."""
        path = Path(self.root).expanduser()
        train, test = (PreparedSplit(path, self.header, part) for part in PARTS)
        if self.label_names is not None and len(self.label_names) != len(self.found.get("label_names", [])):
            raise UserError(f"dataset.label_names: a label of {path} has not {len(self.label_names)} numbers")
        return train, test

    @cached_property
    def header(self) -> dict[str, Any]:
        """The header of the file: shape, classes, factors, and where each array lies."""
        return read_header(Path(self.root).expanduser())

    @property
    def num_classes(self) -> int | None:
        return self.header["num_classes"]

    @property
    def found(self) -> dict[str, Any]:
        """Names of the entries of label vectors."""
        names = self.header.get("label_names")
        return {} if names is None else {"label_names": names}

    @property
    def class_names(self) -> list[str] | None:
        return self.header["class_names"] or super().class_names

    @property
    def factor_sizes(self) -> dict[str, int] | None:
        return self.header["factors"]

    @property
    def binary(self) -> bool:
        return self.header["binary"] or super().binary

    def _hold(self, split: Split) -> Split:
        """Compares a split that is read as a whole with its checksum."""
        held = super()._hold(split)
        if held is not split and isinstance(split, PreparedSplit):
            split.verify()
        return held

    def order_of(self, epoch: int) -> Tensor:
        if self.order == "random":
            return super().order_of(epoch)
        block, window = (self._images(size) for size in (self.block, self.window))
        return block_order(len(self.train), block, window, self.seed, epoch)

    def _loader(
        self, part: str, split: Split, order: Any, steps: Any = None, known: Tensor | None = None
    ) -> tuple[Split, Any]:
        if isinstance(split, PreparedSplit) and self.order == "blocks":
            split = split.read_ahead(self._images(self.block), 2 * math.ceil(self.window / self.block))
        return super()._loader(part, split, order, steps, known)

    def _images(self, size: float) -> int:
        """Returns how many images fit `size` MiB, one at least."""
        return max(1, int(size * MIB / math.prod(self.shape)))


class PreparedSplit:
    """A split of the images at `index`, [M] int64, of a part of a prepared file; all of them if None.

    Labels and factors are read from the file with the images: only the index is in memory.
    """

    def __init__(self, path: Path, header: dict[str, Any], part: str, index: Tensor | None = None):
        self.path, self.header, self.part, self.index = path, header, part, index
        channels, height, width = header["shape"]
        self.shape = (channels, height, width)
        self.nbytes = len(self) * math.prod(self.shape)
        self._block, self._remembered = 0, 0
        self._asked: dict[int, None] = {}
        self._arrays: dict[str, np.ndarray] | None = None
        self._map: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open file out of a pickle: every process opens its own."""
        return {**self.__dict__, "_arrays": None, "_map": None, "_asked": {}}

    def __len__(self) -> int:
        return self.header["parts"][self.part]["count"] if self.index is None else len(self.index)

    def subset(self, index: Tensor) -> PreparedSplit:
        return PreparedSplit(self.path, self.header, self.part, index if self.index is None else self.index[index])

    def to(self, device: torch.device) -> PreparedSplit:
        """Returns the split itself: a file has no device."""
        return self

    def read_ahead(self, block: int, remembered: int) -> PreparedSplit:
        """Returns the split, whose index must ascend, for passes in `block_order`: an image brings its block along.

        block: images in a block. remembered: number of the latest blocks that are not asked for again.
        """
        split = PreparedSplit(self.path, self.header, self.part, self.index)
        split._block, split._remembered = block, remembered
        return split

    def batch(self, index: Tensor) -> Batch:
        """Reads a batch. Raises UserError if the file is not as long any more as it was."""
        rows = (index.cpu() if self.index is None else self.index[index.cpu()]).numpy()
        arrays = self._open()
        self._check_size(self._map.size())  # a page beyond the end would kill the process
        if self._block:
            self._ask(index)
        parts = (arrays.get(name) for name in ("images", "labels", "factors"))
        return Batch(*(None if a is None else torch.from_numpy(a.take(rows, axis=0)) for a in parts))  # type: ignore[arg-type]

    def verify(self) -> None:
        """Checks all of the part, a few MiB at a time. Raises UserError unless it is as it was written."""
        with opened(self.path) as file:
            for name, place in self.header["parts"][self.part]["arrays"].items():
                if checksum(file, place) != int(place["crc32"], 16):
                    raise UserError(f"{self.path}: the {name} of its {self.part} part are damaged\n{AGAIN}")

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            with opened(self.path) as file:
                self._check_size(os.fstat(file.fileno()).st_size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):  # else a fault reads on for megabytes, as the disk reads ahead
                self._map.madvise(mmap.MADV_RANDOM)
            self._arrays = {
                name: np.ndarray(place["shape"], place["dtype"], self._map, place["offset"])
                for name, place in self.header["parts"][self.part]["arrays"].items()
            }
        return self._arrays

    def _check_size(self, size: int) -> None:
        if size != self.header["size"]:
            raise UserError(f"{self.path} was changed while it was read: {AGAIN}")

    def _ask(self, index: Tensor) -> None:
        """Has the system read the blocks of the images at `index`, unless it was asked for them lately."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        first, image = self.header["parts"][self.part]["arrays"]["images"]["offset"], math.prod(self.shape)
        for block in index.div(self._block, rounding_mode="floor").unique().tolist():
            if block in self._asked:
                continue
            ends = block * self._block, min((block + 1) * self._block, len(self)) - 1
            low, high = ends if self.index is None else self.index[list(ends)].tolist()
            start = first + low * image
            start -= start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, first + (high + 1) * image - start)
            self._asked[block] = None
        while len(self._asked) > self._remembered:
            del self._asked[next(iter(self._asked))]


def block_order(size: int, block: int, window: int, seed: int, epoch: int) -> Tensor:
    """Computes the order of an epoch's images, [size] int64: a function of its arguments alone.

    Blocks of `block` neighbours come in a random order; then each image moves back by a random
    number of places below `window`. What fits a window is shuffled as a whole.
    """
    if size <= window:
        return epoch_order(size, seed, epoch)
    blocks = epoch_order(-(-size // block), seed, epoch)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch + 2**62) % 2**63)
    order, done, seen = torch.empty(size, dtype=torch.int64), 0, 0
    waiting, places = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    for some in blocks.split(max(1, window // block)):  # all at once would take six times the memory
        images = (some[:, None] * block + torch.arange(block)).flatten()
        images = images[images < size]
        moves = window * torch.rand(len(images), dtype=torch.float64, generator=generator)
        waiting = torch.cat([waiting, images])
        places = torch.cat([places, torch.arange(seen, seen + len(images)) + moves])
        seen += len(images)
        due = (places < seen) | (seen == size)  # no image still to come can be before these
        ready = waiting[due][places[due].argsort(stable=True)]
        order[done : done + len(ready)] = ready
        done, waiting, places = done + len(ready), waiting[~due], places[~due]
    return order
