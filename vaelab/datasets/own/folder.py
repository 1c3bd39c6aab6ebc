"""A user's own images in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, ProperFraction
from vaelab.datasets.files import SUFFIXES, FileSplit, ImageFiles, image_size, list_images, warn_if_dark
from vaelab.datasets.sources import count_aside, hold_out


class Listing(NamedTuple):
    """The images found in a folder.

    files: [N] paths. labels: [N] positions in `classes`. classes: names in alphabetical order,
    or None if the images lie in the folder itself (labels are then 0).
    """

    files: list[str]
    labels: Tensor
    classes: list[str] | None


@dataclass(kw_only=True, eq=False)
class Folder(ImageFiles):
    """Images in a folder, laid out in one of four ways; a class is a folder, labelled in alphabetical order:

        root/train/<class>/*.png  (and root/test/<class>/*.png)
        root/train/*.png          (and root/test/*.png)
        root/<class>/*.png
        root/*.png

    root: the folder. size: a side in pixels, or [height, width]; None keeps the size that all
    images share. channels: 1 (grey) or 3 (RGB). bits: 16 keeps the levels of grey images of 16 bits.
    test_size: images set aside for testing where there is no root/test: a count if 1 or more, a
    fraction below 1, in every class's proportion.
    """

    root: str
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None
    channels: Literal[1, 3]
    test_size: PositiveInt | ProperFraction
    bits: Literal[8, 16] = 8

    def load(self) -> tuple[FileSplit, FileSplit]:
        """Lists the images. Raises UserError if there are too few, or one is broken or of another size."""
        if self.bits == 16 and self.channels == 3:
            raise UserError("dataset.bits=16: it is for grey images: add dataset.channels=1, or leave it out")
        train, test = self._listings
        warn_if_dark(train.files, f"dataset.root={self.root}")
        fixed = self.size is None
        if isinstance(self.size, int):
            size = (self.size, self.size)
        else:
            size = (self.size[0], self.size[1]) if self.size else image_size(train.files[0])
        parts = [part for part in (train, test) if part]
        whole, *tested = (
            FileSplit(part.files, self._labels(part), size, self.channels, fixed=fixed, bits=self.bits)
            for part in parts
        )
        if tested:
            return whole, tested[0]
        remedy = "put test images into a folder `test`"
        count = count_aside(f"dataset.root={self.root}", len(whole), self.test_size, remedy)
        kept, aside = hold_out(train.labels, count)
        return whole.subset(kept), whole.subset(aside)

    @property
    def num_classes(self) -> int | None:
        classes = self._listings[0].classes
        return None if classes is None else len(classes)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the class folders, or None."""
        return self._listings[0].classes

    def _labels(self, listing: Listing) -> Tensor | None:
        return None if listing.classes is None else listing.labels

    @cached_property
    def _listings(self) -> tuple[Listing, Listing | None]:
        """Images to train on, and those to test on where they lie apart. Raises UserError for a layout that is none."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "no such folder"
            raise UserError(f"dataset.root={self.root}: {what}\nset dataset.root to a folder of images")
        train, test = root / "train", root / "test"
        if not train.is_dir():
            if test.is_dir():
                raise UserError(f"dataset.root={self.root} has a folder `test` but no folder `train`")
            return _listing(root), None
        listing = _listing(train)
        return listing, _listing(test, like=listing) if test.is_dir() else None


def _listing(folder: Path, like: Listing | None = None) -> Listing:
    """Lists the images in a folder, with the classes of `like` if given.

    Raises UserError if it holds none, if they lie in two ways at once, or a class is not in `like`.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    flat = list_images(folder)
    if flat and names:
        raise UserError(
            f"{folder} holds images and folders (`{names[0]}`) side by side\n"
            "move the images into class folders, or the folders elsewhere"
        )
    if like is not None and (like.classes is None) != bool(flat or not names):
        raise UserError(f"{folder}: either both train and test have class folders, or neither")
    if not names:
        if not flat:
            raise UserError(f"{folder} holds no images ({_suffixes()})\nset dataset.root to a folder of images")
        return Listing(flat, torch.zeros(len(flat), dtype=torch.int64), None)
    for name in names:
        if inner := [entry.name for entry in os.scandir(folder / name) if entry.is_dir() and entry.name[0] != "."]:
            raise UserError(
                f"{folder / name} holds a folder (`{inner[0]}`): classes are one level deep\n"
                "move its images up, or the folder elsewhere"
            )
    classes = names if like is None or like.classes is None else like.classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: there is no class of that name to train on")
    per_class = [list_images(folder / name) for name in names]
    empty = [name for name, files in zip(names, per_class, strict=True) if not files]
    if empty:
        raise UserError(f"{folder / empty[0]} holds no images ({_suffixes()})\nadd some, or remove the folder")
    labels = torch.tensor([classes.index(name) for name in names])
    counts = torch.tensor([len(files) for files in per_class])
    return Listing([file for files in per_class for file in files], labels.repeat_interleave(counts), classes)


def _suffixes() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
