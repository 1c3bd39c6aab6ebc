"""Small curves, bars and texts for a terminal, in as much room as there is."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
NO_NUMBER = "×"
"""Character of a curve where its value is infinite or NaN."""
BAR = 24
"""Length of the longest bar, in characters."""
WHOLE = 12
"""Characters of the widest column of a table whose cells are never wrapped."""
SMALLEST = 4
"""Room, in characters, below which neither a curve nor a bar is drawn."""

COLOUR = re.compile("(\x1b\\[[\\d;]*m)")
CONTROLS = {
    code: "\ufffd"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\r\t"
}
"""Characters that a terminal obeys, or that turn the direction of a text: those of files must not reach it."""


def plain(text: str) -> str:
    """Replaces all that a terminal obeys in a text, but for line ends, tabs and colours."""
    return "".join(part if COLOUR.fullmatch(part) else part.translate(CONTROLS) for part in COLOUR.split(text))


class Plain:
    """A stream that writes texts `plain`: names and messages may be of anyone's files. The rest is the stream's own."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self.stream.write(text if text.isprintable() else plain(text))


@contextmanager
def plain_output() -> Iterator[None]:
    """Writes what is printed meanwhile `plain`, to the terminal and to the error output."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Plain) else Plain(stream) for stream in before)
    try:
        yield
    finally:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if isinstance(getattr(sys, name), Plain):
                setattr(sys, name, stream)


def in_notebook() -> bool:
    """Whether the program runs in a notebook, whose cells draw over a line that ends without a line end."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter's, and Colab's


def spark(values: list[float], width: int) -> str:
    """Draws a curve in at most `width` characters, from the lowest value to the highest; each is a mean of neighbours.

    It is empty where so little room is left that it would show no course.
    """
    if width < min(SMALLEST, len(values)):
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    numbers = [value for value in values if math.isfinite(value)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((v - low) * scale)] if math.isfinite(v) else NO_NUMBER for v in values)


def bar(done: float, room: int) -> str:
    """Draws a bar and a percentage in at most `room` characters; the percentage alone where no bar fits.

    done: the fraction done, from 0 to 1.
    """
    length = min(BAR, room - 5) if room - 5 >= SMALLEST else 0
    full = round(length * done)
    return f"{'█' * full}{'░' * (length - full)} {done:4.0%}".lstrip()


def cut(text: str, width: int) -> str:
    """Cuts a text to at most `width` characters, with an ellipsis where it was longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def duration(seconds: float) -> str:
    """Writes a duration as in `9 s`, `1:15` and `2:00:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def table(rows: Sequence[Sequence[str]], right: Collection[int], styles: Mapping[str, str]) -> str:
    """Lays out rows of cells, of which the first is the heading.

    On a terminal it has colours, and wraps wide columns to fit; elsewhere it is plain, and as wide as its cells.
    right: columns that are aligned to the right. styles: colours of cells by their text, as rich names them.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    layout = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(zip(*rows, strict=True)):
        whole = max(map(len, column)) <= WHOLE
        layout.add_column(Text(column[0]), justify="right" if i in right else "left", no_wrap=whole, overflow="fold")
    for row in rows[1:]:
        layout.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    with console.capture() as captured:
        console.print(layout)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
