"""Formats the text that `vaelab runs` prints: the table, the sweeps, and the runs that were not sent to W&B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vaelab.core import terminal
from vaelab.core.words import number
from vaelab.evaluation.comparison.listed import COLUMNS, MISSING, Listed, sweeps, word
from vaelab.report.swept import short
from vaelab.runs import offline
from vaelab.runs.overview import Run

COLOURS = {
    **dict.fromkeys(("finished", "trained"), "green"),
    "running": "cyan",
    **dict.fromkeys(("stopped", "interrupted", "pruned"), "yellow"),
    **dict.fromkeys(("failed", "diverged", "damaged"), "red"),
}
"""Colours of the states of a run on a terminal."""
SHOWN = 5
"""Most commands for W&B that are shown."""
ERROR = 48
"""Most characters of an error in the table."""
WORD = 40
"""Most characters of a setting in the table."""


def text(found: list[Run], listed: Listed, wanted: Sequence[str], limit: int | None) -> str:
    """Formats the table of the first `limit` runs, with the `wanted` keys beside COLUMNS, and notes on all runs."""
    shown = found[:limit]
    extra = [key for key in dict.fromkeys([*listed.swept(shown), *wanted]) if key not in COLUMNS]
    names = short([*COLUMNS, "path", *extra])
    rows = [[*COLUMNS, *(names[key] for key in extra), "path"], *(_cells(run, listed, extra) for run in shown)]
    right = {COLUMNS.index("epochs"), COLUMNS.index("seconds"), *range(len(COLUMNS), len(COLUMNS) + len(extra))}
    lines = [terminal.table(rows, right, COLOURS)]
    if len(shown) < len(found):
        lines.append(f"… {len(found) - len(shown)} more: limit={len(found)}")
    if any(not run.best.get("by") and _cut(run.error, ERROR) != run.error.strip() for run in shown):
        lines += ["", "errors are cut here: vaelab runs output=runs.csv has all of them"]
    return "\n".join([*lines, *_sweeps(found, limit), *_unsent(found)])


def _cells(run: Run, listed: Listed, extra: Sequence[str]) -> list[str]:
    best = f"{run.best['by']} {number(run.best['value'])}" if run.best.get("by") else ""
    return [
        run.model,
        run.dataset,
        run.status,
        "" if run.epochs is None else str(run.epochs),
        best or _cut(run.error, ERROR),
        "" if run.seconds is None else f"{run.seconds:.0f}",
        *(_cell(run, listed, key) for key in extra),
        str(run.folder),
    ]


def _cell(run: Run, listed: Listed, key: str) -> str:
    value = listed.value(run, key)
    if key in run.metrics:
        return "" if value is MISSING else number(value)
    return f"{value:g}" if isinstance(value, float) else _cut(word(value), WORD)


def _cut(text: str, width: int) -> str:
    """Returns a text's first line, cut after a word if it is too long."""
    line = text.strip().partition("\n")[0]
    if len(line) <= width:
        return line
    whole = line[:width].rpartition(" ")[0].rstrip(" ,;:")
    return f"{whole or line[: width - 1]}…"


def _sweeps(found: Sequence[Run], limit: int | None) -> list[str]:
    of = list(sweeps(found).items())
    lines = ["", "sweeps:"] if of else []
    for sweep, jobs in of[:limit]:
        states = ", ".join(f"{count} {state}" for state, count in Counter(run.status for run in jobs).most_common())
        lines.append(f"  {sweep}  {len(jobs)} run{'s' * (len(jobs) > 1)}: {states}")
    return lines + ([f"  … {len(of) - limit} more"] if limit and len(of) > limit else [])


def _unsent(found: Sequence[Run]) -> list[str]:
    """Returns the commands that send offline logs to W&B: one for a sweep, one for each other run.

    For a sweep that is under way, the command names the jobs that have ended.
    """
    waiting = [run for run in found if run.status != "running" and offline.unsent(run.folder)]
    if not waiting:
        return []
    training = {run.sweep for run in found if run.status == "running"}
    lines = [
        offline.sync_line([run.folder for run in jobs]) if sweep in training else offline.sync_line_of_sweep(sweep)
        for sweep, jobs in sweeps(waiting).items()
    ]
    lines += [offline.sync_line([run.folder]) for run in waiting if not run.sweep]
    left = f"  … {len(lines) - SHOWN} more: name their folders to vaelab runs" if len(lines) > SHOWN else ""
    head = f"logged to W&B offline, not sent yet: {len(waiting)}"
    return ["", head, *(f"  {line}" for line in lines[:SHOWN]), *([left] if left else [])]
