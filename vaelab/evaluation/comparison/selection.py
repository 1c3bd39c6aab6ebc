"""Selects the metrics that a comparison shows, and resolves the names that the user gives."""

from __future__ import annotations

import difflib
from typing import Any

from vaelab.core.errors import UserError
from vaelab.core.metrics import MAIN
from vaelab.evaluation.comparison.compared import FROM_TRAINING
from vaelab.evaluation.comparison.rules import is_aside
from vaelab.evaluation.comparison.tables import titles


def place(figure: str) -> tuple[int, str]:
    """Returns a sort key for metrics: the main ones first."""
    return (MAIN.index(figure), "") if figure in MAIN else (len(MAIN), figure.partition("/")[0])


def figures_shown(wanted: Any, known: list[str], split: str) -> list[str]:
    """Returns the metrics to show, of those that runs have."""
    if wanted in ("main", "all"):
        shown = [name for name in known if not is_aside(name)]
        return [name for name in shown if wanted == "all" or name in MAIN] or shown or known
    names = wanted if isinstance(wanted, list) else [wanted]
    return list(dict.fromkeys(name for item in names for name in named(item, known, "figures", split)))


def named(item: Any, known: list[str], key: str, split: str) -> list[str]:
    """Returns the metrics that a name stands for: full, short title, as training logs it, or a section."""
    item = str(item)
    logged = item.removeprefix(f"{split}/")
    full = FROM_TRAINING.get(logged, f"training/{logged}")
    short = {title: name for name, title in titles(known).items()}
    if name := next((name for name in (item, short.get(item), full) if name in known), None):
        return [name]
    if key == "figures" and (section := [n for n in known if n.startswith(f"{item}/") and not is_aside(n)]):
        return section
    near = difflib.get_close_matches(item, short, 3) or difflib.get_close_matches(item, known, 3)
    sections = ", ".join(dict.fromkeys(name.partition("/")[0] for name in known))
    hint = f"did you mean {', '.join(near)}?" if near else f"figures=all shows all; their sections are {sections}"
    raise UserError(f"{key}={item}: none of these runs has such a metric; {hint}")
