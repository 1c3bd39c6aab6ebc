"""Numbers, durations, paragraphs, findings and remedies as the terminal and the pages show them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple


def number(value: float) -> str:
    """Writes a metric's value as tables show it: three decimals, or three digits where it is tiny or huge."""
    return f"{value:.3f}" if 0.01 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Writes a duration as a person says it: `9.3 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, thing: str) -> str:
    """Counts things: `1 image`, `2,000 images`."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """Lists words as a sentence does: `a`, `a and b`, `a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def wrapped(text: str, indent: int = 2) -> str:
    """Wraps a paragraph to the width of the terminal, indented."""
    width, space = shutil.get_terminal_size((100, 24)).columns, " " * indent
    return textwrap.fill(
        text,
        max(width, 40),
        initial_indent=space,
        subsequent_indent=f"{space}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


class Finding(NamedTuple):
    """A diagnosis: a code that stays the same across runs, the evidence in numbers, the remedy."""

    code: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.evidence}. Remedy: {self.remedy}."


class Remedy(NamedTuple):
    """What to do where few of a codebook's codes are in use, in the words of a finding.

    livelier: what brings more of them into use. fewer: the key that sets how many there are.
    """

    livelier: str
    fewer: str


ANY_CODEBOOK = Remedy(
    "codebook=ema with restart_after, more model.commitment_cost, a lower optimizer.lr", "model.num_embeddings"
)
"""What helps a codebook of which no more is known."""
