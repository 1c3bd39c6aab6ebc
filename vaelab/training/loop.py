"""Runs Lightning's training loop without machinery that a plain run does not use; holds all use of its private parts.

Lightning spends half a millisecond around every step on hooks that nobody overrides, profiler
contexts, closures and message strings: as much as a small model's whole step takes on a GPU.
`LeanLoop` takes the same step in the same order, counted by the same counters, and calls what is
overridden. One optimiser step stays one step, so schedules, logging, checkpoints, validation inside
an epoch and resume are what they are with Lightning's own loop, to the bit.

The loop that it replaces is private to Lightning. It is used with the versions it was written for,
and where a run needs nothing else of Lightning's step; all other runs get Lightning's own.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import FSDPStrategy, SingleDeviceStrategy
from torch import nn

log = logging.getLogger("vaelab")

WRITTEN_FOR = "2.6."
"""Versions of Lightning that the lean loop was written for."""

CALLED = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
"""Hooks of a step that the lean loop calls."""
NOT_CALLED = (
    "backward",
    "on_after_backward",
    "on_before_backward",
    "on_before_zero_grad",
    "optimizer_step",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)
"""Hooks of a step that the lean loop does not call: a model or a callback which has one gets Lightning's loop."""


def no_question_about_sigterm(trainer: pl.Trainer) -> None:
    """Keeps Lightning from asking all processes in every step whether there was a SIGTERM, and from waiting for it."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


@contextmanager
def between_steps(trainer: pl.Trainer) -> Iterator[None]:
    """Counts a batch that has begun and is not done as not begun: a run resumed from here takes it next."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress
    before, stepped = progress.state_dict(), loop._batches_that_stepped
    if progress.current.ready > progress.current.processed:
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = counts.processed
        progress.is_last_batch = False
        fetcher: Any = trainer.fit_loop._data_fetcher
        if loop._should_check_val_fx(fetcher):
            loop._batches_that_stepped -= 1  # a resumed run counts once more where it leaves out a validation
    try:
        yield
    finally:
        progress.load_state_dict(before)
        loop._batches_that_stepped = stepped


def inside_window(trainer: pl.Trainer) -> bool:
    """Whether there are accumulated gradients, which no checkpoint holds, that the optimiser has not seen."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done: int = progress.processed
    return bool(done % trainer.accumulate_grad_batches) and done < trainer.num_training_batches


def checkpoint_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the content of a checkpoint of the current state, without asking the other processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def counts_of(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether the counters of a checkpoint are such as the trainer keeps."""
    return _alike(trainer.fit_loop.state_dict(), checkpoint["loops"].get("fit_loop"))


def _alike(own: Any, other: Any) -> bool:
    if isinstance(own, dict):
        return isinstance(other, dict) and all(name in other and _alike(own[name], other[name]) for name in own)
    return not isinstance(own, int) or (isinstance(other, int) and other >= 0)


def ended_inside(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a run that a limit of its steps or its time ended inside an epoch.

    That epoch was then validated and counted. One that was interrupted there was not.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    return epoch["processed"] >= epoch["ready"] and not batches["is_last_batch"]


class OpenFSDP(FSDPStrategy):
    """A strategy: Lightning's FSDP, with a public name for where it wraps the model."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return self.wrap(model)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model in parts."""
        return super()._setup_model(model)


def quicken(trainer: pl.Trainer) -> bool:
    """Gives the trainer the lean loop, before it fits. Returns whether the run can use it."""
    if not pl.__version__.startswith(WRITTEN_FOR):
        _say_once(
            f"Lightning {pl.__version__} is not {WRITTEN_FOR}x, whose training loop the lab has a leaner form of: "
            "training takes Lightning's own, which is slower"
        )
        return False
    if not _suits(trainer):
        return False
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = LeanLoop(trainer, min_steps=loop.min_steps, max_steps=loop.max_steps)
    if trainer.strategy.root_device.type == "cpu":
        # Lightning has torch look for GPUs through the driver's library, and the fused optimiser looks at every step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    return True


def decline(why: str) -> None:
    """Says why the steps of a run are not captured as a CUDA graph."""
    log.warning("cuda_graph=true %s: the steps run as without it", why)


@cache
def _say_once(text: str) -> None:
    log.warning(text)


def _suits(trainer: pl.Trainer) -> bool:
    """Whether the trainer's parts are plain; model, callbacks and optimiser are looked at in every epoch."""
    precision = trainer.precision_plugin
    plain = type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None)
    return (
        type(trainer.strategy) is SingleDeviceStrategy and plain and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
    )


def _overrides(part: Any, name: str) -> bool:
    base = pl.Callback if isinstance(part, pl.Callback) else pl.LightningModule
    return hasattr(base, name) and getattr(getattr(part, name), "__func__", None) is not getattr(base, name)


def _needs_closure(optimizer: Any) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _foreign(callback: pl.Callback) -> bool:
    """Whether a callback is not the lab's and has something to do in a step: it may log there."""
    ours = type(callback).__module__.startswith("vaelab.")
    return any(_overrides(callback, name) for name in ((*NOT_CALLED, *CALLED) if not ours else NOT_CALLED))


class LeanLoop(_TrainingEpochLoop):
    """The lean training loop of one epoch; see the module's docstring.

    capture: makes a stepper that takes the steps in the loop's place (`Model.stepper`), once the optimiser is there.
    """

    capture: Callable[[], Any] | None = None

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer, model = self.trainer, self.trainer.lightning_module
        not_overridden = (*NOT_CALLED, "on_train_batch_start", "configure_gradient_clipping")
        self.lean = (
            model.automatic_optimization
            and type(model).training_step.__module__.startswith("vaelab.")
            and not any(_overrides(model, name) for name in not_overridden)
            and not any(map(_foreign, trainer.callbacks))  # type: ignore[attr-defined]
            and trainer.accumulate_grad_batches == 1  # which a callback may change
            and len(trainer.optimizers) == 1
            and not _needs_closure(trainer.optimizers[0])
            and not trainer.lr_scheduler_configs
        )
        self.starts, self.befores, self.ends = ([] for _ in range(3))
        for hooks, name in zip((self.starts, self.befores, self.ends), CALLED, strict=True):
            hooks += [getattr(c, name) for c in trainer.callbacks if _overrides(c, name)]  # type: ignore[attr-defined]
        stepping: Any = model
        if not self.lean:
            stepping.stepper = None  # it takes the lean loop's steps
        if self.capture is not None:
            ours = type(model).on_before_optimizer_step.__module__.startswith("vaelab.")
            if not self.lean:
                self._decline("does not go with Lightning's own loop, which this run needs")
            elif self.befores or not ours:
                self._decline("does not go with what is done between the gradients and the step")
            elif model.stepper is None:
                model.stepper = self.capture()

    def _decline(self, why: str) -> None:
        """Goes on without a captured step."""
        model: Any = self.trainer.lightning_module
        model.stepper = self.capture = None
        decline(why)

    def teardown(self) -> None:
        super().teardown()
        if self.capture is not None:
            model: Any = self.trainer.lightning_module
            model.stepper = None  # it holds memory of the device

    def advance(self, data_fetcher: Any) -> None:
        validated = self.restarting and self._should_check_val_fx(data_fetcher)  # just before it was interrupted
        if not self.lean or (validated and (self.val_loop.restarted_mid_evaluation or self.restarted_on_last)):
            super().advance(data_fetcher)
            return
        if validated:
            self.val_loop.increment_progress_to_evaluation_end()
        self.val_loop.restarting = False
        trainer, model = self.trainer, self.trainer.lightning_module
        own = vars(model)  # a module's __setattr__ looks for weights first
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = next(data_fetcher)[0]
        batch_idx, progress = self.batch_idx + 1, self.batch_progress
        progress.is_last_batch = data_fetcher.done
        batch = model.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        for hook in self.starts:
            hook(trainer, model, batch, batch_idx)
        progress.increment_started()
        self._step(batch, batch_idx)
        progress.increment_processed()
        for hook in self.ends:
            hook(trainer, model, None, batch, batch_idx)
        own["_current_fx_name"] = "on_train_batch_end"
        model.on_train_batch_end(None, batch, batch_idx)
        own["_current_fx_name"] = None
        if self._results:  # a variant has called self.log
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            if self.capture is not None:
                self._decline("is not for a model that logs from its steps")
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Ends a step; where nothing can be due after it, Lightning is not asked whether something is."""
        trainer: Any = self.trainer
        every = trainer.val_check_batch
        due = self.batch_progress.is_last_batch or trainer.should_stop or trainer.received_sigterm
        due = due or self._skip_next_val or trainer._val_check_time_interval is not None or not isinstance(every, int)
        count = self.total_batch_idx if trainer.check_val_every_n_epoch is None else self.batch_idx
        if due or not self.lean or (count + 1) % every == 0:
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1

    def _step(self, batch: Any, batch_idx: int) -> None:
        """Takes a step: forward, backward and the optimiser's step, as in Lightning's automatic optimisation.

        A model with a stepper has moved its weights when its `training_step` returns.
        """
        trainer, model, optimizer = self.trainer, self.trainer.lightning_module, self.trainer.optimizers[0]
        counts = self.automatic_optimization.optim_progress.optimizer
        own, moved = vars(model), model.stepper is not None
        own["_current_fx_name"] = "training_step"  # for a variant that calls self.log
        with trainer.precision_plugin.train_step_context():
            loss: Any = model.training_step(batch, batch_idx)
        own["_current_fx_name"] = "on_before_optimizer_step"
        counts.zero_grad.increment_ready()
        counts.zero_grad.increment_started()
        if not moved:
            optimizer.zero_grad()
        counts.zero_grad.increment_completed()
        if not moved:
            loss.backward()
        for hook in self.befores:
            hook(trainer, model, optimizer)
        model.on_before_optimizer_step(optimizer)
        own["_current_fx_name"] = None
        if trainer.gradient_clip_val and not moved:
            model.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        counts.step.increment_ready()
        if not moved:
            optimizer.step()
        counts.step.increment_completed()
