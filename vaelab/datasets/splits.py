"""Splits of image data, held in memory or read by index.

A split is anything with the methods of `Split`. Images are uint8, uint16 or floats until they reach the training
device; a batch is an index into a split, never a list of single images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError

WHITE = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The types of stored images, each with its value of white; black is 0."""


class Split(Protocol):
    """A part of a data set, read by index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all images when they are held in memory; 0 if they are drawn when asked for."""
        ...

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> Split:
        """Makes a split of the images at `index`, [M] int64."""
        ...

    def batch(self, index: Tensor) -> Batch:
        """Reads the images at `index`, [B] int64, as a type of `WHITE` on the split's device."""
        ...

    def to(self, device: torch.device) -> Split:
        """Moves the split's tensors to `device`; returns a split."""
        ...


class TensorSplit:
    """A split held as one tensor.

    images: [N, C, H, W] of a type of `WHITE`; labels: [N] int64 or None; factors: [N, F] int64 or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, factors: Tensor | None = None):
        if images.dtype not in WHITE or images.ndim != 4:
            types = ", ".join(str(dtype).removeprefix("torch.") for dtype in WHITE)
            raise ValueError(f"images must be [N, C, H, W] of {types}, got {images.dtype} {tuple(images.shape)}")
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)
        self.images, self.labels, self.factors = images, labels, factors

    @property
    def nbytes(self) -> int:
        return self.images.nbytes

    def __len__(self) -> int:
        return len(self.images)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TensorSplit:
        tensors = (self.images, self.labels, self.factors)
        return TensorSplit(*(None if t is None else function(t) for t in tensors))  # type: ignore[arg-type]

    def subset(self, index: Tensor) -> TensorSplit:
        return self._map(lambda t: rows(t, index.to(t.device)))

    def batch(self, index: Tensor) -> Batch:
        index = index.to(self.images.device)
        return Batch(
            rows(self.images, index),
            None if self.labels is None else rows(self.labels, index),
            None if self.factors is None else rows(self.factors, index),
        )

    def to(self, device: torch.device) -> TensorSplit:
        return self._map(lambda t: t.to(device))


def checked(parts: Any, num_classes: int | None, any_values: bool) -> tuple[Split, Split]:
    """Returns what `load` gives, if it can be trained on; of images in memory the values are looked at.

    any_values: whether floats may lie outside of [0, 1], as in a table, or be missing. Raises UserError else.
    """
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise UserError(f"dataset: load gives a {type(parts).__name__}: two splits are wanted, to train and to test on")
    if parts[0].shape != parts[1].shape:
        raise UserError(
            f"dataset: images to train on are {parts[0].shape}, to test on {parts[1].shape}: make them alike"
        )
    for split, what in zip(parts, ("train", "test"), strict=True):
        if isinstance(split, TensorSplit):
            _check_tensors(split, f"dataset: of the images to {what} on", num_classes, any_values)
    return parts[0], parts[1]


def _check_tensors(split: TensorSplit, what: str, num_classes: int | None, any_values: bool) -> None:
    images, labels = split.images, split.labels
    for name, values in (("labels", labels), ("factors", split.factors)):
        if values is not None and len(values) != len(images):
            raise UserError(f"{what} there are {len(images)}, and {len(values)} {name}: give each its own")
    if images.is_floating_point() and len(images) and not any_values:
        low, high = (float(value) for value in images.aminmax())
        if not 0 <= low <= high <= 1:
            raise UserError(f"{what} values lie from {low:.4g} to {high:.4g}: they must lie in [0, 1], black and white")
    if labels is not None and num_classes is not None:
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(f"{what} labels are {labels.dtype} {list(labels.shape)}: classes are [N] int64")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            lie = f"{int(labels.min())} to {int(labels.max())}"
            raise UserError(f"{what} labels lie from {lie}: num_classes={num_classes} has 0 to {num_classes - 1}")


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Takes whole rows, which is faster than values[index]. A GPU gathers no uint16: their bits are taken as int16."""
    if values.dtype == torch.uint16:
        return values.view(torch.int16).index_select(0, index).view(torch.uint16)
    return values.index_select(0, index)


def unit(images: Tensor) -> Tensor:
    """Converts stored images of any shape to floats, black to 0 and white to 1; floats stay as they are, but copied."""
    white = WHITE[images.dtype]
    return images.clone() if white == 1 else images.float().div_(white)


def gather(split: Split) -> TensorSplit:
    """Reads a whole split into memory, with a progress bar if it takes long."""
    from tqdm import tqdm

    parts = torch.arange(len(split)).split(256)
    bar = tqdm(parts, desc="reading images", unit="batch", delay=2, leave=False, disable=None)
    images, labels, factors = zip(*(split.batch(part)[:3] for part in bar), strict=True)
    return TensorSplit(
        torch.cat(images),
        None if labels[0] is None else torch.cat(labels),
        None if factors[0] is None else torch.cat(factors),
    )


def drawn_once(split: TensorSplit, seed: int) -> TensorSplit:
    """Draws each pixel black or white, with its value as the probability of white: a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    images, white = torch.empty(split.images.shape, dtype=torch.uint8), WHITE[split.images.dtype]
    for part, out in zip(split.images.split(4096), images.split(4096), strict=True):
        torch.mul(torch.rand(part.shape, generator=generator) * white < part, 255, out=out)
    return TensorSplit(images, split.labels, split.factors)


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, float]:
    """Computes the mean of images, [C, H, W] float32, and the standard deviation of all pixels around it.

    parts: the images, some at a time, [n, C, H, W]; a value that is NaN does not count.
    """
    count = total = squares = torch.zeros((), dtype=torch.float64)
    for part in parts:
        x = part.double()
        count = count + (len(x) - x.isnan().sum(0))
        total = total + x.nansum(0)
        squares = squares + x.square().nansum()
    mean = total / count.clamp_min(1)
    variance = (squares - (count * mean.square()).sum()) / count.sum().clamp_min(1)
    return mean.float(), float(variance.clamp_min(0).sqrt())
