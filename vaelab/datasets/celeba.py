"""CelebA: faces of celebrities."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.datasets.files import FileSplit, ImageFiles
from vaelab.datasets.sources import broken, find_files, import_torchvision

CROP = 148
"""Side in pixels of the square around the face, as in Larsen et al. (2016) and most papers since."""
ATTRIBUTES = "list_attr_celeba.txt"
"""The file with the attributes of all images."""


@dataclass(kw_only=True, eq=False)
class CelebA(ImageFiles):
    """182,637 + 19,962 RGB faces (Liu et al., 2015), cut to 148x148 and resized; labels are their attributes.

    The published partitions 0 (train) and 1 (validation) are for training, 2 is for testing; the
    validation images come out of the training images as for every data set. A label has a 0 or 1 for each
    attribute; there are none without the list of attributes.

    root: the folder that holds, or will hold, `celeba/img_align_celeba/*.jpg`,
    `celeba/list_eval_partition.txt` and `celeba/list_attr_celeba.txt`. download: whether the files may be
    fetched. size: side in pixels. label_names: the attributes that a label has, in their order; None for all 40.
    """

    root: str
    download: bool
    size: PositiveInt
    label_names: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names: list[str] | None = None

    def load(self) -> tuple[FileSplit, FileSplit]:
        """Lists the images. Raises UserError if files are missing or the list cannot be read."""
        names = ["celeba/list_eval_partition.txt", "celeba/img_align_celeba/000001.jpg"]
        if self.label_names is not None:
            names.append(f"celeba/{ATTRIBUTES}")
        partition = find_files(self.root, names, self.download, _fetch)[0]
        folder = partition.parent / "img_align_celeba"
        train, test = _read_partition(partition)
        present = {entry.name for entry in os.scandir(folder)}
        missing = [name for name in train + test if name not in present]
        if missing:
            raise UserError(
                f"{folder / missing[0]} and {len(missing) - 1:,} other images listed in {partition.name} are missing\n"
                "unpack img_align_celeba.zip again"
            )
        labels = self._labels(partition.with_name(ATTRIBUTES), train + test)
        parts = (None, None) if labels is None else labels.split([len(train), len(test)])
        return self._split(folder, train, parts[0]), self._split(folder, test, parts[1])

    @property
    def found(self) -> dict[str, Any]:
        """The attributes that a label has."""
        return {} if self._names is None else {"label_names": self._names}

    def _labels(self, path: Path, images: list[str]) -> Tensor | None:
        """Reads the attributes of `images` that are asked for, [N, A], None where there is no list of them."""
        if not path.exists():
            return None
        known, rows, values = _read_attributes(path)
        self._names = known if self.label_names is None else self.label_names
        places = [_place(name, known) for name in self._names]
        if missing := [name for name in images if name not in rows]:
            raise broken(path, f"{missing[0]} and {len(missing) - 1:,} other images are not in it")
        return (values[torch.tensor([rows[name] for name in images])][:, places] > 0).float()

    def _split(self, folder: Path, names: list[str], labels: Tensor | None) -> FileSplit:
        files = [os.path.join(folder, name) for name in names]
        return FileSplit(files, labels, (self.size, self.size), channels=3, crop=CROP)


def _fetch(root: Path) -> None:
    import_torchvision().CelebA(str(root), download=True)


def _read_partition(path: Path) -> tuple[list[str], list[str]]:
    """Reads the names of the images to train on and to test on. Raises UserError for a list that is broken."""
    rows = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines() if line.strip()]
    if not all(len(row) == 2 and row[1] in ("0", "1", "2") for row in rows):
        raise broken(path, "a line is not an image's name and 0, 1 or 2")
    train = [name for name, part in rows if part != "2"]
    test = [name for name, part in rows if part == "2"]
    if not train or not test:
        raise broken(path, "lists no images to train on, or none to test on; the file is cut short")
    return train, test


def _read_attributes(path: Path) -> tuple[list[str], dict[str, int], Tensor]:
    """Reads names of attributes, the row of each image, and rows of 1 or -1, [N, A].

    After the number of images, the first line names the attributes; each other one begins with an image's name.
    Raises UserError for a broken file.
    """
    _, names, *lines = [*path.read_text(encoding="ascii", errors="replace").splitlines(), "", ""]
    known, rows = names.split(), [line for line in lines if line.strip()]
    if not known or not rows:
        raise broken(path, "it names no attributes, or no images")
    try:
        values = np.loadtxt(rows, dtype=np.int8, usecols=range(1, len(known) + 1), ndmin=2)
    except ValueError as error:
        raise broken(path, error) from error
    if (abs(values) != 1).any():
        raise broken(path, "an attribute is neither 1 nor -1")
    return known, {line.split(maxsplit=1)[0]: number for number, line in enumerate(rows)}, torch.from_numpy(values)


def _place(name: str, known: list[str]) -> int:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"dataset.label_names: {hint}{name} is no attribute; there are {', '.join(known)}")
    return known.index(name)
