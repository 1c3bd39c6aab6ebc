"""`vaelab runs` lists the runs and sweeps on this disk, in a table."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from vaelab.commands import command
from vaelab.core.conf import target_names
from vaelab.core.errors import UserError
from vaelab.core.files import write_text
from vaelab.core.metrics import metric
from vaelab.evaluation.comparison.configurations import sortable
from vaelab.evaluation.comparison.listed import COLUMNS, KEYS, MISSING, Listed, word
from vaelab.report import runs_table
from vaelab.runs import offline, overview, runs_below
from vaelab.runs.overview import Run


class Options(NamedTuple):
    """The keys of conf/runs.yaml."""

    runs: list[str]
    where: str | None
    sort: str | None
    show: str | None
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
    """Writes the arguments in Hydra's grammar: paths become `runs=[…]`, and text is quoted."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("runs lists runs that are there: leave out -m")
    paths, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or before in command.TAKING_A_VALUE:
            others.append(argument)
        elif key in ("where", "sort", "show", "output") and value != "null" and value[:1] not in ("'", '"'):
            if not value:
                raise UserError(f"{argument or key}: it is empty: give it a value, or leave it out")
            others.append(f"{key}={command.as_text(value)}")
        elif equals and key in KEYS:
            raise UserError(f"{argument}: no such key; to select runs: where={argument}")
        elif equals and re.fullmatch(r"[+~]*[\w.]+", key) and not Path(argument).exists():
            others.append(argument)
        else:
            paths.append(argument)
    return others + ([f"runs=[{','.join(map(command.as_text, paths))}]"] if paths else [])


def job(config: Any) -> None:
    """Hydra's job: reads the runs, prints the table, writes the file."""
    from vaelab.core.config import options

    asked = options(Options, config)
    wanted, output = _pairs(asked.where), _output(asked.output)
    paths = [Path(path) for path in asked.runs] or [Path("outputs")]
    if missing := [path for path in paths if not path.is_dir()]:
        if not asked.runs:
            raise UserError("there is no ./outputs yet: vaelab train makes it, or give another folder")
        raise UserError(f"{missing[0]}: there is no such folder")
    names = {target.rpartition(".")[2]: name for target, name in target_names().items()}
    found = [overview.read(folder, names) for folder in runs_below(paths)]
    listed = Listed(target_names())
    found = _ordered(_selected(found, wanted, listed), asked.sort, listed)
    show = _shown(found, asked.show, listed)
    if output:
        _write(output, found, listed)
    if found:
        figure = [asked.sort.removeprefix("-")] if asked.sort else []
        print(runs_table.text(found, listed, [*show, *(key for key in figure if key not in KEYS)], asked.limit))
    else:
        print("no runs" + (f" with {asked.where}" if asked.where else ""))
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
    """Parses `where=` into the values that each key may have."""
    pairs: dict[str, list[str]] = {}
    for pair in (where or "").split(",") if where is not None else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise UserError(f"where={where}: write where=key=value, or several with commas between them")
        pairs.setdefault(key, []).append(value)
    return pairs


def _selected(found: list[Run], wanted: dict[str, list[str]], listed: Listed) -> list[Run]:
    """Selects the runs that have what is wanted. Raises UserError for a key that no run has, or an unknown status."""
    states = sorted({*overview.STATES, *(run.status for run in found)})
    if unknown := [value for value in wanted.get("status", []) if value not in states]:
        raise UserError(f"where=status={unknown[0]}: must be one of {', '.join(states)}")
    for key, values in wanted.items():
        having = [(run, listed.value(run, key)) for run in found]
        if found and all(value is MISSING for _, value in having):
            raise UserError(f"where={key}={values[0]}: no run here has such a key{listed.meant(found, key)}")
        found = [run for run, value in having if any(_same(value, text) for text in values)]
    return found


def _shown(found: list[Run], show: str | None, listed: Listed) -> list[str]:
    """Returns the keys and metrics to show. Raises UserError for one that no run has."""
    keys = [key.strip() for key in (show or "").strip("[]").split(",")] if show is not None else []
    if not all(keys):
        raise UserError(f"show={show}: write show=key, or several with commas between them")
    for key in keys:
        if found and all(listed.value(run, key) is MISSING for run in found):
            raise UserError(f"show={key}: no run here has such a key or metric{listed.meant(found, key)}")
    return keys


def _same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    if value is None or isinstance(value, bool | list):
        return json.dumps(value).replace(" ", "") == text
    return str(value) == text


def _ordered(found: list[Run], sort: str | None, listed: Listed) -> list[Run]:
    """Sorts runs, best first, and the newest first among equals; runs without the key or metric come last."""
    found = sorted(found, key=lambda run: (-run.began, str(run.folder)))
    if sort is None:
        return found
    key, other_way = sort.removeprefix("-"), sort.startswith("-")
    values = [listed.value(run, key) for run in found]
    if found and all(value is MISSING for value in values):
        if close := listed.meant(found, key):
            raise UserError(f"sort={sort}: no run here has such a key or metric{close}")
        tested = sorted({name for run in found for name in run.metrics if name.startswith("test/")})
        there = ", ".join([*COLUMNS, *tested])
        raise UserError(
            f"sort={sort}: no run here has such a key or metric\n  there are {there}, and all of the config"
        )
    judged = sorted({run.best["by"] for run in found if run.best.get("by")}) if key == "best" else [key]
    if len(judged) > 1:
        raise UserError(f"sort={sort}: the best of these runs are by {' and by '.join(judged)}: name one metric")
    flip = (metric("".join(judged)).better == "max") != other_way
    pairs = list(zip(values, found, strict=True))
    having = [(value, run) for value, run in pairs if value is not MISSING]
    having.sort(key=lambda pair: sortable(pair[0]), reverse=flip)
    return [run for _, run in having] + [run for value, run in pairs if value is MISSING]


# --- the file ----------------------------------------------------------------------------------


def _write(path: Path, found: Sequence[Run], listed: Listed) -> None:
    """Writes all runs with all their settings and metrics, whole or not at all."""
    records = [
        run._asdict()
        | {"folder": str(run.folder), "sweep": str(run.sweep) if run.sweep else None}
        | {"unsent": len(offline.unsent(run.folder)), "settings": listed.config(run).settings}
        for run in found
    ]
    if path.suffix == ".json":
        text = json.dumps(records, indent=2) + "\n"
    else:
        figures = sorted({name for run in found for name in run.metrics})
        fields = [name for name in (records[0] if records else {}) if name not in ("metrics", "best", "settings")]
        keys = [key for key in listed.differing(found) if key not in fields]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*fields, *keys, "best_by", "best", *figures])
        for run, record in zip(found, records, strict=True):
            row = [record[name] for name in fields] + [word(record["settings"].get(key, MISSING)) for key in keys]
            row += [run.best.get("by"), run.best.get("value")]
            writer.writerow(row + [run.metrics.get(name) for name in figures])
        text = file.getvalue()
    write_text(path, text)
