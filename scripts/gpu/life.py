"""Takes a variant through its life in one process, in one precision after the other: check.py starts one per variant.

    python scripts/gpu/life.py MODEL ACCELERATOR PRECISION...

Works in the current folder, and writes what it has found so far to found.json there after each command.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from vaelab.cli import main

SAID = 2000


def command(*arguments: str) -> dict[str, Any]:
    """Runs a command of the lab. Returns its exit code, seconds and, if it failed, the end of its output."""
    printed, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(list(arguments))
        except Exception:
            code = 1
            traceback.print_exc()
    result: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - started, 1)}
    return result | ({"said": printed.getvalue()[-SAID:]} if code else {})


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    return {name: value.double() for name, value in saved.items() if torch.is_tensor(value)}


def difference(run: Path, other: Path) -> float | None:
    """Returns the largest difference of a weight between two runs, None where one of them has not ended."""
    try:
        ours, theirs = weights(run), weights(other)
    except FileNotFoundError:
        return None
    return max((ours[name] - value).abs().max().item() for name, value in theirs.items())


def life(model: str, accelerator: str, precision: str, found: dict[str, Any]) -> None:
    """Trains twice and once with an interruption, and evaluates; in the first precision exports and draws, too."""
    folder = Path(precision)
    chosen = [f"model={model}", f"accelerator={accelerator}", f"trainer.precision={precision}", "dataset.batch_size=64"]
    chosen += ["schedule=constant", "report=false"]  # a schedule over a part of the run would differ in a shorter run
    long, short = (f"trainer.max_epochs={epochs}" for epochs in (4, 2))
    whole, again, part = (folder / name for name in ("whole", "again", "part"))
    steps = {
        "train": ["train", *chosen, long, f"run.dir={whole}"],
        "again": ["train", *chosen, long, f"run.dir={again}"],
        "part": ["train", *chosen, short, f"run.dir={part}"],
        "resume": ["train", f"resume={part}", long, "report=false"],
        "eval": ["eval", f"run={whole}", "importance_samples=50", "generated=500", "gap_images=16"],
    }
    if precision == sys.argv[3]:
        steps |= {word: [word, f"run={whole}"] for word in ("export", "report", "reconstruct")}
    for name, arguments in steps.items():
        found[name] = command(*arguments)
        if name == "again":
            found["like runs differ by"] = difference(whole, again)
        if name == "resume":
            found["a resumed run differs by"] = difference(whole, part)
        if name == "train" and (summary := whole / "summary.json").exists():
            metrics = json.loads(summary.read_text())["metrics"]
            found["metrics"] = {key: value for key, value in metrics.items() if "test/" in key}
        write()


def write() -> None:
    part = Path("found.json.part")
    part.write_text(json.dumps(FOUND, indent=1))
    part.replace("found.json")


FOUND: dict[str, Any] = {}

if __name__ == "__main__":
    for precision in sys.argv[3:]:
        life(sys.argv[1], sys.argv[2], precision, FOUND.setdefault(precision, {}))
