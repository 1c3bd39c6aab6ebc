"""A user's own images, from a file or a folder, as a model takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.datasets.splits import unit

if TYPE_CHECKING:
    from vaelab.datasets.splits import Split


Bits = Literal[8, 16]


class Found(NamedTuple):
    """Image files that were checked, but not decoded yet.

    names: [N] paths relative to the folder, with `/`. split: the files; `split.batch(index)` decodes
    some. classes: names of the class folders in alphabetical order, and labels: [N] int64 positions
    in them; None where there are no class folders.
    """

    names: list[str]
    split: Split
    classes: list[str] | None
    labels: Tensor | None


def read(path: str | Path, shape: tuple[int, int, int], key: str, resize: bool = False, bits: Bits = 8) -> Tensor:
    """Reads one image, [1, C, H, W] uint8 or uint16, turned as its EXIF orientation says; grey or RGB as the model's.

    shape: (C, H, W) of the model. key: what the user knows the path as. resize: whether to cut an image of
    another size to the aspect ratio and resize it, as dataset=folder does. bits: as `FileSplit` takes them. Raises
    UserError, naming the file, if it is missing or broken, or has another size.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{key}={path}: this is a folder: name one image file in it")
    return find(file, shape, key, resize, bits).split.batch(torch.tensor([0])).images


def read_folder(
    folder: str | Path, shape: tuple[int, int, int], key: str, resize: bool = False
) -> tuple[list[str], Tensor, list[str] | None, Tensor | None]:
    """Reads all images of a folder, or of its class folders: names, [N, C, H, W] uint8, class names, labels [N].

    The arguments are those of `read`; names, class names and labels those of `Found`. Raises
    UserError also if there are no images.
    """
    path = Path(folder).expanduser()
    if path.is_file():
        raise UserError(f"{key}={folder}: this is a file: name a folder of images")
    names, split, classes, labels = find(path, shape, key, resize)
    return names, split.batch(torch.arange(len(names))).images, classes, labels


def find(path: str | Path, shape: tuple[int, int, int], key: str, resize: bool = False, bits: Bits = 8) -> Found:
    """Finds the image files of a folder or of its class folders, or one file, each checked but not decoded.

    The arguments are those of `read`. Raises UserError if there are none, or one is broken or has
    another size.
    """
    from vaelab.datasets.files import FileSplit

    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(f"{key}={path}: there is no such file or folder")
    files, classes, labels = _listed(root, key) if root.is_dir() else ([str(root)], None, None)
    split = FileSplit(files, labels, (shape[1], shape[2]), shape[0], bits=bits)
    split.verify()
    if not resize:
        _check_sizes(files, shape)
    folder = root if root.is_dir() else root.parent
    return Found([Path(file).relative_to(folder).as_posix() for file in files], split, classes, labels)


def as_model_sees(images: Tensor, pixel_range: tuple[float, float], binary: bool) -> Tensor:
    """Converts stored images to floats in the model's range, of the same shape.

    binary: whether the model was trained on binarised pixels; then pixels above 1/2 are white and the
    others black, whichever way the training images were binarised, so that an image has one code.
    """
    x = unit(images)
    if binary:
        x = (x > 0.5).float()
    low, high = pixel_range
    return x.mul_(high - low).add_(low)


def _listed(root: Path, key: str) -> tuple[list[str], list[str] | None, Tensor | None]:
    """Lists image files of a folder, its class names or None, and a label for each file or None."""
    from vaelab.datasets.files import SUFFIXES, list_images

    try:
        classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        groups = [list_images(root / name) for name in classes]
        flat = list_images(root)
    except OSError as error:
        raise UserError(f"{key}={root}: it cannot be read ({error.strerror})") from error
    kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    if flat and any(groups):
        mixed = next(name for name, group in zip(classes, groups, strict=True) if group)
        raise UserError(f"{key}={root} holds images and a folder of images (`{mixed}`): name one of the two")
    if flat:
        return flat, None, None
    if not any(groups):
        raise UserError(f"{key}={root} holds no images ({kinds}), nor do the folders in it")
    kept = [(name, group) for name, group in zip(classes, groups, strict=True) if group]
    counts = torch.tensor([len(group) for _, group in kept])
    labels = torch.arange(len(kept)).repeat_interleave(counts)
    return [file for _, group in kept for file in group], [name for name, _ in kept], labels


def _check_sizes(files: list[str], shape: tuple[int, int, int]) -> None:
    from vaelab.datasets.files import image_size

    for file in files:
        height, width = image_size(file)
        if (height, width) != shape[1:]:
            raise UserError(
                f"{file} is {height}x{width}, but the model takes {shape[1]}x{shape[2]} (height x width)\n"
                "resize=true cuts it to the model's aspect ratio and resizes it"
            )
