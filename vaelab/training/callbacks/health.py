"""Warns of what is wrong with a model while it trains."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from vaelab.core.words import Finding
from vaelab.evaluation.findings.health import (
    diagnose_codebook,
    diagnose_latents,
    diagnose_mixture,
    diagnose_output,
    judged_from,
)

if TYPE_CHECKING:
    from vaelab.models import Model

log = logging.getLogger("vaelab")

SAMPLE, FEW = 512, 64
"""Numbers of images on which the mean picture and the outputs' contrast, and a perfect reconstruction, are measured."""


class Health(pl.Callback):
    """Diagnoses every epoch's metrics and warns once of each finding; `findings` holds those of the last epoch.

    They are None until the run is judged: `judged_from` says when.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] | None = None
        self.warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        findings = None if self.findings is None else [finding._asdict() for finding in self.findings]
        return {"findings": findings, "warned": sorted(self.warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        findings = state_dict["findings"]
        self.findings = None if findings is None else [Finding(**finding) for finding in findings]
        self.warned = set(state_dict["warned"])

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if trainer.global_step < judged_from(trainer.estimated_stepping_batches):
            return
        metrics = trainer.callback_metrics
        part = "val" if "val/reconstruction" in metrics else "train"
        if f"{part}/reconstruction" not in metrics or "train/reconstruction" not in metrics:
            return  # training ended before the first epoch did
        figures = {k.removeprefix(f"{part}/"): v.item() for k, v in metrics.items() if k.startswith(f"{part}/")}
        self.findings = self._look(trainer, pl_module, part, figures)
        for finding in self.findings:
            if finding.code not in self.warned:
                self.warned.add(finding.code)
                log.warning("epoch %d: %s", trainer.current_epoch + 1, finding)

    def _look(self, trainer: pl.Trainer, model: Any, part: str, figures: dict[str, float]) -> list[Finding]:
        trained = {k.removeprefix("train/"): v.item() for k, v in trainer.callback_metrics.items() if "train/" in k}
        data = trainer.datamodule  # type: ignore[attr-defined]
        batch = data.sample_batch(SAMPLE, model.device)
        training = model.training
        model.eval()
        findings = diagnose_output(model.reconstruct(batch.images, batch.labels), batch.images)
        model.train(training)
        if "kl" in figures:
            raw = model.likelihood.raw_from_mean(data.mean_image.to(model.device)).expand(len(batch.images), -1, -1, -1)
            baseline = -model.likelihood.log_prob(raw, batch.images).mean().item()
            few = batch.images[:FEW]
            perfect = -model.likelihood.log_prob(model.likelihood.raw_from_mean(few), few).mean().item()
            per_dim = model.epoch_vectors[part].get("kl_per_dim")
            how = getattr(model, "constraint", None)
            beta = figures.get("beta", 1.0)
            findings += diagnose_latents(figures, per_dim, baseline, perfect, beta, how, model.conditional)
        if model.prior is not None and model.prior.weights is not None:
            findings += diagnose_mixture(model.prior.weights)
        if "codebook_usage" in figures:
            # usage in the training epoch: a small validation set cannot choose every code
            size, remedy = model.codebook.num_embeddings, model.codebook.remedy
            findings += diagnose_codebook(trained, "codebook_usage", "perplexity", size, remedy)
        return findings + model.diagnose(trained)
