"""Records the KL of each latent dimension over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import Tensor

from vaelab.training.loggers import MetricsFile

if TYPE_CHECKING:
    from vaelab.models import Model


class KLPerDimension(pl.Callback):
    """Writes each training epoch's mean KL of every latent dimension, nats per image, as a row.

    file: kl_per_dim.csv of the run folder; a column per dimension.
    """

    def __init__(self, file: MetricsFile):
        self.file, self.epoch = file, 0
        self.written: Tensor | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.epoch = trainer.current_epoch
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        """Writes the last row where training stops in mid-epoch: its metrics come after the callbacks' epoch end."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Model) -> None:
        values = pl_module.epoch_vectors.get("train", {}).get("kl_per_dim")
        if values is None or values is self.written:
            return
        self.written = values
        row = {str(dimension): value for dimension, value in enumerate(values.tolist())}
        self.file.log_metrics({"epoch": float(self.epoch)} | row, trainer.global_step)
        self.file.save()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Model, checkpoint: dict[str, Any]) -> None:
        self.file.sync()
