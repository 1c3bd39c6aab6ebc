"""Ends a trial of a search early when its validation metric is worse than other trials' were."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

from vaelab.training import studies

log = logging.getLogger("vaelab")


class Prune(pl.Callback):
    """Reports a validation metric to the study after each epoch, and ends training when the study says so.

    `pruned` says afterwards whether it did. The last epoch is never cut: there is nothing left to save.

    place: which trial this is.
    """

    def __init__(self, place: studies.Place):
        self.place = place
        self.pruned = False
        self.trial: Any = None
        self.reported = -1  # the last epoch reported: each is reported once, whatever the run is resumed from

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, value = trainer.current_epoch, trainer.callback_metrics.get(self.place.metric)
        if trainer.sanity_checking or trainer.state.fn != "fit" or value is None:
            return
        worse = self._report(epoch, float(value)) if trainer.is_global_zero else False
        last = trainer.max_epochs is not None and epoch + 1 == trainer.max_epochs
        if trainer.strategy.broadcast(worse) and not last:
            log.info("pruned after epoch %d: %s=%.4g is behind other trials'", epoch + 1, self.place.metric, value)
            self.pruned = trainer.should_stop = True

    def _report(self, epoch: int, value: float) -> bool:
        """Reports a value to the study. Returns whether the trial should end."""
        if self.trial is None:
            self.trial = studies.trial(self.place)
            known = self.trial.study.get_trials(deepcopy=False)[self.place.trial].intermediate_values
            self.reported = max(known, default=-1)
        if epoch <= self.reported:
            return False
        self.trial.report(value, epoch)
        self.reported = epoch
        return self.trial.should_prune()
