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
from pytorch_lightning.callbacks import EarlyStopping as LightningsEarlyStopping

from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, NonNegativeInt, ProperFraction
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


def _unit(schedule: Schedule) -> str | None:
    """The unit of a schedule's length, None for a function that has none."""
    return getattr(schedule, "keywords", {}).get("unit")


def _check_length(key: str, schedule: Schedule) -> None:
    """Raises UserError for a schedule longer than the whole run: steps or epochs were meant."""
    given = getattr(schedule, "keywords", {})
    if _unit(schedule) == "fraction" and given.get("over", 0) > 1:
        raise UserError(
            f"{key}.over={given['over']}: with {key}.unit=fraction the whole run is 1: add {key}.unit=steps, or epochs"
        )


def _check_values(key: str, schedule: Schedule) -> None:
    """Raises UserError for a schedule that gives no numbers, or goes below 0: weights and rates are 0 or more."""
    given = getattr(schedule, "keywords", {})
    places = [place / 100 * float(given.get("over", 1)) for place in range(101)]
    try:
        least = min(float(schedule(Progress(round(done), done, min(done, 1.0)))) for done in places)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{key}: it is no function that gives a number for training's progress ({error})") from error
    if not 0 <= least < math.inf:
        name = next((f".{name}" for name in given if given[name] == least), "")
        raise UserError(f"{key}{name}={least:g}: must be 0 or more, as all values of a schedule")


class Scheduled(pl.Callback):
    """A callback that follows training's progress; the length of the run is asked for once."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.batches, self.steps = trainer.num_training_batches, trainer.estimated_stepping_batches
        self.accumulated = trainer.accumulate_grad_batches
        for key, schedule in self.named.items():
            if math.isinf(self.steps) and _unit(schedule) == "fraction":
                raise UserError(
                    f"{key}.unit=fraction is of a run whose length is known: set trainer.max_epochs or "
                    f"trainer.max_steps, or {key}.unit=steps (or epochs) and {key}.over"
                )

    @property
    def named(self) -> dict[str, Schedule]:
        """The schedules by the keys of the config."""
        raise NotImplementedError

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

    @property
    def named(self) -> dict[str, Schedule]:
        return {f"schedule.{name}": schedule for name, schedule in self.schedules.items()}

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
        """Raises UserError if a schedule names what the model does not have, is longer than the run, or below 0."""
        for name, schedule in self.schedules.items():
            _check_length(f"schedule.{name}", schedule)
            _check_values(f"schedule.{name}", schedule)
            if name not in model.scalars:
                known = sorted(model.scalars)
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"schedule.{name}: {type(model).__name__} has no scalar '{name}' to schedule; "
                    f"{hint}it has {', '.join(known) or 'none'} (schedule=constant schedules nothing)"
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        super().on_train_start(trainer, pl_module)
        if self.schedules and any(type(c) is LightningsEarlyStopping for c in trainer.callbacks):  # type: ignore[attr-defined]
            log.warning(
                "Lightning's EarlyStopping counts while schedules are on their way, too: "
                "vaelab.training.callbacks.EarlyStopping waits for their end"
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
        step, steps = trainer.global_step, self.steps
        end = Progress(step, float(trainer.current_epoch), 1.0 if math.isinf(steps) else step / steps)
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

    @property
    def named(self) -> dict[str, Schedule]:
        return {"lr_schedule.factor": self.factor}

    def check(self, model: Model) -> None:
        """Raises UserError if the schedule is longer than the run, or below 0."""
        _check_length("lr_schedule.factor", self.factor)
        _check_values("lr_schedule.factor", self.factor)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        factor = self.factor(self.progress(trainer, batch_idx))
        for optimizer in trainer.optimizers:
            for group, rate in zip(optimizer.param_groups, pl_module.learning_rates(optimizer), strict=True):
                group["lr"] = rate * factor


def arrived(trainer: pl.Trainer) -> bool:
    """Whether the schedules have the values that they end with: on the way, validations are of another objective."""
    schedules = next((c for c in trainer.callbacks if isinstance(c, Anneal)), None)  # type: ignore[attr-defined]
    return schedules is None or schedules.at_end(schedules.values)


class EarlyStopping(LightningsEarlyStopping):
    """Ends training as Lightning does when a metric stops improving, counted from where the schedules have arrived.

    The arguments are Lightning's. Those given at a resume count, and not those of the run before.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and arrived(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if arrived(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class Plateau(pl.Callback):
    """Lowers the learning rate when the metric that selects the best checkpoint stops improving.

    Improvement is looked for from where the schedules have arrived. At a resume the arguments given then
    count, and a new learning rate is lowered by as much as the former one was.

    factor: what the rate is multiplied by. patience: validations (epochs, without
    validation images) without improvement to wait for.
    threshold: what counts as an improvement, in the metric's unit (nats). min_lr: the least rate.
    """

    def __init__(
        self, factor: ProperFraction, patience: NonNegativeInt, threshold: NonNegativeFloat, min_lr: NonNegativeFloat
    ):
        self.factor, self.patience, self.threshold, self.min_lr = factor, patience, threshold, min_lr
        self.state: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        optimizer = trainer.optimizers[0]
        self.rates = pl_module.learning_rates(optimizer)
        former = self.state.get("rates", self.rates)  # version 0.1 did not keep them
        lowered = self.state.get("_last_lr", self.rates)
        for group, rate, before, now in zip(optimizer.param_groups, self.rates, former, lowered, strict=True):
            group["lr"] = now if before == rate else now * rate / before
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode=pl_module.best,
            factor=self.factor,
            patience=self.patience,
            threshold=self.threshold,
            threshold_mode="abs",  # a relative threshold goes the wrong way on a negative metric such as the ELBO
            min_lr=[self.min_lr * rate / optimizer.defaults["lr"] for rate in self.rates],
            eps=0.0,
        )
        for name in ("best", "num_bad_epochs", "last_epoch"):
            setattr(self.scheduler, name, self.state.get(name, getattr(self.scheduler, name)))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        for group, rate in zip(trainer.optimizers[0].param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if not trainer.sanity_checking:
            self._look(trainer, f"val/{pl_module.monitor}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if not any(trainer.num_val_batches):
            self._look(trainer, f"train/{pl_module.monitor}")

    def _look(self, trainer: pl.Trainer, name: str) -> None:
        if name in trainer.callback_metrics and not trainer.sanity_checking and arrived(trainer):
            self.scheduler.step(trainer.callback_metrics[name].item())

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() | {"rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict
