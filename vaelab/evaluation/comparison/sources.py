"""Finds runs in folders, and reads them as a comparison sees them."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaelab import runs
from vaelab.core.conf import target_names
from vaelab.core.errors import UserError
from vaelab.core.files import read_json
from vaelab.evaluation.comparison import compared, configurations
from vaelab.evaluation.comparison.selection import place
from vaelab.runs import Files


def gather(patterns: Sequence[Any], split: str) -> tuple[Any, list[str], dict[str, str]]:
    """Returns the configurations of the runs that the paths stand for, their metrics, and what is left out and why."""
    options = target_names()
    folders, files = find(patterns)
    read = {}
    for path in folders:
        try:
            read[str(path)] = read_run(path, split, options)
        except UserError as damage:
            read[str(path)] = str(damage)
    left_out = {str(path): "a file, no run folder" for path in files}
    left_out |= {name: run for name, run in read.items() if isinstance(run, str)}
    rows, repeats = configurations.group(run for run in read.values() if not isinstance(run, str))
    left_out |= {run.name: f"repeats seed {run.seed} of {kept.name}" for run, kept in repeats}
    known = {name for row in rows for name in (*row.figures, *row.mixed)}
    return rows, sorted(known, key=lambda name: (*place(name), name)), left_out


def find(patterns: Sequence[Any]) -> tuple[list[Path], list[Path]]:
    """Returns the run folders that the paths stand for, each once, in order of their names; and the paths of files.

    A file is no reason to stop: `SWEEP/*` has multirun.yaml among its runs.
    """
    by_real_path: dict[Path, Path] = {}
    files = []
    for pattern in sorted(map(str, patterns)):
        path = Path(pattern)
        if pattern == "last" and not path.is_dir():
            folders = [runs.find("last")]
        elif path.is_dir():
            folders = list(runs.runs_below([path]))
        elif path.is_file():
            files.append(path)
            continue
        elif re.search(r"[*?[]", pattern):
            folders = [run for match in glob.glob(pattern, recursive=True) for run in runs.runs_below([Path(match)])]
        else:
            raise UserError(f"{pattern} does not exist: give a folder that vaelab train made, or one above it")
        if not folders:
            raise UserError(f"{pattern} is no run and contains none: give a folder that vaelab train made")
        for folder in map(os.path.abspath, folders):
            inside = folder.startswith(os.path.join(os.getcwd(), ""))
            by_real_path[Path(folder).resolve()] = Path(os.path.relpath(folder) if inside else folder)
    return sorted(by_real_path.values()), files


def read_run(path: Path, split: str, options: dict[str, str]) -> Any:
    """Reads a run for a comparison (`compared.Run`); returns in a few words why it is left out, if it is."""
    summary = read_json(Files(path).summary, "train the run again, or leave it out")
    if not summary:
        return "no summary.json: it is being trained, or was killed"
    status = summary.get("status")
    if status != "finished":
        error = str(summary.get("error") or "").strip().partition("\n")[0]
        return f"status={status} ({error})" if error else f"status={status}"
    again = measure(path, split)
    file = Files(path).evaluation(split)
    evaluation = read_json(file, f"make it again with {again}")
    if evaluation and evaluation.get("split") != split:
        raise UserError(f"{file} is of split={evaluation.get('split')}: make it again with {again}")
    config = runs.read_config(path)
    try:
        run = compared.describe(str(path), config, summary, evaluation, split, options)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        damaged = " or ".join([*([file.name] if evaluation else []), Files(path).summary.name])
        raise UserError(f"{path}: {damaged} is damaged ({error!r}): make it again, or leave the run out") from error
    outdated = ", as its evaluation is of an older checkpoint" * run.outdated
    return run if run.figures else f"no metrics of split={split}{outdated}: {again} makes them"


def measure(run: str | Path, split: str) -> str:
    """Returns the command that evaluates a run."""
    return f"vaelab eval {shlex.quote(f'run={run}')}" + ("" if split == "test" else f" split={split}")
