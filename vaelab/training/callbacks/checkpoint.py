"""Saves checkpoints at epochs' ends: the best and the last, in a folder that may move; averages weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vaelab.core.files import whole
from vaelab.core.types import Decay
from vaelab.training.callbacks.anneal import Anneal

if TYPE_CHECKING:
    from vaelab.models import Model


class WholeFile(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, wherever temporary files lie: Lightning's may be on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(_apart(checkpoint), file)
            except RuntimeError as error:  # torch's, about its own file format, when the disk is full
                if isinstance(cause := error.__context__, OSError):
                    raise OSError(cause.errno, cause.strerror, str(path)) from error
                raise


def _apart(node: Any) -> Any:
    """Returns a checkpoint in which tensors that are parts of larger ones are copied: all of those would be saved."""
    if isinstance(node, dict):
        return type(node)((key, _apart(value)) for key, value in node.items())
    if isinstance(node, list | tuple) and type(node) in (list, tuple):
        return type(node)(_apart(value) for value in node)
    if torch.is_tensor(node) and node.untyped_storage().nbytes() > node.nbytes:
        return node.clone()
    return node


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
        self.scheduled, self.current_score = state_dict["scheduled"], state_dict["current_score"]


class EMA(EMAWeightAveraging):
    """Averages the weights exponentially, as Lightning does; scheduled scalars are not averaged but stay as they are.

    decay: of the average, per step.
    """

    def __init__(self, decay: Decay):
        super().__init__(decay=decay)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({"latest_update_step": int(state_dict["latest_update_step"])})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Model, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        assert self._average_model is not None
        for name in pl_module.scalars:
            getattr(self._average_model.module, name).copy_(getattr(pl_module, name))
