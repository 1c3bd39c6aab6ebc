"""Images in one file that is read where it lies: a data set may be larger than the memory.

The file, all numbers little-endian:

    bytes 0-7      VAELAB and two line ends, which show a copy made in text mode
    bytes 8-11     version of the format
    bytes 12-15    CRC-32 of the header
    bytes 16-23    length of the header
    from byte 24   the header, JSON: shape, classes, factors, source, and where each array lies
    then           the arrays, each from a multiple of 4096 on: of `train` and of `test`
                   images [N, C, H, W] uint8, labels [N] int64 and factors [N, F] int64 where there are any

The training images lie in a random order, so that neighbours are a random sample of them.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveFloat
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import Batch, Split, epoch_order

MAGIC = b"VAELAB\r\n"
"""First bytes of every prepared file."""
VERSION = 1
PREFIX = struct.Struct("<8sIIQ")
PAGE = 4096
"""Bytes of which every array's place in the file is a multiple."""
MIB = 2**20
MOST_HEADER = 64 * MIB
"""Size of the largest header that is read, in bytes."""
DIGITS = 512
"""Bytes by which a header grows when the places of at most six arrays are filled in."""
ORDER_SEED = 20_191_218
"""Seed of the order of the training images in a file; no file may have another."""
PARTS = ("train", "test")
AGAIN = "prepare it again (vaelab data prepare)"


@dataclass(kw_only=True, eq=False)
class Prepared(ImageData):
    """A data set in a file that `vaelab data prepare` wrote, held in memory or read as training goes.

    root: the file. order: how an epoch orders the training images. `blocks`: blocks of neighbours come
    in a random order, and each image then moves back by a random distance within `window`, so that
    a disk reads whole blocks; `random`: any order at all. block, window: their sizes in MiB of images.
    """

    root: str
    order: Literal["blocks", "random"]
    block: PositiveFloat
    window: PositiveFloat

    def load(self) -> tuple[PreparedSplit, PreparedSplit]:
        """Opens the file. Raises UserError if it is missing, damaged, cut short, or of another version."""
        path = Path(self.root).expanduser()
        train, test = (PreparedSplit(path, self.header, part) for part in PARTS)
        return train, test

    @cached_property
    def header(self) -> dict[str, Any]:
        """The header of the file: shape, classes, factors, and where each array lies."""
        return read_header(Path(self.root).expanduser())

    @property
    def num_classes(self) -> int | None:
        return self.header["num_classes"]

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

    def _loader(self, part: str, split: Split, order: Any, steps: Any = None) -> tuple[Split, Any]:
        if isinstance(split, PreparedSplit) and self.order == "blocks":
            split = split.read_ahead(self._images(self.block), 2 * math.ceil(self.window / self.block))
        return super()._loader(part, split, order, steps)

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
        with _opened(self.path) as file:
            for name, place in self.header["parts"][self.part]["arrays"].items():
                if _checksum(file, place) != int(place["crc32"], 16):
                    raise UserError(f"{self.path}: the {name} of its {self.part} part are damaged\n{AGAIN}")

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            with _opened(self.path) as file:
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


# --- the file -------------------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, Any]:
    """Reads the header of a prepared file. Raises UserError unless the file is one, whole and of this version."""
    if not path.exists():
        raise UserError(
            f"dataset.root={path}: there is no such file\nmake it: vaelab data prepare dataset=… out={path}"
        )
    if not path.is_file():
        raise UserError(f"dataset.root={path} is a folder: dataset=folder reads it, vaelab data prepare makes a file")
    with _opened(path) as file:
        start = file.read(PREFIX.size)
        if len(start) < PREFIX.size or not start.startswith(MAGIC):
            raise UserError(f"{path} is no prepared file: vaelab data prepare makes one")
        _, version, checksum, length = PREFIX.unpack(start)
        if version != VERSION:
            raise UserError(f"{path} is of format {version}, and this vaelab reads format {VERSION}: {AGAIN}")
        content = file.read(length) if length <= MOST_HEADER else b""
        if len(content) < length or zlib.crc32(content) != checksum:
            raise UserError(f"{path}: its header is damaged: {AGAIN}")
        size = os.fstat(file.fileno()).st_size
    try:
        header = json.loads(content)
        expected = header["size"]
        wrong = _wrong(header)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: its header is damaged ({type(error).__name__}): {AGAIN}") from error
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes, not {str(expected)[:20]}: it is cut short or damaged\n{AGAIN}")
    if wrong:
        raise UserError(f"{path}: its header is damaged ({wrong}): {AGAIN}")
    return header


DTYPES = {"images": "|u1", "labels": "<i8", "factors": "<i8"}
"""Types of the arrays."""


def _wrong(header: dict[str, Any]) -> str:
    """Says what a header has that `layout` never writes: nothing, if all is well.

    A checksum tells a damaged header, and not one that was written to do harm: an array outside the file would
    end the process when it is read. Raises ValueError, KeyError or the like for what is missing or of another type.
    """
    shape, classes, factors, names = (header[key] for key in ("shape", "num_classes", "factors", "class_names"))
    if not (isinstance(shape, list) and len(shape) == 3 and _counts(*shape)):
        return "shape"
    if not (classes is None or _counts(classes)) or not isinstance(header["binary"], bool):
        return "num_classes or binary"
    if factors is not None and not (isinstance(factors, dict) and factors and _counts(*factors.values())):
        return "factors"
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "class_names"
    taken, end = [], _padded(PREFIX.size)
    for part in PARTS:
        count, arrays = header["parts"][part]["count"], header["parts"][part]["arrays"]
        rows = {"images": shape, "labels": [], "factors": [len(factors)] if factors else None}
        if not _counts(count) or arrays.keys() - {name for name, row in rows.items() if row is not None}:
            return f"the arrays of {part}"
        for name, place in ({"images": arrays["images"]} | arrays).items():
            taken.append((place["offset"], place["offset"] + place["bytes"]))
            values = [count, *(rows[name] or [])]
            size = math.prod(values) * np.dtype(DTYPES[name]).itemsize
            whole = type(place["offset"]) is int and place["offset"] % PAGE == 0 and type(place["bytes"]) is int
            if (
                not whole
                or place["dtype"] != DTYPES[name]
                or str(place["shape"]) != str(values)
                or place["bytes"] != size
            ):
                return f"the {name} of {part}"
            int(place["crc32"], 16)
    for first, last in sorted(taken):
        if first < end:
            return "an array outside the file, or within another"
        end = last
    return "an array beyond the end of the file" if end > header["size"] else ""


def _counts(*values: Any) -> bool:
    """Whether all are positive integers that an array can have."""
    return all(type(value) is int and 0 < value < 2**48 for value in values)


def layout(shape: tuple[int, int, int], splits: tuple[Split, Split], about: dict[str, Any]) -> dict[str, Any]:
    """Makes the header of a file for these splits, in which the checksums are still to come.

    about: num_classes, class_names, factors (name: number of values), binary and source.
    """
    header = {"shape": list(shape), **about, "size": 0, "parts": {}}
    for name, split in zip(PARTS, splits, strict=True):
        first = split.batch(torch.arange(1))
        arrays = {
            what: {"dtype": dtype, "shape": [len(split), *tensor.shape[1:]], "offset": 0, "bytes": 0, "crc32": "0" * 8}
            for what, dtype, tensor in zip(
                ("images", "labels", "factors"), ("|u1", "<i8", "<i8"), first[:3], strict=True
            )
            if tensor is not None
        }
        header["parts"][name] = {"count": len(split), "arrays": arrays}
    end = _padded(PREFIX.size + len(json.dumps(header)) + DIGITS)
    for part in header["parts"].values():
        for place in part["arrays"].values():
            place["offset"], place["bytes"] = end, math.prod(place["shape"]) * np.dtype(place["dtype"]).itemsize
            end = _padded(end + place["bytes"])
    return header | {"size": end}


def write(file: BinaryIO, header: dict[str, Any], splits: tuple[Split, Split]) -> Iterator[int]:
    """Writes a whole file, some images at a time, and yields how many at each time.

    The training images are written in the order of ORDER_SEED, the test images in their own.
    """
    file.truncate(header["size"])
    for name, split in zip(PARTS, splits, strict=True):
        order = torch.arange(len(split))
        if name == "train":
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(ORDER_SEED))
        arrays = header["parts"][name]["arrays"]
        ends = {what: (place["offset"], 0) for what, place in arrays.items()}
        for index in order.split(max(16, min(1024, 8 * MIB // math.prod(split.shape)))):
            batch = split.batch(index)
            for what, (offset, checksum) in ends.items():
                values = getattr(batch, what).cpu().numpy().astype(arrays[what]["dtype"]).tobytes()
                file.seek(offset)
                file.write(values)
                ends[what] = offset + len(values), zlib.crc32(values, checksum)
            yield len(index)
        for what, (_, checksum) in ends.items():
            arrays[what]["crc32"] = f"{checksum:08x}"
    content = json.dumps(header).encode()
    file.seek(0)
    file.write(PREFIX.pack(MAGIC, VERSION, zlib.crc32(content), len(content)) + content)
    file.flush()
    os.fsync(file.fileno())


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {AGAIN}") from error


def _checksum(file: BinaryIO, place: dict[str, Any]) -> int:
    file.seek(place["offset"])
    checksum, left = 0, place["bytes"]
    while left and (piece := file.read(min(left, 4 * MIB))):
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    return checksum


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE
