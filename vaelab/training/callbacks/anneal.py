"""Schedules at work: scalars of the model and the learning rate follow training's progress."""

from __future__ import annotations

import difflib
import functools
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from vaelab.core.errors import UserError
from vaelab.core.types import Fraction, NonNegativeFloat, NonNegativeInt
from vaelab.nn.schedules import ENDLESS, Progress

if TYPE_CHECKING:
    from vaelab.models import Model

log = logging.getLogger("vaelab")

Schedule = Callable[[Progress], float]

BEGINNING, FOREVER = Progress(0, 0.0, 0.0), Progress(10**12, 1e12, 1.0)
CLOSE = 0.01
"""Fraction of a schedule's way that may be left where it counts as ended."""


def _plain(schedule: Schedule) -> Schedule:
    """Returns the schedule without a subclass of partial around it: Hydra's authorises its target at every call."""
    if isinstance(schedule, functools.partial):
        return functools.partial(schedule.func, *schedule.args, **schedule.keywords)
    return schedule


def _check_length(key: str, schedule: Schedule) -> None:
    """Raises UserError for a schedule longer than the whole run: steps or epochs were meant."""
    given = getattr(schedule, "keywords", {})
    if given.get("unit") == "fraction" and given.get("over", 0) > 1:
        raise UserError(
            f"{key}.over={given['over']}: with {key}.unit=fraction the whole run is 1: add {key}.unit=steps, or epochs"
        )


class Scheduled(pl.Callback):
    """A callback that follows training's progress; the length of the run is asked for once."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.batches, self.steps = trainer.num_training_batches, trainer.estimated_stepping_batches
        self.accumulated = trainer.accumulate_grad_batches

    def progress(self, trainer: pl.Trainer, batch_idx: int) -> Progress:
        """Returns how far training is before the batch `batch_idx` of the current epoch."""
        step, epoch = trainer.global_step, trainer.current_epoch + batch_idx / self.batches
        return Progress(step, epoch, step / self.steps)


class Anneal(Scheduled):
    """Writes each schedule's value into the model's scalar of that name before every training batch.

    schedules: a function of `Progress` per scalar (`Model.scalars`).
    """

    def __init__(self, schedules: dict[str, Schedule] | None):
        self.schedules = {name: _plain(schedule) for name, schedule in (schedules or {}).items()}
        self.values: dict[str, float] = {}

    def at_end(self, values: dict[str, float]) -> bool:
        """Whether these values are those that the run's schedules end with, within 1 % of their way."""
        if math.isinf(self.steps):
            end = ENDLESS
        else:
            epochs = self.steps / math.ceil(self.batches / self.accumulated)
            end = Progress(int(self.steps) - 1, epochs - 1 / self.batches, 1 - 1 / self.steps)
        for name, schedule in self.schedules.items():
            final = schedule(end)
            if name not in values or abs(values[name] - final) > CLOSE * abs(final - schedule(BEGINNING)) + 1e-9:
                return False
        return True

    def check(self, model: Model) -> None:
        """Raises UserError if a schedule names what the model does not have, or is longer than the run."""
        for name, schedule in self.schedules.items():
            _check_length(f"schedule.{name}", schedule)
            if name not in model.scalars:
                known = sorted(model.scalars)
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"schedule.{name}: {type(model).__name__} has no scalar '{name}' to schedule; "
                    f"{hint}it has {', '.join(known) or 'none'} (schedule=constant schedules nothing)"
                )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.schedules:
            progress = self.progress(trainer, batch_idx)
            for name, schedule in self.schedules.items():
                value = self.values[name] = schedule(progress)
                getattr(pl_module, name).fill_(value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        end = Progress(trainer.global_step, float(trainer.current_epoch), 1.0)
        for name, schedule in self.schedules.items():
            reached = schedule(end)
            final = schedule(FOREVER)
            if abs(reached - final) > 0.01 * abs(final):
                log.warning(
                    "schedule.%s had reached %.3g of %.3g when training ended: train longer (trainer.max_epochs) "
                    "or shorten it (schedule.%s.over)",
                    *(name, reached, final, name),
                )


class LearningRate(Scheduled):
    """Sets the learning rate to `factor` of progress times the optimiser's own, before every batch."""

    def __init__(self, factor: Schedule):
        self.factor = _plain(factor)

    def check(self, model: Model) -> None:
        """Raises UserError if the schedule is longer than the run."""
        _check_length("lr_schedule.factor", self.factor)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        factor = self.factor(self.progress(trainer, batch_idx))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor


class Plateau(pl.Callback):
    """Lowers the learning rate when the metric that selects the best checkpoint stops improving.

    factor: what the rate is multiplied by. patience: validations (epochs, without
    validation images) without improvement to wait for.
    threshold: what counts as an improvement, in the metric's unit (nats). min_lr: the least rate.
    """

    def __init__(
        self, factor: Fraction, patience: NonNegativeInt, threshold: NonNegativeFloat, min_lr: NonNegativeFloat
    ):
        self.factor, self.patience, self.threshold, self.min_lr = factor, patience, threshold, min_lr
        self.state: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            trainer.optimizers[0],
            mode=pl_module.best,
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            threshold_mode="abs",  # a relative threshold goes the wrong way on a negative metric such as the ELBO
            min_lr=self.min_lr,
            eps=0.0,
        )
        if self.state:
            self.scheduler.load_state_dict(self.state)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        for group, rate in zip(trainer.optimizers[0].param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._look(trainer, f"val/{pl_module.monitor}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if not any(trainer.num_val_batches):
            self._look(trainer, f"train/{pl_module.monitor}")

    def _look(self, trainer: pl.Trainer, name: str) -> None:
        if name in trainer.callback_metrics:
            self.scheduler.step(trainer.callback_metrics[name].item())

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict
