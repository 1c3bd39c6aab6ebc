"""Checkpoints: the best and the last, in a folder that may move, and the last one when a run is interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging

from vaelab.callbacks.anneal import Anneal
from vaelab.errors import DivergenceError


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints at epochs' ends, whose memory of the best one survives a move of the run folder.

    The best is looked for among the epochs that had the values which the run's schedules end with: beta or
    C on the way are another objective, with another optimum. Until then the newest epoch is kept.
    """

    on_train_batch_end = pl.Callback.on_train_batch_end  # nothing: no work in a step
    scheduled: dict[str, float] | None = None  # the values of the schedules that the best one was trained with

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Any = None) -> bool:
        schedules = next((c for c in trainer.callbacks if isinstance(c, Anneal)), None)  # type: ignore[attr-defined]
        better = super().check_monitor_top_k(trainer, current)
        if schedules is None:
            return better
        before, now = self.scheduled, dict(schedules.values)
        better = better or before is None or not schedules.at_end(before) or not schedules.at_end(now)
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

    Ctrl-C waits for the end of the step, where the state is whole; a second one does not. Nothing
    is saved after a divergence (the checkpoint before it is worth more), outside training, while
    averaged weights stand in for the model's (validation), or with several processes, whose others
    may never come to the save.

    path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, frame: Any) -> None:
            if self.asked or not trainer.training:
                raise KeyboardInterrupt
            self.asked = True

        self.former = signal.signal(signal.SIGINT, handle)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.asked and not trainer.fit_loop._should_accumulate():
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if hasattr(self, "former"):
            signal.signal(signal.SIGINT, self.former)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if (
            trainer.state.fn == "fit"
            and trainer.world_size == 1
            and trainer.global_step > 0
            and not (averaged and trainer.validating)
            and not isinstance(exception, DivergenceError)
        ):
            trainer.save_checkpoint(self.path)


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights; scheduled scalars are not averaged but as they stand.

    decay: of the average, per step.
    """

    def __init__(self, decay: float):
        super().__init__(decay=decay)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        assert self._average_model is not None
        for name in pl_module.scalars:
            getattr(self._average_model.module, name).copy_(getattr(pl_module, name))
