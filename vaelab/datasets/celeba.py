"""CelebA: faces of celebrities."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.datasets.files import FileSplit, ImageFiles
from vaelab.datasets.sources import broken, find_files, import_torchvision

CROP = 148
"""Side in pixels of the square around the face, as in Larsen et al. (2016) and most papers since."""


@dataclass(kw_only=True, eq=False)
class CelebA(ImageFiles):
    """182,637 + 19,962 RGB faces (Liu et al., 2015), cut to 148x148 and resized; no labels.

    The published partitions 0 (train) and 1 (validation) are for training, 2 is for testing; the
    validation images come out of the training images as for every data set. The 40 attributes
    are not used: an image has many of them, a label is one.

    root: the folder that holds, or will hold, `celeba/img_align_celeba/*.jpg` and
    `celeba/list_eval_partition.txt`. download: whether the files may be fetched. size: side in pixels.
    """

    root: str
    download: bool
    size: PositiveInt

    def load(self) -> tuple[FileSplit, FileSplit]:
        """Lists the images. Raises UserError if files are missing or the list cannot be read."""
        names = ["celeba/list_eval_partition.txt", "celeba/img_align_celeba/000001.jpg"]
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
        return self._split(folder, train), self._split(folder, test)

    def _split(self, folder: Path, names: list[str]) -> FileSplit:
        files = [os.path.join(folder, name) for name in names]
        return FileSplit(files, None, (self.size, self.size), channels=3, crop=CROP)


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
