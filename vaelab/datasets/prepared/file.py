"""The file of a prepared data set: how it is written, and how its header is read.

The file, all numbers little-endian:

    bytes 0-7      VAELAB and two line ends, which show a copy made in text mode
    bytes 8-11     version of the format
    bytes 12-15    CRC-32 of the header
    bytes 16-23    length of the header
    from byte 24   the header, JSON: shape, classes, factors, source, and where each array lies
    then           the arrays, each from a multiple of 4096 on: of `train` and of `test`
                   images [N, C, H, W] uint8, labels [N] int64, or vectors [N, A] float32, and factors [N, F] int64
                   where there are any

The training images lie in a random order, so that neighbours are a random sample of them.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from vaelab.core.errors import UserError
from vaelab.datasets.splits import Split

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


def read_header(path: Path) -> dict[str, Any]:
    """Reads the header of a prepared file. Raises UserError unless the file is one, whole and of this version."""
    if not path.exists():
        raise UserError(
            f"dataset.root={path}: there is no such file\nmake it: vaelab data prepare dataset=… out={path}"
        )
    if not path.is_file():
        raise UserError(f"dataset.root={path} is a folder: dataset=folder reads it, vaelab data prepare makes a file")
    with opened(path) as file:
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
VECTORS = DTYPES | {"labels": "<f4"}
"""Types of the arrays where labels are vectors."""


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
    entries = header.get("label_names")  # which older files have not
    if entries is not None and not (isinstance(entries, list) and entries and all(type(n) is str for n in entries)):
        return "label_names"
    dtypes = VECTORS if entries else DTYPES
    taken, end = [], _padded(PREFIX.size)
    for part in PARTS:
        count, arrays = header["parts"][part]["count"], header["parts"][part]["arrays"]
        rows = {
            "images": shape,
            "labels": [len(entries)] if entries else [],
            "factors": [len(factors)] if factors else None,
        }
        if not _counts(count) or arrays.keys() - {name for name, row in rows.items() if row is not None}:
            return f"the arrays of {part}"
        for name, place in ({"images": arrays["images"]} | arrays).items():
            taken.append((place["offset"], place["offset"] + place["bytes"]))
            values = [count, *(rows[name] or [])]
            size = math.prod(values) * np.dtype(dtypes[name]).itemsize
            whole = type(place["offset"]) is int and place["offset"] % PAGE == 0 and type(place["bytes"]) is int
            if (
                not whole
                or place["dtype"] != dtypes[name]
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

    about: num_classes, class_names, label_names, factors (name: number of values), binary and source.
    """
    header = {"shape": list(shape), **about, "size": 0, "parts": {}}
    for name, split in zip(PARTS, splits, strict=True):
        first = split.batch(torch.arange(1))
        if first.images.dtype != torch.uint8:
            raise UserError(
                "dataset: a prepared file holds 8 bits, and these numbers need more: dataset=arrays reads an .npy file "
                "where it lies"
            )
        arrays = {
            what: {"dtype": dtype, "shape": [len(split), *tensor.shape[1:]], "offset": 0, "bytes": 0, "crc32": "0" * 8}
            for what, dtype, tensor in zip(
                DTYPES, (VECTORS if about.get("label_names") else DTYPES).values(), first[:3], strict=True
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


def opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {AGAIN}") from error


def checksum(file: BinaryIO, place: dict[str, Any]) -> int:
    file.seek(place["offset"])
    checksum, left = 0, place["bytes"]
    while left and (piece := file.read(min(left, 4 * MIB))):
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    return checksum


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE
