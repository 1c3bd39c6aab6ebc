"""The columns of a table: what each holds, and how its values become numbers that a model sees, and values again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveFloat, Real

Kind = Literal["gaussian", "bernoulli", "categorical", "poisson", "negative_binomial"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS = ("poisson", "negative_binomial")
"""Kinds of columns that hold counts."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Column:
    """A column of a table.

    name: that of the table's header. kind: the distribution of its values given z. mean, scale: mean and standard
    deviation of the training rows, of numbers; what a model sees is (value - mean) / scale. values: of a categorical
    column or a binary one, the texts that stand for 0, 1, ...; a categorical column is seen as one of `values` being 1.
    """

    name: str
    kind: Kind
    mean: Real = 0.0
    scale: PositiveFloat = 1.0
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a model sees of it."""
        return len(self.values) if self.kind == "categorical" else 1

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, standardised for the model."""
        return self.kind == "gaussian" or self.kind in COUNTS

    def encode(self, cells: np.ndarray) -> np.ndarray:
        """Encodes numbers, or places in `values`, [N] float64 with NaN for what is missing, to [N, width]."""
        if self.numeric:
            return ((cells - self.mean) / self.scale)[:, None]
        if self.kind == "bernoulli":
            return cells[:, None]
        return np.where(np.isnan(cells)[:, None], np.nan, cells[:, None] == np.arange(self.width))

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Decodes what a model made of the column, [N, width], to numbers or texts, [N].

        Of probabilities the greatest decides; counts are rounded and not below 0.
        """
        if not self.numeric:
            place = x.argmax(1) if self.kind == "categorical" else (x[:, 0] > 0.5).astype(int)
            return np.array(self.values)[place]
        numbers = x[:, 0].astype(np.float64) * self.scale + self.mean
        return np.maximum(np.round(numbers), 0).astype(np.int64) if self.kind in COUNTS else numbers


def columns_of(plain: Any) -> tuple[Column, ...]:
    """Makes columns of a config's list of mappings. Raises UserError for anything else."""
    try:
        return TypeAdapter(tuple[Column, ...]).validate_python(plain)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"schema: {where}: {error.errors()[0]['msg']}: take it as config.yaml of the run has it"
        ) from None


def plain(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Writes columns as a config's list of mappings; what is as it would be anyway is left out."""
    defaults = asdict(Column("", "gaussian"))
    found = ({k: v for k, v in asdict(column).items() if v != defaults[k] or k == "kind"} for column in columns)
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in one.items()} for one in found]


def spans(columns: Sequence[Column]) -> list[slice]:
    """Returns where the numbers of each column stand among those of a row."""
    ends = np.cumsum([0, *(column.width for column in columns)]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def encode(columns: Sequence[Column], cells: Sequence[np.ndarray]) -> np.ndarray:
    """Encodes a table, a column of cells each as `Column.encode` takes them, to [N, D] float32."""
    return np.concatenate([c.encode(x) for c, x in zip(columns, cells, strict=True)], 1).astype(np.float32)


def decode(columns: Sequence[Column], x: np.ndarray) -> list[np.ndarray]:
    """Decodes rows, [N, D], to a table: an array of numbers or texts, [N], of each column."""
    return [column.decode(x[:, span]) for column, span in zip(columns, spans(columns), strict=True)]
