"""Reads the columns of a table from a CSV, Parquet or .npz file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vaelab.core.errors import UserError
from vaelab.core.files import NO_ARRAYS, unreadable

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "?"})
"""Texts that stand for a value that is missing."""
DELIMITERS = ",;\t|"
SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")


def read(path: str, key: str) -> dict[str, np.ndarray]:
    """Reads a table: its columns by name, [N] each, float64 with NaN for what is missing, or texts with "" for it.

    key: what the user knows the path as. Raises UserError, naming the file, if it is missing, damaged, empty or of
    another kind, and for columns without a name, or two of one.
    """
    file, source = Path(path).expanduser(), f"{key}={path}"
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source}: it must be a file that ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise UserError(f"{source}: there is no such file")
    if not file.stat().st_size:
        raise UserError(f"{source}: the file is empty: a header and a line for each row are wanted")
    kinds = {".parquet": _parquet, ".npz": _npz}
    columns = kinds.get(file.suffix.lower(), _csv)(file, source)
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{source}: the table has no {'rows' if columns else 'columns'}")
    return columns


def _csv(file: Path, source: str) -> dict[str, np.ndarray]:
    """Reads a CSV file in UTF-8, with or without a byte-order mark; its header says what separates the columns."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: byte {error.start} is no UTF-8: save the table as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows)]
        _check_names(names, source)
        cells: list[list[str]] = []
        for row in rows:
            if row and len(row) != len(names):
                raise UserError(f"{source}: line {rows.line_num} has {len(row)} values, and the header {len(names)}")
            cells += [row] if row else []
    except csv.Error as error:
        raise UserError(f"{source}: line {rows.line_num}: {error}: save it as CSV anew") from error
    columns = zip(*cells, strict=True) if cells else [()] * len(names)
    return {name: _typed([cell.strip() for cell in column]) for name, column in zip(names, columns, strict=True)}


def _check_names(names: list[str], source: str) -> None:
    if all(_number(name) is not None for name in names):
        raise UserError(f"{source}: the first line must name the columns, and it holds {names[0]}")
    for place, name in enumerate(names):
        if not name:
            raise UserError(
                f"{source}: column {place + 1} has no name: name it, or leave it out (pandas: to_csv(…, index=False))"
            )
        if name in names[:place]:
            raise UserError(f"{source}: two columns are named {name}: rename one")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _typed(cells: Iterable[str]) -> np.ndarray:
    """Makes numbers of texts, if all that are not missing are numbers."""
    known = ["" if cell in MISSING else cell for cell in cells]
    numbers = [np.nan if cell == "" else _number(cell) for cell in known]
    return np.array(known) if None in numbers else np.array(numbers, np.float64)


def _npz(file: Path, source: str) -> dict[str, np.ndarray]:
    """Reads an .npz file: an array [N] for each column, or `x`, [N, D], with their names in `columns`."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except NO_ARRAYS as error:
        raise UserError(f"{source}: {unreadable(error)}\nsave numbers or texts, with numpy.savez") from error
    if "x" in columns and columns["x"].ndim == 2:
        x = columns.pop("x")
        names = [str(name) for name in columns.pop("columns", np.array([f"x{i}" for i in range(x.shape[1])]))]
        _check_names([*names, *columns], source)
        if len(names) != x.shape[1]:
            raise UserError(f"{source}: columns has {len(names)} names, and x {x.shape[1]} columns")
        columns = dict(zip(names, x.T, strict=True)) | columns
    for name, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "buifUS" or len(values) != len(next(iter(columns.values()))):
            raise UserError(
                f"{source}: {name} is {values.dtype} {list(values.shape)}: arrays of numbers or texts are wanted, one "
                "value of each row"
            )
    return {n: _typed(v.astype(str)) if v.dtype.kind in "US" else v.astype(np.float64) for n, v in columns.items()}


def _parquet(file: Path, source: str) -> dict[str, np.ndarray]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f'{source} needs another package: pip install "vaelab[table]", or save it as CSV') from error
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise UserError(f"{source}: it is damaged, or no Parquet file ({str(error).splitlines()[0][:150]})") from error
    _check_names(list(table.column_names), source)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        numeric = all(value is None or isinstance(value, int | float) for value in values)
        texts = ["" if value is None else str(value) for value in values]
        columns[name] = (
            np.array([np.nan if value is None else float(value) for value in values]) if numeric else _typed(texts)
        )
    return columns
