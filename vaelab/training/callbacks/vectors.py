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

    name: that of the vector among what the model measures. file: in the run folder; a column per component.
    """

    def __init__(self, name: str, file: MetricsFile):
        self.name, self.file, self.epoch = name, file, 0
        self.written: Tensor | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.epoch = trainer.current_epoch
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        """Writes the last row where training stops in mid-epoch: its metrics come after the callbacks' epoch end."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Model) -> None:
        values = pl_module.epoch_vectors.get("train", {}).get(self.name)
        if values is None or values is self.written or values.ndim != 1 or len(values) > MOST:
            return
        self.written = values
        row = {str(component): value for component, value in enumerate(values.tolist())}
        self.file.log_metrics({"epoch": float(self.epoch)} | row, trainer.global_step)
        self.file.save()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Model, checkpoint: dict[str, Any]) -> None:
        self.file.sync()
