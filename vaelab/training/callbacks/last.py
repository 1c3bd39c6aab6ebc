"""Keeps last.ckpt newer than the last epoch: every so often by option, when a run is asked to stop, when it fails."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy

from vaelab.core.distributed import all_sum, alone
from vaelab.core.errors import DivergenceError, Stopped
from vaelab.core.types import PositiveFloat, PositiveInt
from vaelab.training import loop
from vaelab.training.loggers import MetricsFile

if TYPE_CHECKING:
    from vaelab.models import Model

log = logging.getLogger("vaelab")

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a run to stop."""
if "SLURM_JOB_ID" in os.environ:
    STOPPING.append(
        signal.SIGUSR1
    )  # by which `sbatch --signal=USR1@120` warns of the time limit: the job is resubmitted


class KeepLast(pl.Callback):
    """Saves last.ckpt between two optimiser steps, so that `resume=` goes on from there as if nothing had happened.

    It is saved every `every_steps` steps and every `every_minutes` minutes. A signal ends training after the
    step that it meets, and after the validation that follows that step, since a resumed run would not make up
    for it. A second Ctrl-C ends it at once, with the checkpoint that there is. Several processes agree to stop
    where they exchange their metrics anyway, so that all save the same step. If one fails, the others may
    never come to a save: the first one saves what it has by itself, if that is all there is (DDP). What fails
    inside a validation or a window of accumulated gradients, and a divergence, keep the checkpoint before.

    path: the file; None saves nothing.
    """

    def __init__(self, path: Path | None, every_steps: PositiveInt | None, every_minutes: PositiveFloat | None):
        self.path, self.every_steps, self.every_minutes = path, every_steps, every_minutes
        self.asked = 0  # the signal that asks to stop
        self.saved_at = 0.0  # seconds of the monotonic clock
        self.batches = 0  # that have begun
        self.inside = False  # whether a batch of the epoch has begun: before, the checkpoint of the last one is new

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.saved_at = time.monotonic()
        self._listen(trainer)
        loop.no_question_about_sigterm(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._listen(trainer)  # Lightning's handler asks the other processes, which may be in another exchange

    def _listen(self, trainer: pl.Trainer) -> None:
        """Handles signals until Lightning puts back the former handlers, after training and after the test."""
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, frame: Any) -> None:
            at_once = self.asked and number == signal.SIGINT and trainer.world_size == 1
            if trainer.state.fn != "fit" or at_once:
                raise Stopped(number)
            self.asked = self.asked or number

        for number in STOPPING:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, handle)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.inside = False
        self._stop_between_epochs(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._stop_between_epochs(trainer)

    def _stop_between_epochs(self, trainer: pl.Trainer) -> None:
        """Ends training if that was asked for: the epoch is validated and saved by now."""
        if number := self._agreed(trainer)[0]:
            raise Stopped(number)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        self.inside = True
        self.batches += 1
        if batch_idx == 0 or batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        due = self.every_steps is not None and step % self.every_steps == 0
        asked = 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.world_size == 1 or (every and step % every == 0):
            asked, overdue = self._agreed(trainer)
            due = due or overdue
        if due or asked:
            self._save(trainer)
        if asked:
            raise Stopped(asked)

    def _agreed(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """The signal that asks to stop, 0 for none, and whether minutes ask for a save; the same in every process."""
        overdue = self.every_minutes is not None and time.monotonic() - self.saved_at > 60 * self.every_minutes
        if trainer.world_size == 1:
            return self.asked, overdue
        own = [int(self.asked == number) for number in STOPPING] + [int(overdue)]
        *asked, late = all_sum(torch.tensor(own, device=trainer.strategy.root_device)).tolist()
        return next((number for number, count in zip(STOPPING, asked, strict=True) if count), 0), bool(late)

    def _save(self, trainer: pl.Trainer) -> None:
        if self.path is not None:
            with loop.between_steps(trainer):
                trainer.save_checkpoint(self.path)
        self.saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Model, checkpoint: dict[str, Any]) -> None:
        """Makes the rows of metrics as durable as the checkpoint that counts on them."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.sync()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Model, checkpoint: dict[str, Any]) -> None:
        """Goes on from the weights that were trained, where a run averages them no longer."""
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            pl_module.load_state_dict(checkpoint["current_model_state"])
            log.warning(
                "averaging was taken away: training goes on from the weights that were averaged, not from their "
                "average, of which the best checkpoint is until a better one comes"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: Model, exception: BaseException) -> None:
        if (
            self.path is None
            or trainer.state.fn != "fit"
            or trainer.global_step == 0
            or not self.inside
            or trainer.validating
            or isinstance(exception, DivergenceError | Stopped)
        ):
            return
        with loop.between_steps(trainer):
            if loop.inside_window(trainer):
                return
            if trainer.world_size == 1:
                trainer.save_checkpoint(self.path)
            elif trainer.is_global_zero and type(trainer.strategy) is DDPStrategy:
                with alone():
                    checkpoint = loop.checkpoint_of(trainer)
                trainer.strategy.save_checkpoint(checkpoint, self.path)
