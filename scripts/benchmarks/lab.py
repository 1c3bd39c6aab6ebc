"""The lab as the benchmarks run it: `vaelab train` with a callback that takes the time of epochs. Not a command."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from common import clock
from torch import Tensor

from vaelab.cli import main
from vaelab.datasets import Fake
from vaelab.datasets.splits import TensorSplit


class Probe(pl.Callback):
    """Takes the time of whole epochs, checkpoints and logging included, and lets others run in between.

    It acts at the starts of epochs alone: a hook of a batch would change what is measured.
    """

    epochs = 1
    seconds: list[float] = []
    between: Callable[[pl.Trainer], None] | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = pl_module.device
        if trainer.current_epoch > 0:
            Probe.seconds.append(clock(device) - self.started)
        if len(Probe.seconds) == Probe.epochs:
            trainer.should_stop = True  # takes effect before the first batch of this epoch
            return
        if Probe.between is not None:
            Probe.between(trainer)
        self.started = clock(device)


class Shares(pl.Callback):
    """Takes the time of the whole fit, and of the training steps in it: from an epoch's start to its validation."""

    fit: float
    steps: list[float]
    validation: list[float]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Shares.steps, Shares.validation, self.started = [], [], time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation_started = time.perf_counter()
        Shares.steps.append(self.validation_started - self.epoch_started)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Shares.validation.append(time.perf_counter() - self.validation_started)  # checkpoints come after this

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Shares.fit = time.perf_counter() - self.started


@functools.cache
def noise(size: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Draws random bytes, [size, *shape] uint8."""
    return torch.randint(256, (size, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@dataclass(kw_only=True, eq=False)
class Noise(Fake):
    """Data set of random bytes, in place of `dataset=fake`: a large set in no time and no more memory than its own."""

    def load(self) -> tuple[TensorSplit, TensorSplit]:
        sizes = (self.size, -(-self.size // 5))
        images = [noise(size, tuple(self.image_shape), seed) for seed, size in enumerate(sizes)]
        train, test = (TensorSplit(x, torch.arange(len(x)) % (self.classes or 1)) for x in images)
        return train, test


def noise_set(size: int) -> list[str]:
    """Returns the arguments that choose `Noise` with `size` images of 1x28x28."""
    return ["dataset=fake", "dataset._target_=lab.Noise", f"dataset.size={size}", "dataset.batch_size=128"]


class Screen(io.StringIO):
    """A terminal that nobody looks at, so that the progress bar is drawn as on one."""

    def isatty(self) -> bool:
        return True


def train(arguments: list[str], epochs: int, between: Callable[[pl.Trainer], None] | None = None) -> list[float]:
    """Times each of the first `epochs` epochs of `vaelab train`, in seconds, with its default logs and checkpoints.

    between: called with the trainer before each of them, while the clock stands.
    """
    Probe.epochs, Probe.seconds, Probe.between = epochs, [], between
    screen: Any = Screen()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(screen),
    ):
        # the time of the last epoch is known when one more begins
        overrides = [f"trainer.max_epochs={epochs + 1}", "dataset.val_size=0", "test=false", f"run.dir={folder}/run"]
        code = main(["train", *overrides, "+callbacks.probe._target_=lab.Probe", *arguments])
    if code:
        raise SystemExit(f"{screen.getvalue()}\nvaelab train {' '.join(arguments)} failed")
    return Probe.seconds
