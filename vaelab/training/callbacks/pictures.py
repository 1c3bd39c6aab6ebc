"""Draws figures of a model, and histograms, while it trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytorch_lightning as pl

from vaelab.core.types import PositiveInt
from vaelab.figures.style import rendered
from vaelab.report import gallery
from vaelab.training.loggers import PictureLogger

if TYPE_CHECKING:
    from vaelab.models import Model

log = logging.getLogger("vaelab")


class Pictures(pl.Callback):
    """Draws figures of the model for W&B and TensorBoard at intervals; the run folder gets its figures at the end.

    A figure that cannot be drawn does not stop the training.

    every_n_epochs: the interval. count: images per grid.
    """

    def __init__(self, every_n_epochs: PositiveInt, count: PositiveInt):
        self.every_n_epochs, self.count = every_n_epochs, count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, PictureLogger)]
        if not trainer.is_global_zero or not loggers or trainer.current_epoch % self.every_n_epochs:
            return
        try:
            self._draw(trainer, pl_module, loggers)
        except Exception as error:  # as with weights that just became NaN, which the next step reports
            log.warning("pictures of epoch %d could not be drawn (%s)", trainer.current_epoch + 1, error)
        for name, values in pl_module.epoch_vectors.get("train", {}).items():
            for logger in loggers:
                logger.log_bars(name, values, trainer.global_step)

    def _draw(self, trainer: pl.Trainer, pl_module: Model, loggers: Sequence[PictureLogger]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        for name, figure in gallery.draw(pl_module, data, self.count, gallery.WHILE_TRAINING):
            picture = rendered(figure)
            for logger in loggers:
                logger.log_picture(name, picture, trainer.global_step)
