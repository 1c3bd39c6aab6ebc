"""Records a vector of each training epoch: the KL of each latent dimension, how often each code was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import Tensor

from vaelab.training.loggers import MetricsFile

if TYPE_CHECKING:
    from vaelab.models import Model

MOST = 4096
"""Most components of a vector that is recorded: of more, the file would outgrow the run's checkpoints."""


class EpochVector(pl.Callback):
    """Writes a vector of each training epoch, a mean over images, as a row; nothing of a model without it.

    name: that of the vector among what the model measures; `name_top` and so on where each level has one. file: in
    the run folder; a column per component, `0` or `top_0`.
    """

    def __init__(self, name: str, file: MetricsFile):
        self.name, self.file, self.epoch = name, file, 0
        self.written: dict[str, Tensor] | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.epoch = trainer.current_epoch
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        """Writes the last row where training stops in mid-epoch: its metrics come after the callbacks' epoch end."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Model) -> None:
        vectors = pl_module.epoch_vectors.get("train")
        if vectors is None or vectors is self.written:
            return
        self.written = vectors
        own = {key[len(self.name) :]: x for key, x in vectors.items() if f"{key}_".startswith(f"{self.name}_")}
        if not 0 < sum(values.numel() for values in own.values()) <= MOST:
            return
        row: dict[str, float] = {}
        for level, values in own.items():
            row |= {f"{level}_{component}".strip("_"): x for component, x in enumerate(values.tolist())}
        self.file.log_metrics({"epoch": float(self.epoch)} | row, trainer.global_step)
        self.file.save()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Model, checkpoint: dict[str, Any]) -> None:
        self.file.sync()
