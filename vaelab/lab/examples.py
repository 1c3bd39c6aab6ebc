"""A user's examples as a trained model sees them, and what the model makes of them in the user's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.commands.trained import own_tables
from vaelab.core.errors import UserError
from vaelab.core.randomness import seeded
from vaelab.datasets.own import table_file
from vaelab.datasets.own.array_split import ArraySplit
from vaelab.datasets.own.arrays import KEPT
from vaelab.datasets.own.table import cells_to_rows
from vaelab.datasets.splits import unit
from vaelab.inference import coding
from vaelab.lab.show import Table
from vaelab.nn.likelihoods.columns import Column
from vaelab.runs.trained import Trained

LAYOUTS = ("nchw", "nhwc", "nhw", "ncl", "nlc", "nd")
"""Orders of axes that are tried, beside that of the training data."""


def as_model_sees(trained: Trained, x: Any) -> Tensor:
    """Converts examples to what the model takes, [N, C, H, W] in its range.

    x: images of 8 or 16 bits or in [0, 1], or arrays in the units of the training data. Binarised pixels are black or
    white by 1/2. Of a table: a data frame, columns by name, mappings, a file, or numbers [N, columns]. Raises UserError
    for what the model does not take.
    """
    if trained.fields is not None:
        masked = trained.model.likelihood.missing
        rows = cells_to_rows(trained.fields, _cells(trained.fields, x), "x", masked)
        return torch.from_numpy(rows)[:, None, None]
    values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    config, model = trained.dataset, trained.model
    kind = values.dtype.kind
    unknown = (
        kind in "bui" and values.dtype not in KEPT and config.get("value_range") is None
    )  # white is none of theirs
    values = values.astype(np.float32) if kind == "f" or unknown else values
    for layout in (config.get("layout"), *LAYOUTS):
        if layout is None or len(layout) != values.ndim or values.dtype.kind not in "buif" or not len(values):
            continue
        split = ArraySplit(values, layout, config.get("value_range"))
        if split.shape == model.shape:
            images = unit(split.batch(torch.arange(len(split))).images)
            _check(images, config)
            images = (images > 0.5).float() if config["binarize"] != "none" else images
            low, high = trained.pixel_range
            return images.mul_(high - low).add_(low)
    shape = ", ".join(map(str, model.shape))
    raise UserError(f"x: {values.dtype} {list(values.shape)}, and the model takes numbers, [N, {shape}]")


def _check(images: Tensor, config: Mapping[str, Any]) -> None:
    """Raises UserError for values that are no number, or where white is 1, no brightness."""
    if not (torch.isfinite(images) | (images.isnan() & (config.get("missing") == "mask"))).all():
        raise UserError("x: it has a value that is NaN or infinite")
    low, high = images.nan_to_num(0.5).aminmax()
    if config.get("value_range") is None and (low < 0 or high > 1):
        raise UserError(
            f"x: its values go from {low:.6g} to {high:.6g}, and floats are from 0, black, to 1, white\n"
            "bytes may be given as uint8: x.astype(numpy.uint8), x.to(torch.uint8)"
        )


def _cells(fields: Sequence[Column], x: Any) -> dict[str, np.ndarray]:
    """Returns the cells of rows by column, as table_file.read gives them: float64, or texts."""
    if isinstance(x, str | Path):
        return table_file.read(str(x), "x")
    if isinstance(x, list) and x and isinstance(x[0], Mapping):
        x = {name: [row.get(name) for row in x] for name in x[0]}
    names = getattr(x, "columns", None)
    if names is not None:  # of a data frame
        x = {name: x[name] for name in names}
    if not isinstance(x, Mapping):
        values = np.asarray(torch.as_tensor(x).detach().cpu())
        if values.ndim != 2 or values.shape[1] != len(fields):
            names = ", ".join(field.name for field in fields)
            raise UserError(f"x: {list(values.shape)}, and the run is of {len(fields)} columns: {names}")
        x = {field.name: values[:, i] for i, field in enumerate(fields)}
    columns = {str(name): np.asarray(values) for name, values in x.items()}
    texts = {field.name for field in fields if field.kind == "categorical"}
    return {name: _column(values, name in texts) for name, values in columns.items()}


def _column(values: np.ndarray, texts: bool) -> np.ndarray:
    """Returns a column's cells. texts: the truth values of a data frame stand as True and False in its CSV file."""
    if values.dtype.kind in "buif" and not (texts and values.dtype.kind == "b"):
        return values.astype(np.float64)
    return np.array(["" if value is None or value != value else str(value) for value in values.tolist()])


def decoded(trained: Trained, codes: Tensor, labels: Tensor | None, seed: int | None = None) -> Any:
    """Decodes codes to mean examples in the user's units: images, vectors, sequences, or rows of a table.

    seed: draws rows of a table from p(x|z) by it, since means would vary too little; None for means.
    """
    model = trained.model
    if trained.fields is None:
        return _in_own_units(trained, coding.decode(model, codes, labels, trained.pixel_range))
    make = model.likelihood.mean if seed is None else model.likelihood.sample
    with seeded(seed or 0, model.device), torch.no_grad():
        rows = torch.cat([make(raw).cpu() for raw in coding.raw(model, codes, labels)])
    columns = own_tables.columns(trained, rows, labels)
    cells = (np.asarray(column).tolist() for column in columns.values())  # of Python's types
    return Table(dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True))


def _in_own_units(trained: Trained, images: Tensor) -> Tensor:
    """Gives unit images, [N, C, H, W], the units and axes of the training data: vectors [N, D], sequences [N, C, L]."""
    if value_range := trained.dataset.get("value_range"):
        low, high = value_range
        images = images * (high - low) + low
    channels, height, _ = trained.model.shape
    return images.flatten(1) if channels == height == 1 else images.squeeze(2) if height == 1 else images


def labels_of(trained: Trained, labels: Any, count: int) -> Tensor | None:
    """Returns the labels of `count` examples, [count] int64 or [count, A], or None for a model that is told none.

    labels: classes by number or name, or vectors, one for each or one for all. Raises UserError where they
    are missing or too many.
    """
    model, name = trained.model, type(trained.model).__name__
    if labels is None:
        if model.conditional:
            raise UserError(f"labels: {name} has to know the label of each example")
        return None
    if not model.told:
        raise UserError(f"labels: {name} takes none: leave them out")
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels) if isinstance(labels, tuple) else labels
    depth = 0 if not isinstance(given, list) else 1 + any(isinstance(label, list | tuple) for label in given)
    each = given if depth > model.condition.axes else [given] * count
    if len(each) != count:
        raise UserError(f"labels: {len(each)} for {count} examples: give one for each")
    return torch.cat([model.condition.read(label, trained.classes.require) for label in each])
