"""Rows of an array as a split: read where they lie, converted to images when they are asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vaelab.core.batch import Batch

Layout = Literal["nd", "nhw", "nchw", "nhwc", "ncl", "nlc"]
AXES = {
    "nd": ("nd", (1, 2)),
    "nhw": ("nhw", (1,)),
    "nchw": ("nchw", ()),
    "nhwc": ("nchw", ()),
    "ncl": ("ncl", (2,)),
    "nlc": ("ncl", (2,)),
}
"""How the axes of a layout become those of images, [N, C, H, W]: their order, and where one of size 1 is put in."""


class ArraySplit:
    """A split of rows of an array, which are converted when they are read.

    values: [N, ...], numbers; of a file that is read where it lies, or in memory. layout: their axes. value_range: the
    values that become 0 and 1; None keeps 8 and 16 bits as they are. index: which rows, [M] int64; None for all.
    labels: [N] int64, [N, A] float32 or None; factors: [N, F] int64 or None.
    """

    def __init__(
        self,
        values: np.ndarray,
        layout: str,
        value_range: tuple[float, float] | None,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        factors: Tensor | None = None,
    ):
        self.values, self.layout, self.value_range = values, layout, value_range
        self.index, self.labels, self.factors = index, labels, factors
        channels, height, width = _as_images(values[:1], layout).shape[1:]
        self.shape = (channels, height, width)
        self.nbytes = len(self) * math.prod(self.shape) * (values.itemsize if value_range is None else 4)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves an open file out of a pickle: every process opens its own."""
        values = self.values
        return {**self.__dict__, "values": Path(str(values.filename)) if isinstance(values, np.memmap) else values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.values, Path):
            self.values = np.load(self.values, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.values) if self.index is None else len(self.index)

    def subset(self, index: Tensor) -> ArraySplit:
        rows = index if self.index is None else self.index[index]
        return ArraySplit(self.values, self.layout, self.value_range, rows, self.labels, self.factors)

    def to(self, device: torch.device) -> ArraySplit:
        """Returns the split itself: an array has no device."""
        return self

    def batch(self, index: Tensor) -> Batch:
        rows = index.cpu() if self.index is None else self.index[index.cpu()]
        x = _as_images(self.values[rows.numpy()], self.layout)
        if self.value_range is not None:
            low, high = self.value_range
            x = x.astype(np.float32) if x.dtype.itemsize < 4 else x  # float16 would be computed in float16
            x = ((x - low) / (high - low)).astype(np.float32)
        labels, factors = (None if t is None else t[rows] for t in (self.labels, self.factors))
        native = x.astype(x.dtype.newbyteorder("="))
        return Batch(torch.from_numpy(np.ascontiguousarray(native)), labels, factors)


def _as_images(x: np.ndarray, layout: str) -> np.ndarray:
    """Returns a view of `x` as [N, C, H, W]."""
    order, added = AXES[layout]
    return np.expand_dims(x.transpose([layout.index(axis) for axis in order]), added)
