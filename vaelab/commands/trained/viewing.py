"""What the commands that look at a trained run share: their options, which images, and where pictures go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from vaelab.commands import command
from vaelab.commands.trained import own_tables
from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.types import AskedLabel
from vaelab.runs import Files

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.runs.trained import Trained

FIGURES = (".png", ".pdf", ".svg")
LOOKED_AT = 1000
"""Images of a split that tell how much each latent dimension is used; fewer, if they have more numbers than:"""
NUMBERS = 2**26


@dataclass(frozen=True)
class Opening:
    """Keys that say which trained run to open, and how; see conf/sample.yaml."""

    run: str
    checkpoint: Literal["best", "last"]
    root: str | None
    device: str
    trust: bool
    seed: Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True)
class Options(Opening):
    """Keys of all the commands that make pictures of a run; see conf/sample.yaml."""

    split: Literal["test", "val", "train"]
    out: str | None


class Chosen(NamedTuple):
    """Images to look at. images: [N, C, H, W] as the model sees them. labels: [N] or None. names: what to call each."""

    images: Tensor
    labels: Tensor | None
    names: list[str]


# --- the run and its images -------------------------------------------------------------------


def opened(options: Opening, prior: str | None = None) -> Trained:
    """The run that the options name. Data that are binarised at every visit are so by the options' seed.

    prior: the name of one that was fitted to the run, to take the place of the model's own.
    """
    import torch

    from vaelab.runs.trained import Trained

    torch.manual_seed(options.seed)
    trained = Trained(options.run, options.checkpoint, options.device, options.root, prior, options.trust)
    if not all(bool(weights.isfinite().all()) for weights in trained.model.parameters()):
        other = {"best": "last", "last": "best"}[trained.checkpoint]
        raise UserError(
            f"run: weights of its {trained.checkpoint} checkpoint are NaN or infinite: try checkpoint={other}"
        )
    return trained


def label_of(trained: Trained, label: AskedLabel | None) -> Tensor | None:
    """Finds the label that `label=` asks for, [1] or [1, A], None for none.

    Raises UserError for a label that the model has no use for, or does not know.
    """
    if label is None:
        return None
    model = trained.model
    if not model.told:
        name, of_codes = type(model).__name__, model.layout.codes is not None and model.num_classes is not None
        other = "fit a prior that is told the class (vaelab prior)" if of_codes else "train model=cvae"
        raise UserError(f"label={label}: {name} takes no labels: leave it out, or {other}")
    return model.condition.read(label, trained.classes.require)


def images_named(value: Any, key: str) -> list[int | str]:
    """What `key=value` names: indices into the split, or image files. Raises UserError for what cannot be.

    value: an index, a path, or a list of them; as numbers, or as the text that the shell gave.
    """
    found = []
    for item in command.items(value):
        if isinstance(item, bool) or not isinstance(item, int | str):
            shown = "null" if item is None else item
            raise UserError(f"{key}={shown}: give the index of an image in the split, or an image file")
        item = int(item) if isinstance(item, str) and re.fullmatch(r"[+-]?\d+", item) else item
        if isinstance(item, int) and item < 0:
            raise UserError(f"{key}={item}: images are counted from 0")
        if isinstance(item, str) and not Path(item).expanduser().is_file():
            raise UserError(f"{key}={item}: there is no such file, nor is it the index of an image")
        found.append(item)
    if not found:
        raise UserError(f"{key}=[]: name at least one image, as in {key}=[0,1]")
    return found


def one_image(value: Any, key: str) -> int | str:
    """The one image that `key=value` names."""
    found = images_named(value, key)
    if len(found) > 1:
        raise UserError(f"{key}={value}: one image is wanted here")
    return found[0]


def choose(
    trained: Trained, split: str, wanted: Sequence[int | str], key: str, label: Tensor | None, resize: bool
) -> Chosen:
    """The images, from the split or from files. label: that of those from files, for a conditional model.

    The data is read only where an index asks for it. Raises UserError for an index or a file that does not fit.
    """
    import torch

    parts = [_from_split(trained, split, item, key) if isinstance(item, int) else
             _from_file(trained, item, key, label, resize) for item in wanted]  # fmt: skip
    labels = [part.labels for part in parts if part.labels is not None]
    return Chosen(
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if len(labels) == len(parts) else None,
        [name for part in parts for name in part.names],
    )


def _from_split(trained: Trained, split: str, index: int, key: str) -> Chosen:
    import torch

    size = len(trained.split(split))
    if index >= size:
        raise UserError(f"{key}={index}: split={split} has {size:,} images, 0 to {size - 1}")
    batch = trained.batch(split, torch.tensor([index]))
    name = f"{split} {index}"
    if batch.classes is not None:
        name += f" (class {trained.classes.name(int(batch.classes))})"
    return Chosen(batch.images, batch.labels, [name])


def _from_file(trained: Trained, path: str, key: str, label: Tensor | None, resize: bool) -> Chosen:
    from vaelab.datasets import images

    model = trained.model
    if model.conditional and label is None:
        example = model.condition.example
        raise UserError(f"label: {type(model).__name__} has to know the label of {path}: give {example} or another")
    read = images.read(path, model.shape, key, resize, trained.bits).to(model.device)
    x = images.as_model_sees(read, trained.pixel_range, trained.dataset["binarize"] != "none")
    return Chosen(x, None if label is None else label.to(model.device), [Path(path).name])


def as_label(trained: Trained, name: str, label: Tensor | None) -> str:
    """An image's name, with the label it is decoded as if one was asked for."""
    return name if label is None else f"{name} as {words_of(trained, label)}"


def words_of(trained: Trained, label: Tensor) -> str:
    """Says in words which label this is, [1] or [1, A]."""
    return trained.model.condition.words(label[0], trained.classes.name)


def spread(trained: Trained, split: str, count: int) -> Tensor:
    """Indices of `count` images, evenly spaced over the split; all, if there are no more."""
    import torch

    size = len(trained.split(split))
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64).round().long()


# --- where pictures go ------------------------------------------------------------------------


def of_rows(trained: Trained, asked: Options, kind: str, name: str) -> Path | None:
    """Returns the file to write rows to, `name`.csv of the run unless `out` names one; None for a run of images.

    Raises UserError if pictures of rows, or rows of pictures, are asked for.
    """
    if trained.fields is not None and asked.out is None:
        return Files(trained.folder).table(name)
    own_tables.check_kind(trained, asked.out, kind == "table")
    return None if trained.fields is None else Path(str(asked.out)).expanduser()


def require_pictures(trained: Trained, command: str) -> None:
    """Raises UserError if the run is of a table, of which there are no pictures."""
    if trained.fields is not None:
        raise UserError(f"{command}: it draws pictures, and this run is of a table: vaelab decode writes rows of codes")


def check_figure(out: str | None) -> None:
    """Raises UserError if `out` names no figure."""
    if out is not None and Path(out).suffix.lower() not in FIGURES:
        raise UserError(f"out={out}: a figure is a .png, .pdf or .svg file")


def kind_of(out: str | None) -> Literal["figure", "arrays", "folder", "table"]:
    """What `out` asks for: a figure, an .npz file, a folder of images, or a CSV of rows. Raises UserError otherwise."""
    if out is None:
        return "figure"
    if own_tables.is_table(out):
        return "table"
    path = Path(out).expanduser()
    if out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"out={out}: this folder is not empty, and its files would be mixed up: name another")
        return "folder"
    if path.suffix.lower() == ".npz":
        return "arrays"
    if path.suffix.lower() not in FIGURES:
        raise UserError(f"out={out}: give a .png, .pdf or .svg file for a figure, an .npz file, or a folder")
    return "figure"


def destination(out: str | None, run: Path, name: str) -> Path:
    """Where to write, which can be written to: `out`, or figures/`name`.png of the run. Raises UserError if not."""
    path = Files(run).figure(name) if out is None else Path(out).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not path.suffix:
            raise FileExistsError(17, "it is a file")
        if path.is_dir() and path.suffix.lower() in (*FIGURES, ".npz"):
            raise IsADirectoryError(21, "it is a folder")
        if not os.access(path if path.is_dir() else path.parent, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as error:
        raise UserError(f"out={path}: it cannot be written ({error.strerror}): name another path") from error
    return path


def write_images(
    path: Path,
    kind: str,
    total: int,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    folders: Sequence[str] | None = None,
) -> None:
    """Writes unit images with their labels, [n] or None: an .npz file, or a folder of PNGs, with a progress bar.

    .npz: `images`, [N, H, W, C] uint8, and `labels`, [N] int64 or [N, A], if there are any. Folder: NUMBER.png, or
    NUMBER-CLASS.png, or in the folder of its class, if folders for them are given, NUMBER.png.
    """
    from tqdm import tqdm

    keep, close = _folder(path, folders) if kind == "folder" else _arrays(path)
    with tqdm(total=total, desc="images", unit="image", delay=2, leave=False, disable=None) as bar:
        for images, labels in batches:
            keep((images * 255).round().byte().permute(0, 2, 3, 1).cpu(), labels)
            bar.update(len(images))
    close()


Writer = tuple[Callable[["Tensor", "Tensor | None"], None], Callable[[], None]]


def _folder(path: Path, folders: Sequence[str] | None) -> Writer:
    from vaelab.figures.pixels import save_png

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={path}: it cannot be made ({error.strerror}): name another folder") from error
    number = count()

    def keep(pixels: Tensor, labels: Tensor | None) -> None:
        classes = [None] * len(pixels) if labels is None or labels.ndim > 1 else labels.tolist()
        for image, label in zip(pixels, classes, strict=True):
            name = f"{next(number):06}"
            if label is not None:
                name = f"{name}-{label}" if folders is None else f"{folders[label]}/{name}"
            save_png(image.squeeze(2) if image.shape[2] == 1 else image, path / f"{name}.png")

    return keep, lambda: None


def _arrays(path: Path) -> Writer:
    import numpy as np
    import torch

    images: list[Tensor] = []
    classes: list[Tensor] = []

    def keep(pixels: Tensor, labels: Tensor | None) -> None:
        images.append(pixels)
        classes.extend([] if labels is None else [labels.cpu()])

    def close() -> None:
        arrays = {"images": torch.cat(images).numpy()}
        arrays |= {"labels": torch.cat(classes).numpy()} if classes else {}
        with whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    return keep, close
