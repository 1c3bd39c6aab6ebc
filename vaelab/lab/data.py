"""Data from Python, kept in a file that a run can be resumed and evaluated from, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.runs.layout import OUTPUTS

FOLDER = OUTPUTS / "arrays"
"""Folder of the files that data from Python are kept in, one for each content."""
BY_SUFFIX = {".npy": "arrays", ".npz": "arrays", ".csv": "table", ".parquet": "table", ".vaelab": "prepared"}
"""Data sets that read a file of such a suffix."""
NAMES = ("x", "labels", "factors", "class_names", "label_names", "test_x", "test_labels", "test_factors")
"""Names of arrays that are trained on together."""
IMAGES, LABELS = ("image", "img", "x", "pixel_values"), ("label", "labels", "y", "target", "fine_label")
"""Names by which a data set of mappings is known to hold images, and labels."""


def options_of(data: Any, labels: Any = None, test: Any = None) -> dict[str, Any]:
    """Finds the options of conf/dataset for what a user has handed over; data in memory are written to a file.

    data, labels, test: as `vaelab.train` takes them. Raises UserError for what cannot be used.
    """
    if isinstance(data, str | Path):
        if labels is not None or test is not None:
            raise UserError("labels=, test=: they are for arrays: of a file or a folder, leave them out")
        return _named(data)
    if hasattr(data, "to_csv") and hasattr(data, "iloc"):  # a data frame of pandas
        if labels is not None or test is not None:
            raise UserError(
                "labels=, test=: they are for arrays: of a data frame, label= names the column of the classes, and "
                "test_size= says how much is set aside"
            )
        return {"dataset": "table", "dataset.root": _keep_table(data)}
    arrays = _parts(data, "")
    if labels is not None:
        arrays["labels"] = _labels(labels, len(arrays["x"]), "labels")
    if test is not None:
        arrays |= _tested(_parts(test, "test "))
    return {"dataset": "arrays", "dataset.root": _keep(arrays)}


def with_options(found: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Joins what `options_of` has found with a user's options, of which `dataset` may be a mapping of further keys."""
    keys = options.get("dataset")
    named = {"dataset": {"": found["dataset"], **keys}} if isinstance(keys, Mapping) else {}
    return {**found, **options, **named}


def _named(data: str | Path) -> dict[str, Any]:
    path = Path(data).expanduser()
    if path.is_dir():
        return {"dataset": "folder", "dataset.root": path}
    if path.suffix.lower() in BY_SUFFIX:
        return {"dataset": BY_SUFFIX[path.suffix.lower()], "dataset.root": path}
    if isinstance(data, Path) or path.exists() or "/" in data:
        known = ", ".join(BY_SUFFIX)
        raise UserError(f"data: {data} is no folder of images, and no file that ends in {known}")
    return {"dataset": data}


def _parts(data: Any, of: str) -> dict[str, np.ndarray]:
    """Takes apart what a user has handed over: arrays by name, `x` and, where known, `labels`."""
    if isinstance(data, Mapping) and "train" in data:  # a DatasetDict of Hugging Face
        parts = _parts(data["train"], of)
        return parts | (_tested(_parts(data["test"], "test ")) if "test" in data else {})
    if isinstance(data, Mapping):
        if "x" not in data:
            raise UserError(f"{of}data: it holds {', '.join(map(str, data)) or 'nothing'}: name one of them x")
        if unknown := [str(name) for name in data if name not in NAMES]:
            raise UserError(f"{of}data: it holds {', '.join(unknown)}: known are {', '.join(NAMES)}")
        x = _numbers(data["x"], f"{of}data: x")
        others = {name: _numbers(values, f"{of}data: {name}") for name, values in data.items() if name != "x"}
        return {"x": x, **others}
    if isinstance(data, tuple) and len(data) == 2:
        x = _numbers(data[0], f"{of}data")
        return {"x": x, "labels": _labels(data[1], len(x), f"{of}labels")}
    of_numbers = isinstance(data, list) and data and isinstance(data[0], list | int | float)
    if hasattr(data, "__array__") or of_numbers:
        return {"x": _numbers(data, f"{of}data")}
    if hasattr(data, "collate_fn") and hasattr(data, "dataset"):
        raise UserError(f"{of}data: a {type(data).__name__} gives batches: give its data set, loader.dataset")
    if not hasattr(data, "__getitem__") and not isinstance(data, Iterable):
        raise UserError(f"{of}data: a {type(data).__name__} cannot be trained on: give arrays, a Dataset or a folder")
    return _gathered(data, of)


def _tested(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"test_{name}": values for name, values in parts.items() if name not in ("class_names", "label_names")}


def _gathered(data: Any, of: str) -> dict[str, np.ndarray]:
    """Reads a data set item by item, with a progress bar if it takes long: images alone, pairs, or mappings."""
    from tqdm import tqdm

    names = _columns(data, of)
    items = (data[i] for i in range(len(data))) if hasattr(data, "__len__") else data
    size = len(data) if hasattr(data, "__len__") else None
    bar = tqdm(items, desc="reading the data", total=size, unit="item", delay=2, leave=False, disable=None)
    xs, labels = [], []
    for number, item in enumerate(bar):
        x, label = _item(item, names, f"{of}data: item {number}")
        if xs and x.shape != xs[0].shape:
            raise UserError(
                f"{of}data: item {number} is {list(x.shape)}, and item 0 {list(xs[0].shape)}: make them alike"
            )
        xs.append(x)
        labels.append(label)
    if not xs:
        raise UserError(f"{of}data: it is empty")
    parts = {"x": np.stack(xs)}
    known = [label for label in labels if label is not None]
    if known and len(known) < len(xs):
        first = next(i for i, label in enumerate(labels) if label is None)
        raise UserError(f"{of}data: item {first} has no label, and others have one: give one to each, or to none")
    if known:
        parts["labels"] = _classes_or_vectors(known, f"{of}data")
        whose = "label_names" if parts["labels"].ndim == 2 else "class_names"
        if of_labels := _names_of(data, names, whose):
            parts[whose] = np.array(of_labels)
    return parts


def _columns(data: Any, of: str) -> tuple[str, str | None] | None:
    """Names of the columns with images and labels in a data set of mappings; None for one of pairs or of images."""
    known = getattr(data, "column_names", None)
    if not isinstance(known, list):
        return None
    pictures = [name for name in known if type(data.features[name]).__name__ == "Image"]
    images = pictures or [name for name in IMAGES if name in known]
    if not images:
        raise UserError(f"{of}data: which of its columns {', '.join(known)} holds the images? Name it image")
    return images[0], next((name for name in LABELS if name in known), None)


def _item(item: Any, names: tuple[str, str | None] | None, what: str) -> tuple[np.ndarray, Any]:
    label = None
    if isinstance(item, Mapping):
        image, of_label = names or (_first(IMAGES, item), _first(LABELS, item))
        if image not in item:
            raise UserError(f"{what} has {', '.join(map(str, item))}: name the image x or image")
        item, label = item[image], item.get(of_label)
    elif isinstance(item, tuple | list) and item:
        item, label = item[0], item[1] if len(item) > 1 else None
    return _numbers(item, what), None if label is None else _label(label, what)


def _label(label: Any, what: str) -> np.ndarray:
    """Returns an item's label: a class, [], which is a number or a name, or a vector, [A]."""
    values = np.asarray(label) if isinstance(label, str) else _numbers(label, f"{what}: its label")
    if values.ndim > 1:
        raise UserError(
            f"{what}: its label is {list(values.shape)}: give one class or one vector to each item, or none"
        )
    return values


def _classes_or_vectors(labels: list[np.ndarray], what: str) -> np.ndarray:
    """Returns classes, [N], or vectors, [N, A]. Where all vectors are one-hot, the classes are the places of the 1s."""
    shape = labels[0].shape
    other = next((number for number, label in enumerate(labels) if label.shape != shape), None)
    if other is not None:
        raise UserError(
            f"{what}: item {other} has a label of {list(labels[other].shape)}, and item 0 of {list(shape)}: make them "
            "alike"
        )
    values = np.stack(labels)
    one_hot = values.ndim == 2 and ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    return values.argmax(1) if one_hot and values.shape[1] > 1 else values


def _first(names: Iterable[str], item: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in item), None)


def _names_of(data: Any, names: tuple[str, str | None] | None, whose: str) -> list[str] | None:
    """Returns `class_names`, or `label_names` of the entries of vectors, where the data set has them."""
    held = {"class_names": "classes", "label_names": "attr_names"}[whose]  # as torchvision calls them
    known = getattr(data.features[names[1]], "names", None) if names and names[1] else getattr(data, held, None)
    return [str(name) for name in known if name] if isinstance(known, list | tuple) and len(known) else None


def _numbers(values: Any, what: str) -> np.ndarray:
    """Makes an array of numbers of a tensor, a picture or lists. Raises UserError for anything else."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if isinstance(values, np.ma.MaskedArray):
        raise UserError(f'{what} has a mask: put NaN in its place, x.filled(numpy.nan), and add missing="mask"')
    if getattr(values, "mode", None) == "P":  # a picture of PIL that holds places in its palette, not colours
        values = values.convert("RGB")
    if isinstance(values, str | bytes):
        raise UserError(f"{what} is a text, {values[:40]!r}: numbers or pictures are wanted")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of several lengths
        raise UserError(f"{what} is no array: {str(error).splitlines()[0][:100]}") from error
    if array.dtype.kind not in "buifUS":
        raise UserError(f"{what} is a {type(values).__name__}: an array of numbers or a picture is wanted")
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _labels(labels: Any, count: int, what: str) -> np.ndarray:
    array = np.asarray(labels) if getattr(labels, "dtype", None) is not None and not hasattr(labels, "detach") else None
    if array is not None and array.dtype.kind in "OT" and all(isinstance(name, str) for name in array.flat):
        labels = array.astype(str)  # names in an array of objects, or in a column of a data frame
    array = _numbers(labels, what)
    if array.shape[:1] != (count,) or array.ndim > 2:
        raise UserError(f"{what}: {list(array.shape)} for {count:,} examples: give a class or a vector for each")
    return array


def _keep(arrays: dict[str, np.ndarray]) -> Path:
    """Writes arrays to a file whose name says their content, unless it is there. Returns its path."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
    alone = set(arrays) == {"x"}
    path = FOLDER / f"{digest.hexdigest()}{'.npy' if alone else '.npz'}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial, partial.open("wb") as file:
            np.save(file, arrays["x"]) if alone else np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def _keep_table(frame: Any) -> Path:
    """Writes a data frame to a CSV file whose name says its content. Returns its path."""
    text = frame.to_csv(index=False)
    path = FOLDER / f"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.csv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return path
