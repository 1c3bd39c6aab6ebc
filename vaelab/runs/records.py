"""Records that a run keeps of itself: summary.json, metrics.csv, its evaluations, its checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from vaelab.core.errors import UserError
from vaelab.core.files import damaged, read_json, write_text
from vaelab.runs.layout import Files

RESTORE = "restore it, or train again"
MEASURE_AGAIN = "delete it, and run vaelab eval again"


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Writes the summary.json of a run."""
    write_text(Files(run).summary, json.dumps(summary, indent=2) + "\n")


def read_summary(run: Path) -> dict[str, Any]:
    """Reads the summary.json of a run, {} if it has none yet. Raises UserError if it is damaged."""
    return read_json(Files(run).summary, RESTORE)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads the rows of metrics.csv with their filled cells, [] without a file. Raises UserError if it is damaged."""
    path = Files(run).metrics
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, str(error), RESTORE) from error
    names, rows = lines[0] if lines else [], []
    if "step" not in names:
        raise damaged(path, "it has no column 'step'", RESTORE)
    for number, cells in enumerate(lines[1:], 2):
        try:
            rows.append({name: float(cell) for name, cell in zip(names, cells, strict=True) if cell})
            rows[-1]["step"]
        except (ValueError, KeyError) as error:
            raise damaged(path, f"line {number} is cut short or no row of numbers", RESTORE) from error
    return rows


def write_evaluation(run: Path, evaluation: dict[str, Any]) -> None:
    """Writes the evaluation of a split, under the prior that it names."""
    path = Files(run).evaluation(evaluation["split"], evaluation.get("prior", {}).get("name"))
    write_text(path, json.dumps(evaluation, indent=2) + "\n")


def read_evaluation(run: Path, split: str, prior: str | None = None) -> dict[str, Any]:
    """Reads the evaluation of a split under the model's own prior or a fitted one; {} if there is none.

    Raises UserError if the file is damaged.
    """
    return read_json(Files(run).evaluation(split, prior), MEASURE_AGAIN)


def checkpoint_path(run: Path, name: str) -> Path:
    """Returns the path of the `best` or `last` checkpoint of a run. Raises UserError if it is missing."""
    path = Files(run).checkpoint(name)
    if not path.is_file():
        others = [other.stem for other in Files(run).saved]
        remedy = f"there is {others[0]}.ckpt (checkpoint={others[0]})" if others else "the run has none: train again"
        raise UserError(f"{path} does not exist: {remedy}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's tensors and plain data to the CPU; nothing in it is executed.

    Raises UserError if the file is damaged or holds anything else.
    """
    import pickle
    import zipfile

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or holds more than tensors and plain data") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: use the other checkpoint, or train again") from error
