"""Overview of runs and sweeps, read from their folders fast and without torch, whatever state they are in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from vaelab.core.errors import UserError
from vaelab.runs.config import read_config_if_any
from vaelab.runs.layout import Files, SweepFiles, sweep_of
from vaelab.runs.records import read_summary

ENDED = ("finished", "failed", "diverged", "interrupted", "pruned")
"""States of a run that has ended, as its summary.json has them."""
STATES = (*ENDED, "trained", "running", "stopped", "damaged")
"""States that a run is shown in."""


class Run(NamedTuple):
    """A run as its folder shows it.

    model, dataset: their names on the command line. status: that of summary.json; or `running`;
    `stopped`, if it was killed; `damaged`. best: `by`, `value` and `epoch` of the best checkpoint.
    began: seconds since 1970. error: what went wrong, if anything.
    """

    folder: Path
    name: str
    model: str
    dataset: str
    status: str
    epochs: int | None
    best: dict[str, Any]
    seconds: float | None
    metrics: dict[str, float]
    began: float
    error: str

    @property
    def sweep(self) -> Path | None:
        """Folder of the sweep that the run is a job of, or None."""
        return sweep_of(self.folder)


def read(folder: Path, options: dict[str, str]) -> Run:
    """Reads a run from its files. options: what classes are called on the command line, by their names."""
    name = re.sub(r"^(\d+-)+", "", folder.absolute().name)
    try:
        summary = read_summary(folder)
        config = {} if "model" in summary else read_config_if_any(folder)
        name = summary.get("name") or config.get("run", {}).get("name") or name
        status = _status(folder, summary)
        error = str(summary.get("error") or "")
        if not (summary or config) and status != "running":
            if not _only_empty_logs(folder):
                raise UserError("it has neither config.yaml nor summary.json")
            error = "ended before it began"
        epochs = summary.get("epochs") if status != "running" else None
        return Run(
            folder,
            name,
            _named("model", summary, config, options) or name.partition("-")[0],
            _named("dataset", summary, config, options) or name.partition("-")[2],
            status,
            _epochs(folder) if epochs is None else epochs,
            summary.get("best") or {},
            summary.get("seconds"),
            summary.get("metrics") or {},
            _began(folder),
            error,
        )
    except (UserError, AttributeError, TypeError, OSError) as error:
        why = "summary.json or config.yaml is no run's"
        if isinstance(error, UserError):
            why = str(error).replace(f"{folder}{os.sep}", "")
        return Run(folder, name, "", "", "damaged", None, {}, None, {}, _began(folder), why)


def locked(path: Path) -> bool:
    """Whether a process holds the file's lock, as one that trains holds run.log's and a sweep holds .lock's."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return False
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _status(folder: Path, summary: dict[str, Any]) -> str:
    status, log = summary.get("status"), Files(folder).log
    over = status in ENDED and modified(log) <= modified(Files(folder).summary)
    if not over and locked(log):
        return "running"
    if not status and _only_empty_logs(folder) and (sweep := sweep_of(folder)) and locked(SweepFiles(sweep).lock):
        return "running"  # its sweep runs, and is about to begin it
    return status or "stopped"


def _only_empty_logs(folder: Path) -> bool:
    """Whether a job has not begun yet in a folder, or ended before it did."""
    return all(path in Files(folder).logs and path.stat().st_size == 0 for path in folder.iterdir())


def _named(part: str, summary: dict[str, Any], config: dict[str, Any], options: dict[str, str]) -> str:
    name = summary.get("data" if part == "dataset" else part, {}).get("class")
    name = str(name or (config.get(part) or {}).get("_target_", "").rpartition(".")[2])
    return options.get(name, name)


def _epochs(folder: Path) -> int | None:
    """Counts the epochs that a run has begun, by the last row of metrics.csv."""
    try:
        with Files(folder).metrics.open("rb") as file:
            names = file.readline().decode().strip().split(",")
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            rows = [line.split(",") for line in file.read().decode(errors="replace").splitlines()]
        epochs = [row[names.index("epoch")] for row in rows if len(row) == len(names)]
        return int(float(next(epoch for epoch in reversed(epochs) if epoch))) + 1
    except (OSError, ValueError, StopIteration):
        return None


def _began(folder: Path) -> float:
    files = Files(folder)
    return next((time for mark in (*files.marks, *files.logs) if (time := modified(mark))), 0.0)


def modified(path: Path) -> float:
    """Returns when a file was last written, in seconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
