"""What all variants share: Lightning's steps, exact epoch figures, scheduled scalars."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.core.distributed import Share, active
from vaelab.core.errors import DivergenceError, UserError
from vaelab.core.means import Means
from vaelab.core.randomness import seed_global, seed_of
from vaelab.core.types import PositiveInt, Shape
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Decoder


class Model(pl.LightningModule):
    """Base of the variants.

    A variant implements `terms` (what is measured of a batch), `objective` (what is minimised),
    `reconstruct` and, if it has a prior, `sample`.

    shape: (C, H, W) of the images. num_classes: classes of the labels, None if there are none.
    likelihood: p(x|z).
    """

    monitor = "elbo"
    """The figure that selects the best checkpoint."""
    best = "max"
    """Whether the best is the greatest (`max`) or the least (`min`)."""
    has_prior = True
    """Whether `sample` can draw new images."""
    conditional = False
    """Whether images are encoded, decoded and sampled with their labels."""
    latents: Literal["gaussian", "discrete", "point"]
    """What `encode(x, labels)` gives: mean and log-variance of q(z|x), [B, d] each; code indices, [B, h, w]; or a
    code, [B, d]. `decode(codes, labels)` takes draws of z, indices or codes, and returns raw likelihood parameters."""
    scalars: dict[str, float] = {}
    """Names and first values of what a schedule may set. Each becomes a 0-dim buffer: saved, moved
    with the device, logged under its name, and changed without recompiling a compiled model."""
    decoder: Decoder

    def __init__(self, shape: Shape, num_classes: PositiveInt | None, likelihood: Likelihood):
        super().__init__()
        self.shape: Shape = tuple(shape)  # type: ignore[assignment]
        self.num_classes, self.likelihood = num_classes, likelihood
        self.optimizer: Callable[..., torch.optim.Optimizer] | None = None
        self.seed = 0  # of the noise
        self.compiled: tuple[Callable[..., dict[str, Tensor]], int] | None = None  # terms, and for which batch size
        self.share: Share | None = None  # of the present global batch; None where one process has all of it
        self.window, self.epoch_means, self.held_out = Means(), Means(), Means()
        self.closed_at = 0  # the step at which the window was last closed
        self.latest: dict[str, float] = {}  # figures of the last closed window, for the progress bar
        self.epoch_vectors: dict[str, dict[str, Tensor]] = {}  # per-image means of the last train/val/test epoch
        for name, value in self.scalars.items():
            self.register_buffer(name, torch.tensor(value))

    # --- what a variant says ------------------------------------------------------------------

    def terms(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Everything the objective is made of, per image.

        x: [B, C, H, W] in the data's range; labels: [B] or None. Returns tensors whose first
        dimension is B; those of shape [B] are logged as means under their names.
        """
        raise NotImplementedError

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        """The scalar that is minimised, nats per image."""
        raise NotImplementedError

    def vectors(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Figures with more than one component, summed over the batch: fresh tensors, which are kept for a while."""
        return {}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        """Further figures that follow from exact means over images, of terms and of vectors."""
        return {}

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images decoded from the codes of `x`, [B, C, H, W], without sampling."""
        raise NotImplementedError

    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """Mean images of `count` draws from the prior, [count, C, H, W]. Raises UserError without a prior."""
        raise UserError(f"{type(self).__name__} has no prior to draw samples from: use model=vae")

    # --- start and optimisation ---------------------------------------------------------------

    def start_from(self, mean_image: Tensor, spread: float) -> None:
        """Starts a fresh model at the training set's mean image.

        mean_image: [C, H, W] in the data's range, which the output bias is set to. spread: the
        pixels' standard deviation around it, where a learned noise level starts.
        """
        self.decoder.start_from(mean_image, self.likelihood.raw_from_mean)
        self.likelihood.start_from(spread)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None, "set model.optimizer to a function of the parameters first"
        return self.optimizer(self.parameters())

    def compile_terms(self, batch_size: int) -> None:
        """Has torch.compile make `terms` faster for training batches of `batch_size` images.

        One graph: what a schedule sets is a tensor, and neither evaluation, nor the odd last batch of
        an epoch, nor the very first (which places a codebook's codes) goes through it. The noise is
        drawn as without it, so that the same seed gives the same run up to rounding.
        """
        self.compiled = torch.compile(self.terms, dynamic=False, options={"fallback_random": True}), batch_size

    # --- steps --------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """After a resume: reports what the interruption came before; the optimiser takes its settings and layout."""
        for means in (self.window, self.epoch_means):
            means.to(self.device)
        self._report_if_due()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({key: value for key, value in optimizer.defaults.items() if key in group})
            for weight, state in optimizer.state.items():  # fused kernels read both in the order they lie in memory
                for key, value in state.items():
                    if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                        state[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seeds the noise of a training step by (seed, epoch, batch, rank).

        Like the order of the batches, the noise is then a function of the place in the run: a
        resumed run draws the same, and validation in between changes nothing.
        """
        if self.trainer.training:
            batch_idx = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._seed_noise(1 + self.trainer.current_epoch, batch_idx)
        return batch

    def _seed_noise(self, *place: int) -> None:
        seed_global(seed_of(self.seed, self.global_rank, *place), self.device)

    def _step(self, part: str, batch: Any, batch_idx: int, means: Means) -> Tensor:
        """The objective of a batch, whose figures are added to `means`; part: train, val or test."""
        self.share = self.trainer.datamodule.share(part, batch_idx) if active() else None  # type: ignore[attr-defined]
        measure = self.terms
        if self.compiled and self.training and len(batch.images) == self.compiled[1] and self.trainer.global_step:
            measure = self.compiled[0]
        terms = measure(batch.images, batch.labels)
        loss = self.objective(terms)
        with torch.no_grad():
            figures = {"loss": loss} | {name: term.mean() for name, term in terms.items() if term.ndim == 1}
            figures |= {name: getattr(self, name).clone() for name in self.scalars}  # schedules write in place
            means.update(figures, self.vectors(terms), len(batch.images))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The objective, weighted so that DDP's average over processes is the mean over the global batch's images."""
        loss = self._step("train", batch, batch_idx, self.window)
        return loss if self.share is None or self.share.weight == 1 else loss * self.share.weight

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._report_if_due()

    def _report_if_due(self) -> None:
        """Closes the window every log_every_n_steps optimiser steps, and the epoch after its last batch.

        The epoch is closed here, before validation, so that callbacks find both parts' figures at its
        end.
        """
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self.closed_at:
            self._close_window()
        if self.trainer.is_last_batch or step == self.trainer.max_steps:
            self._close_epoch()

    def _close_window(self) -> None:
        """Hands the means since the last call to the loggers, as `step/...`."""
        self.closed_at = self.trainer.global_step
        if not self.window.empty:
            self.latest, _ = self._figures(self.window)
            rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
            self._log({f"step/{name}": value for name, value in (self.latest | {"lr": rate}).items()})
            self.epoch_means.merge(self.window)
            self.window.clear()

    def on_train_epoch_end(self) -> None:
        self._close_epoch()  # where training ends in the middle of an epoch

    def _close_epoch(self) -> None:
        self._close_window()
        self._report("train", self.epoch_means)

    def on_validation_epoch_start(self) -> None:
        self._seed_noise(0)  # the same noise at every validation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch, batch_idx, self.held_out)

    def on_validation_epoch_end(self) -> None:
        self._report("val", self.held_out)

    def on_test_epoch_start(self) -> None:
        self._seed_noise(0)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch, batch_idx, self.held_out)

    def on_test_epoch_end(self) -> None:
        self._report("test", self.held_out)

    # --- figures ------------------------------------------------------------------------------

    def _figures(self, means: Means) -> tuple[dict[str, float], dict[str, Tensor]]:
        values, vectors = means.compute()
        if not all(map(math.isfinite, values.values())):
            raise DivergenceError(
                f"training diverged: {' and '.join(means.first_bad())} became infinite or NaN by step "
                f"{self.global_step}; lower optimizer.lr, or set trainer.gradient_clip_val=1"
            )
        return values | self.derived(values, vectors), vectors

    def _report(self, part: str, means: Means) -> None:
        """Logs an epoch's exact figures as `part/...` and leaves them to callbacks under the same names."""
        if means.empty:
            return
        values, self.epoch_vectors[part] = self._figures(means)
        figures = {f"{part}/{name}": value for name, value in values.items()}
        self._log(figures)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        means.clear()

    def _log(self, figures: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(figures | {"epoch": float(self.current_epoch)}, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what load needs beside the weights, and the figures of an unfinished epoch."""
        checkpoint["shape"], checkpoint["num_classes"] = list(self.shape), self.num_classes
        checkpoint["window"], checkpoint["epoch_means"] = self.window.state(), self.epoch_means.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        first = self.global_rank == 0  # the saved figures are those of all processes
        self.window.restore(checkpoint["window"], empty=not first)
        self.epoch_means.restore(checkpoint["epoch_means"], empty=not first)
