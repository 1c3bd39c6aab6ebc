"""Shows the progress bar: one line for the whole run, refreshed by time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from vaelab.core.metrics import in_order, metric
from vaelab.core.terminal import in_notebook

if TYPE_CHECKING:
    from vaelab.models import Model

REFRESH = 0.2
"""Seconds between two refreshes of the bar on a terminal."""
REFRESH_FILE = 10.0
"""Seconds between two lines where the output is not a terminal."""


class ProgressLine(ProgressBar):
    """Shows epoch, step, speed and the newest metrics. It reads numbers that the model already has on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.shown_at = 0.0
        self.terminal = sys.stderr.isatty() or in_notebook()

    def disable(self) -> None:
        self.enabled = False

    enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.enabled or not trainer.is_global_zero:
            return
        total = trainer.estimated_stepping_batches
        self.bar = tqdm(
            total=int(total) if total != float("inf") else None,
            initial=trainer.global_step,
            disable=not self.terminal,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=0,
            miniters=1,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Model, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self.shown_at >= (REFRESH if self.terminal else REFRESH_FILE):
            self._show(trainer, pl_module, trainer.current_epoch + 1)
            self.shown_at = now

    def _show(self, trainer: pl.Trainer, pl_module: Model, epoch: int) -> None:
        if not self.enabled or not trainer.is_global_zero:
            return
        figures = {name: pl_module.latest[name] for name in in_order(list(pl_module.latest)) if metric(name).brief}
        words = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        place = place_of(trainer, epoch)
        if self.terminal:
            self.bar.set_description_str(place, refresh=False)
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.n = trainer.global_step
            self.bar.refresh()
        elif figures:
            print(f"{place} step {trainer.global_step} {words}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if self.enabled and trainer.is_global_zero:
            self._show(trainer, pl_module, max(1, trainer.current_epoch))  # one that was cut short is counted by now
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(a) for a in args), file=sys.stderr)


def place_of(trainer: pl.Trainer, epoch: int) -> str:
    """Words how far a run is. epoch: from 1; that after the last is still the last."""
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
    return f"epoch {min(epoch, epochs or epoch)}/{epochs or '?'}"
