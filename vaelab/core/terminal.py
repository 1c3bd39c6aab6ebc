"""Small curves, bars and texts for a terminal, in as much room as there is."""

from __future__ import annotations

import math
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
NO_NUMBER = "×"
"""Character of a curve where its value is infinite or NaN."""
BAR = 24
"""Length of the longest bar, in characters."""
SMALLEST = 4
"""Room, in characters, below which neither a curve nor a bar is drawn."""


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
