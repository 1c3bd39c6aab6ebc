"""What commands on the rows of a table share: rows read as a run sees them, and tables that are written."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaelab.core.errors import UserError
from vaelab.core.files import whole

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vaelab.datasets.images import Found
    from vaelab.nn.likelihoods.columns import Column
    from vaelab.runs.trained import Trained


class Rows(NamedTuple):
    """The rows of a file. cells: all its columns. x: [N, 1, 1, D] as the model sees them. labels: [N] or None."""

    cells: dict[str, np.ndarray]
    x: Tensor
    labels: Tensor | None

    @property
    def found(self) -> Found:
        """The rows as commands on images take these: named by their number."""
        from vaelab.datasets.images import Found
        from vaelab.datasets.splits import TensorSplit

        return Found([f"row {i}" for i in range(1, len(self.x) + 1)], TensorSplit(self.x), None, self.labels)


def read(trained: Trained, path: str, key: str, label: Tensor | None) -> Rows:
    """Reads a table as the run saw its own. label: that of all rows, [1] or [1, A]; None takes the run's
    column of classes.

    Raises UserError, naming file and column, for what the run cannot take.
    """
    import torch

    from vaelab.datasets.own import table_file
    from vaelab.datasets.own.table import cells_to_rows
    from vaelab.nn.conditions import for_all

    cells, source = table_file.read(path, key), f"{key}={path}"
    x = cells_to_rows(_fields(trained), cells, source, trained.model.likelihood.missing)
    labels = None if label is None else for_all(label, len(x))
    name = trained.dataset["label"]
    if labels is None and name in cells:
        labels = torch.tensor([trained.classes.require(_word(cell)) for cell in cells[name].tolist()])
    if labels is None and trained.model.conditional:
        raise UserError(f"{source}: it has no column {name}, and the model takes a class: add it, or give label=")
    return Rows(cells, torch.from_numpy(x)[:, None, None], labels)


def columns(trained: Trained, x: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Decodes rows as the model sees them, [N, 1, 1, D], to a table, with the classes that they were made of."""
    from vaelab.nn.likelihoods.columns import decode

    fields = _fields(trained)
    if not x.isfinite().all():
        raise UserError("run: numbers that the model gives are NaN or infinite: take the other checkpoint")
    table: dict[str, Any] = dict(zip((f.name for f in fields), decode(fields, x[:, 0, 0].numpy()), strict=True))
    if labels is not None and trained.model.by_class:
        table[trained.dataset["label"]] = [trained.classes.name(label) for label in labels.tolist()]
    return table


def write(path: Path, table: Mapping[str, Iterable[Any]]) -> None:
    """Writes a table as CSV, whole or not at all: numbers with what digits they have, nothing for NaN."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*([_word(cell) for cell in column] for column in table.values()), strict=True))
    except OSError as error:
        raise UserError(f"out={path}: it cannot be written ({error.strerror}): name another file") from error


def codes(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    """Lays code vectors out as columns, by the names of the arrays: mean_0, mean_1. Raises UserError for maps."""
    table: dict[str, Any] = {}
    for name, values in arrays.items():
        if values.ndim != 2:
            raise UserError("out: codes of this model are maps, and no table's columns: name a file that ends in .npz")
        table |= {f"{name}_{i}": column.tolist() for i, column in enumerate(values.unbind(1))}
    return table


def is_table(path: str) -> bool:
    return path.lower().endswith(".csv")


def check_kind(trained: Trained, out: str | None, table: bool) -> None:
    """Raises UserError if rows are to be written as pictures, or images as a table."""
    if trained.fields is not None and not table:
        raise UserError(f"out={out}: the run is of a table, whose rows are written to a file that ends in .csv")
    if trained.fields is None and table:
        raise UserError(f"out={out}: the run is of images, which are no rows of a table: name a folder, a .npz or .png")


def _fields(trained: Trained) -> Sequence[Column]:
    assert trained.fields is not None
    return trained.fields


def _word(cell: Any) -> str:
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.9g}"
    return str(cell)
