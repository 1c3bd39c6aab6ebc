"""Images in files: decoded when asked for, by threads."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from vaelab.core.errors import UserError
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import Batch, Split

log = logging.getLogger("vaelab")

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings of the files that are taken for images."""
THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode or check images at a time."""
THREADED = 32
"""Number of images in a batch from which threads are worth their start."""
SMALL = 4096
"""Size of a file, in bytes, below which threads only wait for each other: opening holds the GIL, decoding does not."""
LOOKED_AT = 32
"""Files by which the range of 16-bit images is judged, about."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
NAMED = 10
"""Broken files that a message names."""
END = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""Bytes that the end of a complete file contains, by its format."""


class ImageFiles(ImageData):
    """Base class of data sets of image files. Files that will not be decoded before training are checked first."""

    def _hold(self, split: Split) -> Split:
        try:
            held = super()._hold(split)
        except UserError:
            if isinstance(split, FileSplit):
                split.verify()  # names all broken files, and not the first alone
            raise
        if isinstance(held, FileSplit):
            held.verify()
        return held


class FileSplit:
    """A split whose images are files, all given the same size.

    An image is turned as its EXIF orientation says, cut to the aspect ratio of `size` around its
    centre, and resized with a bilinear filter that averages over the pixels it merges
    (antialiased). Transparency is dropped; of an animation the first frame is taken.

    files: [N] paths. labels: [N] int64 or None. size: (height, width). channels: 1 (grey) or 3 (RGB).
    crop: side in pixels of the centred square that is cut out first, or None. bits: 8, or 16 of grey images, which are
    read as uint16; 65535 is white.
    fixed: whether to refuse an image whose own size is not `size`, for users who asked for no resizing.
    """

    def __init__(
        self,
        files: list[str],
        labels: Tensor | None,
        size: tuple[int, int],
        channels: int,
        crop: int | None = None,
        fixed: bool = False,
        bits: Literal[8, 16] = 8,
    ):
        self.bits: Literal[8, 16] = bits
        self.files, self.labels = files, labels
        self.size, self.channels, self.crop, self.fixed = size, channels, crop, fixed
        self.shape = (channels, *size)
        self.nbytes = len(files) * channels * size[0] * size[1] * bits // 8

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, index: Tensor) -> FileSplit:
        files = [self.files[i] for i in index.tolist()]
        labels = None if self.labels is None else self.labels[index]
        return FileSplit(files, labels, self.size, self.channels, self.crop, self.fixed, self.bits)

    def to(self, device: torch.device) -> FileSplit:
        """Returns the split itself: files have no device, and a batch is decoded on the CPU."""
        return self

    def batch(self, index: Tensor) -> Batch:
        """Decodes a batch. Raises UserError, naming the file, if an image cannot be decoded or has another size."""
        rows = index.tolist()
        images = np.empty((len(rows), *self.size, self.channels), dtype=np.uint8 if self.bits == 8 else np.uint16)

        def decode(part: range) -> None:
            for i in part:
                images[i] = self._decode(self.files[rows[i]])

        _in_threads(decode, [self.files[row] for row in rows])
        labels = None if self.labels is None else self.labels[index.cpu()]
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)

    def verify(self) -> None:
        """Looks for files that are no images, are cut short or have another size, without decoding JPEGs.

        Raises UserError, naming the first files of those that are.
        """
        bar = tqdm(total=len(self), desc="checking images", unit="image", delay=2, leave=False)
        broken: dict[int, UserError] = {}

        def check(part: range) -> None:
            for i in part:
                try:
                    self._check(self.files[i])
                except UserError as error:
                    broken[i] = error
                bar.update()

        with bar:
            _in_threads(check, self.files)
        if broken:
            raise _all_of([self.files[i] for i in sorted(broken)], broken[min(broken)])

    def _check(self, file: str) -> None:
        try:
            with _opened(file) as image:
                size, kind = _upright_size(image), image.format or ""
                if not (kind in END and END[kind] in _tail(file)):
                    image.load()
        except Exception as error:  # decoders raise whatever they come across
            raise _unreadable(file, error) from error
        self._check_size(file, size)

    def _check_size(self, file: str, size: tuple[int, int]) -> None:
        if self.fixed and size != self.size:
            raise UserError(
                f"{file} is {size[0]}x{size[1]}, but other images are {self.size[0]}x{self.size[1]} (height x width)\n"
                "set dataset.size to give all images one size"
            )

    def _decode(self, file: str) -> np.ndarray:
        """Decodes a file to [H, W, C], uint8 or uint16."""
        try:
            with _opened(file) as image:
                size = _upright_size(image)
                if not self.crop:
                    # A photograph much too large is decoded at 1/2, 1/4 or 1/8, but at no less than twice the size.
                    image.draft(None, (2 * max(self.size), 2 * max(self.size)))
                array = self._fit(_upright(image))
        except Exception as error:  # decoders raise whatever they come across
            raise _unreadable(file, error) from error
        self._check_size(file, size)
        return array

    def _fit(self, image: Image.Image) -> np.ndarray:
        image = _sixteen_bits(image) if self.bits == 16 else _eight_bits(image, "L" if self.channels == 1 else "RGB")
        height, width = self.size
        full_width, full_height = (self.crop, self.crop) if self.crop else image.size
        scale = min(full_width / width, full_height / height)
        image = _centre(image, round(scale * width), round(scale * height))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).reshape(height, width, self.channels)
        return pixels if self.bits == 8 else np.rint(pixels).astype(np.uint16)


def image_size(file: str) -> tuple[int, int]:
    """Reads the height and width of an image from its header. Raises UserError if it is not an image."""
    try:
        with _opened(file) as image:
            return _upright_size(image)
    except Exception as error:  # decoders raise whatever they come across
        raise _unreadable(file, error) from error


def warn_if_dark(files: list[str], key: str) -> None:
    """Warns of 16-bit images that use a small part of their range, such as a camera's 12 bits; looks at a few."""
    most = 0
    for file in files[:: max(1, len(files) // LOOKED_AT)]:
        with contextlib.suppress(Exception), Image.open(file) as image:  # what cannot be decoded is told elsewhere
            if not image.mode.startswith("I;16"):
                return
            most = max(most, int(np.asarray(image).max()))
    if 0 < most < 2**14:
        log.warning(
            "%s: images of 16 bits whose brightest value is %d (of %d files): white is 65535, so they come out nearly "
            "black, whatever dataset.bits is; write them anew with their values times %d",
            *(key, most, min(len(files), LOOKED_AT), 65535 // (2 ** most.bit_length() - 1)),
        )


def list_images(folder: Path) -> list[str]:
    """Lists the image files in a folder, by name; hidden files are left out."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in SUFFIXES
        )


def _in_threads(work: Callable[[range], None], files: list[str]) -> None:
    """Calls `work` on pieces of range(len(files)), in threads if that is faster."""
    count = len(files)
    if not _worth_threads(files):
        work(range(count))
        return
    piece = -(-count // (4 * THREADS))
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, range(i, min(i + piece, count))) for i in range(0, count, piece)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _worth_threads(files: list[str]) -> bool:
    if (
        len(files) < THREADED or THREADS == 1 or get_worker_info() is not None
    ):  # worker processes run in parallel already
        return False
    return os.path.isfile(files[0]) and os.path.getsize(files[0]) >= SMALL


def _opened(file: str) -> Image.Image:
    """Opens an image file. Raises ValueError for a pipe or a device, which would be waited for."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("it is no file, but a pipe, a device or a folder")
    return Image.open(file)


def _all_of(files: list[str], first: UserError) -> UserError:
    """Makes one error of those of several files: what is wrong with the first, and the names of the others."""
    if len(files) == 1:
        return first
    names = ", ".join(Path(file).name for file in files[1:NAMED])
    rest = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    why, _, remedy = str(first).partition("\n")
    return UserError(f"{len(files)} images cannot be used: {why}; also {names}{rest}\n{remedy}")


def _unreadable(file: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError | PermissionError):
        return UserError(
            f"{file}: {error.strerror}\nrestore the file, or start anew so that the folder is listed again"
        )
    reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error).split("\n")[0][:150]
    return UserError(f"{file} cannot be decoded ({reason})\nreplace the file or remove it")


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ORIENTATION, 1)


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) of the image once it is turned as its EXIF orientation says."""
    return (image.width, image.height) if _orientation(image) in (5, 6, 7, 8) else (image.height, image.width)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image to grey or RGB. PIL would clip 16-bit grey at 255 instead of scaling it."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32 bits wide; save it with 8 or 16 bits")
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Converts an image to grey floats, 0 to 65535: PIL resizes no 16 bits."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32 bits wide; save it with 8 or 16 bits")
    deep = image.mode.startswith("I;16")
    values = np.asarray(image if deep else image.convert("L")).astype(np.float32)
    return Image.fromarray(values if deep else values * 257)


def _tail(file: str, size: int = 64) -> bytes:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - size))
        return stream.read()
