"""Checkpoints beyond Lightning's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vaelab.errors import DivergenceError


class LastOnException(pl.Callback):
    """Saves last.ckpt when training is interrupted or fails, so that `resume=` goes on from there.

    Not after a divergence: the checkpoint before it is worth more. Not with several processes,
    whose others may never come to the save.

    path: the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if trainer.world_size == 1 and trainer.global_step > 0 and not isinstance(exception, DivergenceError):
            trainer.save_checkpoint(self.path)
