"""A user's own arrays: images of any depth, sequences and vectors."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.files import NO_ARRAYS, unreadable
from vaelab.core.pixels import to_unit
from vaelab.core.types import PositiveInt, ProperFraction, Real, Shape
from vaelab.core.words import counted
from vaelab.datasets.base import ImageData
from vaelab.datasets.own.array_split import AXES, ArraySplit, Layout
from vaelab.datasets.sources import count_aside, hold_out

log = logging.getLogger("vaelab")

CHANNELS = (1, 3, 4)
"""Numbers of channels by which an axis of channels is known."""
AT_A_TIME = 2**22
"""Values that are looked at together."""
KEPT = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
"""Types that are held as they are, with their greatest value."""


@dataclass(kw_only=True, eq=False)
class Arrays(ImageData):
    """Arrays in an .npy file, which is read where it lies and may be larger than the memory, or in an .npz file.

    An .npz file holds `x`, or one array alone; where known `labels`, [N], integers from 0 or names, each of which that
    occurs is a class, or vectors of numbers, [N, A]; `factors`, [N, F], integers from 0; `test_x`, `test_labels` and
    `test_factors`; `class_names`, [classes], of which integers are the places; `label_names`, [A], of the entries of
    vectors.

    root: the file. layout: the axes, n(umber) c(hannels) h(eight) w(idth) l(ength) d(imensions); None: as the shape
    says. A vector is held as an image of one row, a sequence as one of height 1. value_range: the values of black and
    white; None: 0 and the greatest of 8 and 16 bits, [0, 1] where all values of another type lie in it, and else their
    least and greatest. test_size: what is set aside for testing where there is no `test_x`: a count if 1 or more,
    a fraction below 1, in every class's proportion. missing: whether to `refuse` NaN, or to `mask` them: a likelihood
    does not count them. label_names: names of the entries of labels that are vectors; None: those in the file, or else
    `label_0` and so on.
    """

    root: str
    layout: Layout | None
    value_range: tuple[Real, Real] | None
    test_size: PositiveInt | ProperFraction
    missing: Literal["refuse", "mask"]
    label_names: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked and self.binarize != "none":
            raise UserError("dataset.missing=mask: what is missing has no binary value: leave out dataset.binarize")

    def load(self) -> tuple[ArraySplit, ArraySplit]:
        """Opens the file and looks at all values. Raises UserError if they, or the file, cannot be used."""
        arrays, values = self._arrays, self._arrays["x"]
        layout, value_range, vectors = self._layout(values), self._range, self._label_names is not None
        labels, factors = (None if t is None else torch.from_numpy(t) for t in (self._labels[0], arrays.get("factors")))
        whole = ArraySplit(values, layout, value_range, labels=labels, factors=factors)
        if "test_x" not in arrays:
            count = count_aside(f"dataset.root={self.root}", len(whole), self.test_size, "add a `test_x`")
            kept, aside = hold_out(
                torch.zeros(len(whole), dtype=torch.int64) if labels is None or vectors else labels, count
            )
            return whole.subset(kept), whole.subset(aside)
        labels, factors = (
            None if t is None else torch.from_numpy(t) for t in (self._labels[1], arrays.get("test_factors"))
        )
        return whole, ArraySplit(arrays["test_x"], layout, value_range, labels=labels, factors=factors)

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    @property
    def class_names(self) -> list[str] | None:
        return self._classes

    @property
    def factor_sizes(self) -> dict[str, int] | None:
        """Number of values of each factor, named by its place: `factor_0`."""
        parts = [self._arrays[name] for name in ("factors", "test_factors") if name in self._arrays]
        if not parts:
            return None
        return {f"factor_{i}": max(int(part[:, i].max()) for part in parts) + 1 for i in range(parts[0].shape[1])}

    @property
    def masked(self) -> bool:
        return self.missing == "mask"

    @property
    def found(self) -> dict[str, Any]:
        """The range of values, where they had to be looked at for it, and names of the entries of label vectors."""
        answers = {"value_range": self._range and list(self._range), "label_names": self._label_names}
        return {key: value for key, value in answers.items() if value is not None}

    # --- values outside the training ----------------------------------------------------------

    def images_of(self, shape: Shape, key: str) -> tuple[Tensor, np.ndarray]:
        """Reads all of the file's `x` as a model of `shape` sees it, [N, C, H, W], beside the array as it is."""
        x = self._arrays["x"]
        split = ArraySplit(x, self._layout(x), self._range)
        if split.shape != shape:
            sizes = " and the model takes ".join(" x ".join(map(str, one)) for one in (split.shape, shape))
            raise UserError(f"{key}={self.root}: it holds {sizes}")
        return self.as_model_sees(split.batch(torch.arange(len(split)))).images, np.asarray(x)

    def values_of(self, images: Tensor) -> np.ndarray:
        """Turns images as a model sees them, [N, C, H, W], into values with the axes of the file."""
        x, (low, high) = self._arrays["x"], self._range or (0.0, KEPT.get(self._arrays["x"].dtype, 1.0))
        order, added = AXES[layout := self._layout(x)]
        unit = to_unit(images, self.pixel_range, clamp=False).double().numpy()
        return np.squeeze(unit * (high - low) + low, added).transpose([order.index(axis) for axis in layout])

    # --- what the file holds ------------------------------------------------------------------

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """The file's arrays by name, with shapes that go together."""
        arrays = _read(self.root)
        x = arrays["x"]
        for name in ("x", "test_x"):
            if name in arrays and (arrays[name].dtype.kind not in "buif" or not arrays[name].size):
                what = arrays[name].dtype if arrays[name].size else f"an empty array, {list(arrays[name].shape)}"
                raise self._error(f"{name} is {what}", "numbers are wanted: bool, integers or floats")
        if "test_x" in arrays and arrays["test_x"].shape[1:] != x.shape[1:]:
            shapes = f"{list(arrays['test_x'].shape)} beside x, {list(x.shape)}"
            raise self._error(f"test_x is {shapes}", "make them alike but for their first axis")
        if "test_x" in arrays and {x.dtype, arrays["test_x"].dtype} & set(KEPT) and x.dtype != arrays["test_x"].dtype:
            raise self._error(
                f"test_x is {arrays['test_x'].dtype} beside x, {x.dtype}", "make them of one type: white is one value"
            )
        for name, of in (("labels", "x"), ("factors", "x"), ("test_labels", "test_x"), ("test_factors", "test_x")):
            if name not in arrays:
                if name.startswith("test_") and of in arrays and name.removeprefix("test_") in arrays:
                    raise self._error(f"it holds {name.removeprefix('test_')} and test_x, but no {name}", "add them")
                continue
            if of not in arrays:
                raise self._error(f"it holds {name}, but no {of}", f"add {of}, or leave {name} out")
            arrays[name] = self._numbered(name, arrays[name], len(arrays[of]))
        shapes = [arrays[name].shape[1:] for name in ("labels", "test_labels") if name in arrays]
        if len(set(shapes)) > 1:
            raise self._error(f"a label is {list(shapes[0])}, and of test_labels {list(shapes[1])}", "make them alike")
        return arrays

    def _numbered(self, name: str, values: np.ndarray, count: int) -> np.ndarray:
        """Checks labels, [N] integers from 0 or names, or factors, [N, F] integers from 0; integers become int64.

        Labels that are vectors of finite numbers, [N, A], become float32.
        """
        if name.endswith("labels") and values.ndim == 2 and len(values) == count and values.dtype.kind in "biuf":
            if not np.isfinite(values).all():
                raise self._error(f"{name} holds NaN or infinite numbers", "leave out rows where it is not known")
            return values.astype(np.float32)
        axes, kinds = (1, "biuUS") if name.endswith("labels") else (2, "biu")
        proper = values.ndim == axes and len(values) == count and values.dtype.kind in kinds
        least = values.min(initial=0) if values.dtype.kind == "i" else 0
        if not proper or least < 0:
            what = f"{name} holds {least}" if proper else f"{name} is {values.dtype} {list(values.shape)}"
            wanted = f"[{count}]" if axes == 1 else f"[{count}, F]"
            vectors = f", or vectors of numbers, [{count}, A]" if axes == 1 else ""
            raise self._error(
                what, f"it must be {wanted}, integers from 0 on{vectors}; leave out rows where it is not known"
            )
        return values.astype(str) if values.dtype.kind in "US" else values.astype(np.int64)

    @cached_property
    def _classes(self) -> list[str] | None:
        if "labels" not in self._arrays or self._label_names is not None:
            return None
        if not self._by_names:
            return [str(value) for value in self._values]
        names, count = [str(name) for name in self._arrays["class_names"]], int(self._values[-1]) + 1
        if len(names) < count:
            raise self._error(f"it has {len(names)} class_names, and labels to {count - 1}", "name every class")
        return names

    @property
    def _by_names(self) -> bool:
        """Whether labels are places in `class_names`, some of which may have no example."""
        return "class_names" in self._arrays and self._arrays["labels"].dtype.kind == "i"

    @cached_property
    def _values(self) -> np.ndarray:
        """The labels that occur, each once, in their order."""
        return np.unique(np.concatenate([self._arrays[n] for n in ("labels", "test_labels") if n in self._arrays]))

    @cached_property
    def _label_names(self) -> list[str] | None:
        """Names of the entries of labels that are vectors, None where they are not."""
        labels, given = self._arrays.get("labels"), self.label_names
        if labels is None or labels.ndim == 1:
            if given is not None:
                raise UserError(f"dataset.label_names: the labels of {self.root} are no vectors, [N, A]: leave it out")
            return None
        names = given or [str(name) for name in self._arrays.get("label_names", [])]
        names = names or [f"label_{i}" for i in range(labels.shape[1])]
        if not len(set(names)) == len(names) == labels.shape[1]:
            raise UserError(
                f"dataset.label_names: {counted(len(names), 'name')} for {labels.shape[1]} numbers in each label of "
                f"{self.root}: give each a name of its own"
            )
        return names

    @property
    def _labels(self) -> list[np.ndarray | None]:
        """Labels to train on and to test on, [N] int64 or [N, A] float32 each, or None."""
        known = [self._arrays.get(name) for name in ("labels", "test_labels")]
        if self._classes is None or self._by_names:
            return known
        return [values if values is None else np.searchsorted(self._values, values) for values in known]

    def _layout(self, x: np.ndarray) -> Layout:
        """Returns the axes of `x`. Raises UserError where its shape does not say which they are, or says otherwise."""
        shape = list(x.shape)
        if self.layout is not None:
            if len(self.layout) != x.ndim:
                raise UserError(f"dataset.layout={self.layout}: it has {len(self.layout)} axes, and x is {shape}")
            return self.layout
        guesses: dict[int, Layout] = {2: "nd", 3: "nhw"}
        if x.ndim == 4:
            fitting: list[Layout] = [axes for axes in ("nchw", "nhwc") if shape[axes.index("c")] in CHANNELS]
            if len(fitting) == 1:
                return fitting[0]
            raise self._error(f"which axis of {shape} has the channels?", "set dataset.layout=nchw or nhwc")
        if x.ndim not in guesses:
            raise self._error(
                f"x is {shape}", "vectors [N, D] are wanted, images [N, H, W] or [N, C, H, W], or sequences"
            )
        return guesses[x.ndim]

    @cached_property
    def _range(self) -> tuple[float, float] | None:
        """The values of black and white; None for a whole type's. Raises UserError for values that cannot be used."""
        parts = [self._arrays[name] for name in ("x", "test_x") if name in self._arrays]
        white = KEPT.get(parts[0].dtype.newbyteorder("=")) if len({part.dtype for part in parts}) == 1 else None
        given = self.value_range
        if given is not None and not given[0] < given[1]:
            raise UserError(f"dataset.value_range={list(given)}: the first value must be the smaller one")
        if given in ((0, white), None) and white == 255:
            return None
        (low, high), *ranges = (self._extremes(part) for part in parts)
        if given is not None:
            least, most = min([low, *(r[0] for r in ranges)]), max([high, *(r[1] for r in ranges)])
            if least < given[0] or most > given[1]:
                raise UserError(
                    f"dataset.value_range={list(given)}: the values of {self.root} reach from {least:g} to {most:g}"
                )
            return None if given == (0, white) else (float(given[0]), float(given[1]))
        if white is not None:
            if 0 < high < 2**14:
                log.warning(
                    f"dataset.root={self.root}: the greatest value of 16 bits is {high:g}, and white is 65535: "
                    f"dataset.value_range=[0,{2 ** int(high).bit_length() - 1}] makes them brighter"
                )
            return None
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)

    def _extremes(self, values: np.ndarray) -> tuple[float, float]:
        """Finds the least and the greatest value, some rows at a time. Raises UserError for NaN and infinite ones."""
        low, high = math.inf, -math.inf
        rows = max(1, AT_A_TIME // math.prod(values.shape[1:]))
        for start in range(0, len(values), rows):
            part = values[start : start + rows]
            wrong = np.isinf(part) if self.masked else ~np.isfinite(part)
            if wrong.any():
                value, row = part[wrong][0], start + int(np.argwhere(wrong)[0][0])
                remedy = "dataset.missing=mask has NaN count nothing; or remove" if np.isnan(value) else "remove"
                word = "NaN" if np.isnan(value) else "infinite"
                raise self._error(f"row {row} (the first is 0) has a value that is {word}", f"{remedy} such values")
            known = part[~np.isnan(part)] if self.masked else part
            if known.size:
                low, high = min(low, float(known.min())), max(high, float(known.max()))
        if not low <= high:
            raise self._error("all values are NaN", "a model needs some")
        return low, high

    def _error(self, why: str, remedy: str) -> UserError:
        return UserError(f"dataset.root={self.root}: {why}\n{remedy}")


def _read(root: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name. Raises UserError, naming it, if it is missing, damaged or of another kind."""
    path = Path(root).expanduser()
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"dataset.root={root}: it must be a .npy or .npz file; tables are dataset=table, images folder")
    if not path.is_file():
        raise UserError(f"dataset.root={root}: there is no such file")
    try:
        if path.suffix == ".npy":
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except NO_ARRAYS as error:
        raise UserError(
            f"dataset.root={root}: {unreadable(error)}\nsave numbers, with numpy.save or numpy.savez"
        ) from error
    if len(arrays) == 1:
        return {"x": next(iter(arrays.values()))}
    if "x" not in arrays:
        raise UserError(f"dataset.root={root}: it holds {', '.join(sorted(arrays)) or 'nothing'}: name one of them x")
    return arrays
