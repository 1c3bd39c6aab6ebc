"""Tables and pictures that a notebook shows by themselves."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from vaelab.core.words import number

ROWS = 60
"""Most rows that are shown."""


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


def _html(rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Numbers(dict[str, Any]):
    """Metrics by name; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        return _html([["metric", "value"], *([name, _cell(value)] for name, value in self.items())])


class Table(list[dict[str, Any]]):
    """Rows, each a mapping of columns to values, as pandas.DataFrame takes them; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        columns = list(dict.fromkeys(name for row in self for name in row))
        rows = [[_cell(row.get(name)) for name in columns] for row in self[:ROWS]]
        more = f"<p>{len(self) - ROWS:,} more rows</p>" if len(self) > ROWS else ""
        return _html([columns, *rows]) + more


class Picture:
    """A figure in a file; a notebook shows it.

    path: the PNG file.
    """

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"Picture({str(self.path)!r})"

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
