"""Measures whether memory and file handles stay flat: over many short jobs in one process, and over one long run.

python scripts/endurance.py --jobs 200 --steps 20000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from pathlib import Path

import psutil
import pytorch_lightning as pl

import vaelab.training.callbacks
from vaelab.cli import main

SMALL = ["dataset=digits", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "report=false"]


def state() -> tuple[float, int]:
    """Resident memory of this process in MB, and its open files."""
    process = psutil.Process()
    return process.memory_info().rss / 1e6, process.num_fds()


def train(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", *SMALL, *arguments])
    assert code == 0, arguments


class Watch(pl.Callback):
    """Notes memory and files at some steps."""

    def __init__(self, at: list[int], seen: dict[int, tuple[float, int]]):
        self.at, self.seen = at, seen

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at and trainer.global_step >= self.at[0]:
            self.seen[trainer.global_step] = state()
            self.at.pop(0)


def shown(seen: dict[int, tuple[float, int]]) -> str:
    return "; ".join(f"{count:,}: {memory:.0f} MB, {files} files" for count, (memory, files) in seen.items())


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200, help="short jobs in one process")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of the long run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        jobs = {}
        for number in range(given.jobs):
            train(f"run.dir=job{number}", "trainer.max_steps=2", f"seed={number}")
            if number + 1 in (given.jobs // 10, given.jobs // 2, given.jobs):
                jobs[number + 1] = state()
        print("jobs in one process:", shown(jobs))
        steps: dict[int, tuple[float, int]] = {}
        marks = [given.steps // 10, given.steps // 2, given.steps]
        vaelab.training.callbacks.Watch = lambda: Watch(marks, steps)  # type: ignore[attr-defined]
        length = [f"trainer.max_steps={given.steps}", "trainer.max_epochs=-1"]
        train("run.dir=long", *length, "+callbacks.watch={_target_:vaelab.training.callbacks.Watch}")
        print("steps of one run:", shown(steps))
        print("rows of its metrics.csv:", len(Path("long/metrics.csv").read_text().splitlines()) - 1)


if __name__ == "__main__":
    run()
