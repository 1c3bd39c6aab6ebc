"""`vaelab runs`: the runs and sweeps on this disk, in a table."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from vaelab import command, offline, overview
from vaelab.compare import FLAGS_WITH_VALUE, _quoted, target_names
from vaelab.errors import UserError
from vaelab.overview import Run

COLUMNS = ("model", "dataset", "status", "epochs", "best", "seconds")
"""Of the table, before a figure to sort by and the path."""
KEYS = ("model", "dataset", "status", "name", "sweep")
"""Keys of `where`, beside those of the config."""
HIGH = ("elbo", "log_p_hat", "codebook_usage", "perplexity")
"""Figures of which the highest comes first."""
SHOWN = 5
"""Commands for W&B, at most."""
ERROR = 48
"""Characters of an error in the table, at most."""


class Options(NamedTuple):
    """The keys of conf/runs.yaml."""

    runs: list[str]
    where: str | None
    sort: str | None
    limit: Annotated[int, Field(gt=0)] | None
    output: str | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab runs` with these arguments. Returns the exit code."""
    try:
        arguments = _for_hydra(arguments)
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    return command.run("runs", job, arguments)


def _for_hydra(arguments: list[str]) -> list[str]:
    """The arguments as Hydra's grammar has them: paths become `runs=[…]`, and text is quoted."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("runs lists runs that are there: leave out -m")
    paths, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or before in FLAGS_WITH_VALUE:
            others.append(argument)
        elif key in ("where", "sort", "output") and value != "null" and value[:1] not in ("'", '"'):
            if not value:
                raise UserError(f"{argument or key}: it is empty: give it a value, or leave it out")
            others.append(f"{key}={_quoted(value)}")
        elif equals and key in KEYS:
            raise UserError(f"{argument}: no such key; to select runs: where={argument}")
        elif equals and re.fullmatch(r"[+~]*[\w.]+", key) and not Path(argument).exists():
            others.append(argument)
        else:
            paths.append(argument)
    return others + ([f"runs=[{','.join(map(_quoted, paths))}]"] if paths else [])


def job(config: Any) -> None:
    """Hydra's job: reads what is there, prints it, writes the file."""
    from vaelab.config import options

    asked = options(Options, config)
    wanted, output = _pairs(asked.where), _output(asked.output)
    paths = [Path(path) for path in asked.runs] or [Path("outputs")]
    if missing := [path for path in paths if not path.is_dir()]:
        if not asked.runs:
            raise UserError("there is no ./outputs yet: vaelab train makes it, or give another folder")
        raise UserError(f"{missing[0]}: there is no such folder")
    names = {target.rpartition(".")[2]: name for target, name in target_names().items()}
    found = [overview.read(folder, names) for folder in overview.find(paths)]
    found = _ordered(_selected(found, wanted), asked.sort)
    if output:
        _write(output, found)
    print(_text(found, asked))
    if output:
        print(f"written: {output}")


def _output(output: str | None) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"output={output}: name a file that ends in .csv or .json")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"output={output}: must be a file in a folder that exists and can be written to")
    return path


# --- which, in what order ---------------------------------------------------------------------


def _pairs(where: str | None) -> dict[str, list[str]]:
    """The values that each key may have."""
    pairs: dict[str, list[str]] = {}
    for pair in (where or "").split(",") if where is not None else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise UserError(f"where={where}: write where=key=value, or several with commas between them")
        pairs.setdefault(key, []).append(value)
    return pairs


def _selected(found: list[Run], wanted: dict[str, list[str]]) -> list[Run]:
    """The runs that have what is wanted. Raises UserError for a key that none of them has."""
    for key, values in wanted.items():
        having = [(run, _value(run, key)) for run in found]
        if found and all(value is MISSING for _, value in having):
            raise UserError(f"where={key}={values[0]}: no run here has such a key")
        found = [run for run, value in having if any(_same(value, text) for text in values)]
    return found


MISSING = object()


def _value(run: Run, key: str) -> Any:
    """A column of a run, its sweep's name, or a key of its config; MISSING if it has none."""
    if key == "sweep":
        return run.sweep.absolute().name if run.sweep else None
    if key in KEYS:
        return getattr(run, key)
    try:
        node: Any = overview.settings(run.folder)
    except UserError:
        return MISSING
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return node


def _same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    if value is None or isinstance(value, bool | list):
        return json.dumps(value).replace(" ", "") == text
    return str(value) == text


def _ordered(found: list[Run], sort: str | None) -> list[Run]:
    """Best first, and the newest first among equals; runs without the figure come last."""
    found = sorted(found, key=lambda run: (-run.began, str(run.folder)))
    if sort is None:
        return found
    key, other_way = sort.removeprefix("-"), sort.startswith("-")
    values = [_figure(run, key) for run in found]
    if found and all(value is None for value in values):
        known = sorted({name for run in found for name in run.metrics})
        names = ", ".join([*COLUMNS, *(name for name in known if name.startswith("test/"))])
        raise UserError(f"sort={sort}: no run here has such a figure\n  there are {names}")
    judged = sorted({run.best["by"] for run in found if run.best.get("by")}) if key == "best" else [key]
    if len(judged) > 1:
        raise UserError(f"sort={sort}: the best of these runs are by {' and by '.join(judged)}: name one figure")
    flip = (judged[0].rpartition("/")[2] in HIGH) != other_way
    having = sorted(
        ((value, run) for value, run in zip(values, found, strict=True) if value is not None),
        key=lambda pair: pair[0],
        reverse=flip,
    )
    return [run for _, run in having] + [run for value, run in zip(values, found, strict=True) if value is None]


def _figure(run: Run, key: str) -> Any:
    if key in ("model", "dataset", "status", "name"):
        return getattr(run, key)
    value = run.best.get("value") if key == "best" else getattr(run, key) if key in COLUMNS else run.metrics.get(key)
    return None if isinstance(value, float) and math.isnan(value) else value


# --- what is shown ----------------------------------------------------------------------------


def _text(found: list[Run], asked: Options) -> str:
    if not found:
        return "no runs" + (f" with {asked.where}" if asked.where else "")
    figure = asked.sort.removeprefix("-") if asked.sort else ""
    extra = [figure] if figure and figure not in (*COLUMNS, "name") else []
    shown = found[: asked.limit]
    rows = [[*COLUMNS, *extra, "path"], *(_cells(run, extra) for run in shown)]
    right = {COLUMNS.index("epochs"), COLUMNS.index("seconds"), *range(len(COLUMNS), len(COLUMNS) + len(extra))}
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [row[i].rjust(width) if i in right else row[i].ljust(width) for i, width in enumerate(widths)]
        lines.append("  ".join([*cells, row[-1]]))
    if len(shown) < len(found):
        lines.append(f"… {len(found) - len(shown)} more: limit={len(found)}")
    return "\n".join([*lines, *_sweeps(found, asked.limit), *_unsent(found)])


def _cells(run: Run, extra: list[str]) -> list[str]:
    from vaelab.summary import number

    best = f"{run.best['by']} {number(run.best['value'])}" if run.best.get("by") else ""
    error = run.error.strip().partition("\n")[0]
    error = error if len(error) <= ERROR else f"{error[: ERROR - 1]}…"
    figures = [run.metrics.get(name) for name in extra]
    return [
        run.model,
        run.dataset,
        run.status,
        "" if run.epochs is None else str(run.epochs),
        best or error,
        "" if run.seconds is None else f"{run.seconds:.0f}",
        *("" if value is None else number(value) for value in figures),
        str(run.folder),
    ]


def _jobs(found: Sequence[Run]) -> dict[Path, list[Run]]:
    """The runs of each sweep."""
    sweeps: dict[Path, list[Run]] = {}
    for run in found:
        if run.sweep:
            sweeps.setdefault(run.sweep, []).append(run)
    return sweeps


def _sweeps(found: Sequence[Run], limit: int | None) -> list[str]:
    sweeps = list(_jobs(found).items())
    lines = ["", "sweeps:"] if sweeps else []
    for sweep, jobs in sweeps[:limit]:
        states = ", ".join(f"{count} {state}" for state, count in Counter(run.status for run in jobs).most_common())
        lines.append(f"  {sweep}  {len(jobs)} runs: {states}")
    return lines + ([f"  … {len(sweeps) - limit} more"] if limit and len(sweeps) > limit else [])


def _unsent(found: Sequence[Run]) -> list[str]:
    """The commands that send what was logged to W&B offline: one for a sweep, one for each other run.

    Of a sweep that is under way, those jobs that have ended.
    """
    waiting = [run for run in found if run.status != "running" and offline.unsent(run.folder)]
    if not waiting:
        return []
    training = {run.sweep for run in found if run.status == "running"}
    lines = [
        offline.sync_line([run.folder for run in jobs]) if sweep in training else offline.sync_line_of_sweep(sweep)
        for sweep, jobs in _jobs(waiting).items()
    ]
    lines += [offline.sync_line([run.folder]) for run in waiting if not run.sweep]
    left = f"  … {len(lines) - SHOWN} more: name their folders to vaelab runs" if len(lines) > SHOWN else ""
    head = f"logged to W&B offline, not sent yet: {len(waiting)}"
    return ["", head, *(f"  {line}" for line in lines[:SHOWN]), *([left] if left else [])]


def _write(path: Path, found: Sequence[Run]) -> None:
    """All runs with all their figures, whole or not at all."""
    records = [
        run._asdict()
        | {"folder": str(run.folder), "sweep": str(run.sweep) if run.sweep else None}
        | {"unsent": len(offline.unsent(run.folder))}
        for run in found
    ]
    if path.suffix == ".json":
        text = json.dumps(records, indent=2) + "\n"
    else:
        figures = sorted({name for run in found for name in run.metrics})
        fields = [name for name in (records[0] if records else {}) if name not in ("metrics", "best")]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*fields, "best_by", "best", *figures])
        for run, record in zip(found, records, strict=True):
            row = [record[name] for name in fields] + [run.best.get("by"), run.best.get("value")]
            writer.writerow(row + [run.metrics.get(name) for name in figures])
        text = file.getvalue()
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
