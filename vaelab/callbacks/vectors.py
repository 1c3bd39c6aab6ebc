"""The KL of each latent dimension over a training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from vaelab.loggers import MetricsFile


class KLPerDimension(pl.Callback):
    """Writes each training epoch's mean KL of every latent dimension, nats per image, as a row.

    file: kl_per_dim.csv of the run folder; a column per dimension.
    """

    def __init__(self, file: MetricsFile):
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        values = pl_module.epoch_vectors.get("train", {}).get("kl_per_dim")
        if values is not None:
            row = {str(dimension): value for dimension, value in enumerate(values.tolist())}
            self.file.log_metrics({"epoch": float(trainer.current_epoch)} | row, trainer.global_step)
            self.file.save()
