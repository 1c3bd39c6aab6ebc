"""A user's own table: columns of numbers, of categories and of counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt, ProperFraction
from vaelab.datasets.base import ImageData
from vaelab.datasets.own import table_file
from vaelab.datasets.sources import count_aside, hold_out
from vaelab.datasets.splits import TensorSplit
from vaelab.nn.likelihoods.columns import COUNTS, Column, Kind, columns_of, encode, plain

WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)?(e[+-]?\d+)?", re.IGNORECASE)
"""A number that is written with a decimal comma, if it has a part below 1."""
MOST_VALUES = 100
"""Most different texts of a column that is taken for categorical without being said so."""


@dataclass(kw_only=True, eq=False)
class Table(ImageData):
    """Rows of a CSV, Parquet or .npz file, each held as an image of one row, [1, 1, D].

    A column of numbers is Gaussian, standardised by mean and standard deviation of the training rows; one of 0 and 1
    is binary; one of texts is categorical, and seen as as many numbers as it has values, of which one is 1.

    root: the file. label: the column of the classes, which is not modelled. columns: kinds by name where they are not
    to be as the values say, or None; `none` leaves a column out. missing: `refuse`, or `mask`: what is missing is NaN,
    which a likelihood does not count. schema: the columns as a run has found them; None takes them from the file.
    test_size: rows set aside for testing: a count if 1 or more, a fraction below 1, in every class's proportion.
    """

    root: str
    label: str | None
    columns: dict[str, Kind | Literal["none"]] | None
    missing: Literal["refuse", "mask"]
    schema: list[dict[str, Any]] | None
    test_size: PositiveInt | ProperFraction

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_range != (0.0, 1.0) or self.binarize != "none":
            key = "binarize" if self.binarize != "none" else "pixel_range"
            raise UserError(f"dataset.{key} is for images: leave it out of dataset=table, which is standardised")

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        """Reads the file. Raises UserError if it, a column or a value cannot be used."""
        labels = self._labels
        x = torch.from_numpy(cells_to_rows(self.fields, self._cells, self._source, self.masked))[:, None, None]
        whole = TensorSplit(x, labels)
        kept, aside = self._parts
        return whole.subset(kept), whole.subset(aside)

    @property
    def fields(self) -> Sequence[Column]:
        return self._fields

    @property
    def masked(self) -> bool:
        return self.missing == "mask"

    @property
    def found(self) -> dict[str, Any]:
        """The columns, as the training rows have them."""
        return {"schema": plain(self._fields)}

    @property
    def class_names(self) -> list[str] | None:
        return None if self.label is None else _texts(self._cells_of(self.label))

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    # --- what the file holds ------------------------------------------------------------------

    @property
    def _source(self) -> str:
        return f"dataset.root={self.root}"

    @property
    def _given(self) -> dict[str, Any]:
        """The kinds of columns that the user has said, by name."""
        return self.columns or {}

    @cached_property
    def _cells(self) -> dict[str, np.ndarray]:
        return table_file.read(self.root, "dataset.root")

    def _cells_of(self, name: str, key: str = "dataset.label") -> np.ndarray:
        if name not in self._cells:
            raise UserError(f"{key}={name}: the table has no such column: it has {', '.join(self._cells)}")
        return self._cells[name]

    @cached_property
    def _labels(self) -> torch.Tensor | None:
        if self.label is None:
            return None
        cells = self._cells_of(self.label)
        if (holes := absent(cells)).any():
            raise UserError(f"dataset.label={self.label}: row {int(holes.argmax()) + 1} has none: remove such rows")
        names = self.class_names or []
        if len(names) > max(2, len(cells) // 2):
            raise UserError(
                f"dataset.label={self.label}: {len(names)} different values in {len(cells)} rows are no classes\n"
                "name a column that has several rows of each value, or leave it out"
            )
        return torch.from_numpy(_places(cells, names).astype(np.int64))

    @cached_property
    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows to train on, and those set aside for testing."""
        rows = len(next(iter(self._cells.values())))
        count = count_aside(self._source, rows, self.test_size, "take a larger table", "rows")
        return hold_out(torch.zeros(rows, dtype=torch.int64) if self._labels is None else self._labels, count)

    @cached_property
    def _fields(self) -> tuple[Column, ...]:
        if self.schema is not None:
            return columns_of(self.schema)
        for name in self._given:
            self._cells_of(name, f"dataset.columns.{name}")
        names = [name for name in self._cells if name != self.label and self._given.get(name) != "none"]
        if not names:
            raise UserError(f"{self._source}: no column is left to model: it has {', '.join(self._cells)}")
        kept = self._parts[0].numpy()
        return tuple(self._column(name, self._cells[name], self._cells[name][kept]) for name in names)

    def _column(self, name: str, cells: np.ndarray, training: np.ndarray) -> Column:
        """Makes the description of a column: values from all its cells, mean and scale from the training rows."""
        known = cells[~absent(cells)]
        kind: Any = self._given.get(name) or _kind(known)
        if not len(known):
            raise UserError(f"{self._source}: column {name} is empty: leave it out, dataset.columns={{{name}: none}}")
        if self._given.get(name) not in ("categorical", "bernoulli") and (remedy := _of_commas(known)):
            raise UserError(f"{self._source}: column {name} {remedy}, or have it as {{{name}: categorical}}")
        if kind in ("categorical", "bernoulli"):
            values = _texts(cells)
            if kind == "bernoulli" and len(values) > 2:
                raise UserError(f"dataset.columns.{name}=bernoulli: it has {len(values)} different values, not two")
            if name not in self._given and len(values) > min(MOST_VALUES, len(known) // 2):
                raise UserError(
                    f"{self._source}: column {name} holds {len(values)} different texts, such as {values[0]!r}\n"
                    f"leave it out, dataset.columns={{{name}: none}}, or have it as {{{name}: categorical}}"
                )
            if kind == "bernoulli" and len(values) == 1:
                values = [f"not {values[0]}", *values]
            return Column(name, kind, values=tuple(values))
        if known.dtype.kind != "f":
            raise UserError(f"dataset.columns.{name}={kind}: it holds texts, such as {str(known[0])!r}")
        if not np.isfinite(known).all():
            raise UserError(f"{self._source}: column {name} has infinite values: remove them")
        if kind in COUNTS and ((known < 0) | (known != known.round())).any():
            raise UserError(f"dataset.columns.{name}={kind}: counts are whole numbers from 0 on, and it has others")
        training = training[~absent(training)]
        mean, scale = (float(training.mean()), float(training.std())) if len(training) else (0.0, 1.0)
        return Column(name, kind, mean, scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0)


def cells_to_rows(columns: Sequence[Column], cells: dict[str, np.ndarray], source: str, masked: bool) -> np.ndarray:
    """Encodes the cells of a table by the columns of a schema, [N, D] float32; others are not looked at.

    source: the key and the file, for messages. masked: whether cells may be missing. Raises UserError for a column that
    is not there, a value that the schema does not have, and a missing one.
    """
    numbers = []
    for column in columns:
        if column.name not in cells:
            raise UserError(f"{source}: it has no column {column.name}")
        values = cells[column.name]
        holes = absent(values)
        if holes.any() and not masked:
            raise UserError(
                f"{source}: column {column.name} has {int(holes.sum())} missing values, the first in row "
                f"{int(holes.argmax()) + 1}\ndataset.missing=mask has what is missing count nothing; or remove them"
            )
        if not column.numeric:
            values = _places(values, column.values)
            if (unknown := np.isnan(values) & ~holes).any():
                wrong = str(cells[column.name][unknown.argmax()])
                raise UserError(f"{source}: column {column.name} holds {wrong!r}, which the training rows have not")
        elif values.dtype.kind != "f":
            why = _of_commas(values[~holes]) or f"holds texts, such as {str(values[~holes][0])!r}, not numbers"
            raise UserError(f"{source}: column {column.name} {why}")
        numbers.append(values.astype(np.float64))
    return encode(columns, numbers)


def _kind(known: np.ndarray) -> Kind:
    if known.dtype.kind != "f":
        return "categorical"
    return "bernoulli" if set(np.unique(known).tolist()) == {0.0, 1.0} else "gaussian"


def _of_commas(known: np.ndarray) -> str | None:
    """Words that texts are numbers with a decimal comma, and the remedy; None if they are not, or are none."""
    if known.dtype.kind == "f" or not len(known) or not all(map(WITH_COMMA.fullmatch, known.tolist())):
        return None
    first = next(text for text in known.tolist() if "," in text)
    return (
        f"has numbers with a decimal comma, such as {first!r}\n"
        "write them with a point (pandas: read_csv(…, decimal=',') and to_csv)"
    )


def absent(cells: np.ndarray) -> np.ndarray:
    """Tells which cells of a column are missing, [N] bool."""
    return np.isnan(cells) if cells.dtype.kind == "f" else cells == ""


def _texts(cells: np.ndarray) -> list[str]:
    """Returns the different values of cells in their order, numbers as short as they can be."""
    return [_text(value) for value in np.unique(cells[~absent(cells)])]


def _text(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _places(cells: np.ndarray, values: Sequence[str]) -> np.ndarray:
    """Returns the place of each cell in `values`, [N] float64, NaN for one that is missing or not among them."""
    place = {value: float(i) for i, value in enumerate(values)}
    return np.array([place.get(_text(cell), np.nan) for cell in cells.tolist()], np.float64)
