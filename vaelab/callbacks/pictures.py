"""Grids of reconstructions and samples, and histograms, while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.figures.pixels import grid, pairs, save_png
from vaelab.loggers import PictureLogger
from vaelab.types import PositiveInt

COLUMNS = 8


class Pictures(pl.Callback):
    """Draws what the model makes: for W&B and TensorBoard at intervals, and as PNG in the run folder at the end.

    every_n_epochs: the interval. count: pictures per grid.
    """

    def __init__(self, every_n_epochs: PositiveInt, count: PositiveInt):
        self.every_n_epochs, self.count = every_n_epochs, count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, PictureLogger)]
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not trainer.is_global_zero or not loggers or not (last or trainer.current_epoch % self.every_n_epochs == 0):
            return
        pictures = self._draw(trainer, pl_module)
        for logger in loggers:
            for name, picture in pictures.items():
                logger.log_picture(name, picture, trainer.global_step)
            for name, values in pl_module.epoch_vectors.get("train", {}).items():
                logger.log_bars(name, values, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and trainer.global_step:
            for name, picture in self._draw(trainer, pl_module).items():
                save_png(picture, Path(trainer.default_root_dir) / "figures" / f"{name}.png")

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, model: Any) -> dict[str, Tensor]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        low, high = data.pixel_range
        batch = data.sample_batch(self.count, model.device)
        training = model.training
        model.eval()
        torch.manual_seed(0)  # the same draws every time, so that pictures can be compared
        made = model.reconstruct(batch.images, batch.labels)
        samples = model.sample(self.count) if model.has_prior else None
        model.train(training)
        pictures = {"reconstructions": pairs((batch.images - low) / (high - low), (made - low) / (high - low), COLUMNS)}
        if samples is not None:
            pictures["samples"] = grid((samples - low) / (high - low), COLUMNS)
        return pictures
