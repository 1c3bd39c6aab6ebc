"""Saves checkpoints: the best and the last, in a folder that may move, and the last one when a run is interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vaelab.core.distributed import all_sum, alone
from vaelab.core.errors import DivergenceError
from vaelab.core.files import whole
from vaelab.training import loop
from vaelab.training.callbacks.anneal import Anneal

if TYPE_CHECKING:
    from vaelab.models import Model


class WholeFile(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, wherever temporary files lie: Lightning's may be on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as partial:
            torch.save(checkpoint, partial)


class RunCheckpoint(ModelCheckpoint):
    """Saves checkpoints at epochs' ends, as Lightning does; its memory of the best survives a move of the run folder.

    The best is looked for among the epochs that had the values which the run's schedules end with: beta or
    C on the way are another objective, with another optimum. Until then the newest epoch is kept.
    """

    on_train_batch_end = pl.Callback.on_train_batch_end  # does nothing in a step
    scheduled: dict[str, float] | None = None  # schedules' values with which the best one was trained

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Any = None) -> bool:
        schedules = next((c for c in trainer.callbacks if isinstance(c, Anneal)), None)  # type: ignore[attr-defined]
        better = super().check_monitor_top_k(trainer, current)
        if schedules is None or current is None:
            return better
        before, now = self.scheduled, dict(schedules.values)
        candidate = before is not None and schedules.at_end(before)
        better = not candidate or (better and schedules.at_end(now))
        self.scheduled = now if better else before
        return better

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scheduled": self.scheduled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        state = state_dict | {name: moved(state_dict[name]) for name in names}
        state["best_k_models"] = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state | {"dirpath": self.dirpath})
        self.scheduled = state_dict["scheduled"]


class LastOnException(pl.Callback):
    """Saves last.ckpt when training is interrupted or fails, so that `resume=` goes on from there.

    Ctrl-C waits for the end of the step, where the state is whole, and after an epoch's last step for
    its validation, which a resumed run would not make up for; a second one does not. Several
    processes agree to stop, on Ctrl-C and on SIGTERM, where they exchange their metrics anyway, so
    that all save the same step. If one fails, the others may never come to a save: the first one
    saves what it has by itself, if that is all there is (DDP). Nothing is saved after a divergence
    (the checkpoint before it is worth more), outside training, or while averaged weights stand in
    for the model's (validation).

    path: the file; None saves nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.asked = 0  # the signal that asks to stop
        self.agreed = False  # whether all processes stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._listen(trainer)
        loop.no_question_about_sigterm(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._listen(trainer)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Handles signals until Lightning puts back the former handlers, after training and after the test."""
        if threading.current_thread() is not threading.main_thread():
            return
        several = trainer.world_size > 1

        def handle(number: int, frame: Any) -> None:
            waits = trainer.state.fn == "fit" if several else trainer.training and not self.asked
            if not waits:
                raise SIGTERMException if number == signal.SIGTERM else KeyboardInterrupt
            self.asked = number

        signal.signal(signal.SIGINT, handle)
        if several:  # Lightning's handler communicates with the other processes, which may be in another exchange
            signal.signal(signal.SIGTERM, handle)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._stop_between_epochs(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Model, *_: Any) -> None:
        if loop.accumulates(trainer):
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.world_size == 1:
            if self.asked and not trainer.is_last_batch:
                raise KeyboardInterrupt
        elif trainer.is_last_batch or (every and trainer.global_step % every == 0):
            self._stop_if_asked(trainer, self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._stop_between_epochs(trainer)

    def _stop_between_epochs(self, trainer: pl.Trainer) -> None:
        """Ends training if that was asked for since the epoch's last step: it is validated and saved by now."""
        if trainer.world_size > 1:
            self._stop_if_asked(trainer)
        elif self.asked:
            self.agreed = True
            raise KeyboardInterrupt

    def _stop_if_asked(self, trainer: pl.Trainer, path: Path | None = None) -> None:
        """Ends all processes at once if any was asked to stop; every process must call it."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        asked = torch.tensor([int(self.asked == number) for number in numbers], device=trainer.strategy.root_device)
        interrupt, terminate = all_sum(asked).tolist()
        if interrupt or terminate:
            self.agreed = True
            if path is not None:
                trainer.save_checkpoint(path)
            raise SIGTERMException if terminate else KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: Model, exception: BaseException) -> None:
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if (
            self.path is None
            or self.agreed
            or trainer.state.fn != "fit"
            or trainer.global_step == 0
            or (averaged and trainer.validating)
            or isinstance(exception, DivergenceError)
        ):
            return
        _forget_begun_step(trainer)
        if trainer.world_size == 1:
            trainer.save_checkpoint(self.path)
        elif trainer.is_global_zero and type(trainer.strategy) is DDPStrategy:
            with alone():
                checkpoint = loop.checkpoint_of(trainer)
            trainer.strategy.save_checkpoint(checkpoint, self.path)


def _forget_begun_step(trainer: pl.Trainer) -> None:
    """Counts a step that failed as not begun: a resumed run takes it next."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if progress.current.ready > progress.current.processed:
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = counts.processed
        progress.is_last_batch = False


class EMA(EMAWeightAveraging):
    """Averages the weights exponentially, as Lightning does; scheduled scalars are not averaged but stay as they are.

    decay: of the average, per step.
    """

    def __init__(self, decay: float):
        super().__init__(decay=decay)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Model, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        assert self._average_model is not None
        for name in pl_module.scalars:
            getattr(self._average_model.module, name).copy_(getattr(pl_module, name))
