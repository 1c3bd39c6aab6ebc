"""Table "startup": how long commands take to say or begin something, each a process of its own.

python scripts/benchmarks/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
from common import HERE, arguments, compare, interleave, parse, save


class FirstStep(pl.Callback):
    """Writes the time after the first step, for `first_step`: at the end of an epoch of one step, not of a batch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Path(os.environ["FIRST_STEP"]).write_text(str(time.time()))


def process(*command: str, code: int = 0) -> Callable[[], float]:
    """Returns a function that runs Python with these arguments and measures the seconds until it ends with `code`."""

    def run() -> float:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        taken = time.perf_counter() - started
        if done.returncode != code:
            raise SystemExit(f"{done.stdout}{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
        return taken

    return run


def first_step(*choices: str) -> float:
    """Measures the seconds from the start of `vaelab train` to the end of its first optimiser step."""
    with tempfile.TemporaryDirectory() as folder:
        moment = Path(folder) / "moment"
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "FIRST_STEP": str(moment)}
        overrides = ["trainer.max_steps=1", "test=false", "accelerator=cpu", f"run.dir={folder}/run"]
        command = ["-m", "vaelab", "train", *overrides, "+callbacks.first._target_=startup.FirstStep", *choices]
        started = time.time()
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}")
        return float(moment.read_text()) - started


def main() -> int:
    assert __doc__
    options = parse(arguments(__doc__, rounds=7))
    reference = "python, import torch and pytorch_lightning"
    runs: dict[str, Callable[[], float]] = {
        reference: process("-c", "import torch, pytorch_lightning"),
        "python, nothing": process("-c", ""),
        "vaelab --help": process("-m", "vaelab", "--help"),
        "vaelab trian (no such command)": process("-m", "vaelab", "trian", code=2),
        "vaelab train modle=vqvae (no such key)": process("-m", "vaelab", "train", "modle=vqvae", code=2),
        "vaelab train --help": process("-m", "vaelab", "train", "--help"),
        "vaelab train, to its first step": lambda: first_step("dataset=digits"),
        "vaelab train model=vqvae, to its first step": lambda: first_step("model=vqvae", "dataset=digits"),
    }
    rows = compare(interleave(runs, options.rounds), reference)
    notes = "Wall time from the start of the process; ratios are to the imports that training cannot do without."
    save("startup", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
