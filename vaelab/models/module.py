"""The half of a model that Lightning asks for: steps, exact means over an epoch, the noise's seed, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.errors import DivergenceError, UserError
from vaelab.core.means import Means
from vaelab.core.randomness import seed_global, seed_of
from vaelab.core.renames import upgrade_tensors
from vaelab.core.types import PositiveInt, Shape
from vaelab.models.base import Build, Terms, Variant
from vaelab.nn.conditions import Condition
from vaelab.nn.likelihoods import Likelihood


class Outcome(NamedTuple):
    """What a batch has come to.

    loss: the objective, 0-dim. metrics: means over the batch by name, 0-dim. vectors: sums over the batch by name.
    terms: what the objective is made of, as `Variant.terms` gives it; none if the model has learned from them already.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    vectors: dict[str, Tensor]
    terms: Terms


class Model(Variant, pl.LightningModule):
    """A variant that Lightning trains."""

    def __init__(
        self, shape: Shape, num_classes: PositiveInt | None, likelihood: Likelihood, condition: Build[Condition] = None
    ):
        super().__init__(shape, num_classes, likelihood, condition)
        self.optimizer: Callable[..., torch.optim.Optimizer] | None = None
        self.lr_factors: dict[str, float] = {}  # learning rates of parts, times the optimiser's; without those of 1
        self.seed = 0  # seed of the noise
        self.compiled: tuple[Callable[..., Terms], int] | None = (
            None  # compiled `terms`, and the batch size that it is for
        )
        # what takes whole steps in the loop's place: it measures a batch and, in training, moves the weights
        self.stepper: Callable[[Batch, Tensor | None], Outcome] | None = None
        self.observed: list[Any] = []  # what `observe` gave since the last optimiser step
        self.window, self.epoch_means, self.held_out = Means(), Means(), Means()
        self.closed_at = 0  # the step at which the window was last closed
        self.latest: dict[str, float] = {}  # metrics of the last closed window, for the progress bar
        self.restored: dict[str, Tensor] = {}  # metrics of the last epoch before a resume
        self.epoch_vectors: dict[str, dict[str, Tensor]] = {}  # per-image means of the last train/val/test epoch

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"stepper": None}  # a copy, as of averaged weights, takes no steps

    # --- optimisation -------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None, "set model.optimizer to a function of the parameters first"
        names = self._parts_apart()
        if not names:
            return self.optimizer(self.parameters())
        parts = [list(self.get_submodule(name).parameters()) for name in names]
        theirs = {weight for weights in parts for weight in weights}
        others = [weight for weight in self.parameters() if weight not in theirs]
        optimizer = self.optimizer([{"params": weights} for weights in (others, *parts)])
        for group, options in zip(optimizer.param_groups, self.group_options(optimizer), strict=True):
            if unknown := [name for name in options if name not in group]:
                kind = type(optimizer).__name__
                raise UserError(f"optimizer: {kind} has no {unknown[0]}, which {type(self).__name__} sets: use adam")
            group.update(options)
        return optimizer

    def _parts_apart(self) -> list[str]:
        """Names of the parts that have a group of the optimiser for themselves, in the groups' order."""
        return list(dict.fromkeys((*self.own_options, *self.lr_factors)))

    def group_options(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Returns what each of the optimiser's groups is given beside its defaults, before a schedule lowers `lr`."""
        groups: list[dict[str, Any]] = [{"lr": optimizer.defaults["lr"]}]
        for name in self._parts_apart():
            options = groups[0] | self.own_options.get(name, {})
            groups.append(options | {"lr": options["lr"] * self.lr_factors.get(name, 1.0)})
        return groups

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> list[float]:
        """Returns the learning rate of each of the optimiser's groups, before a schedule lowers it."""
        return [options["lr"] for options in self.group_options(optimizer)]

    def compile_terms(self, batch_size: int) -> None:
        """Has torch.compile make `terms` faster for training batches of `batch_size` images.

        One graph: what a schedule sets is a tensor, and neither evaluation, nor the odd last batch of
        an epoch, nor the very first goes through it.
        """
        self.compiled = torch.compile(self.terms, dynamic=False), batch_size

    # --- steps --------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Goes on with the last epoch's metrics of a resumed run: there may be nothing left to train but the test."""
        self.trainer.callback_metrics.update(self.restored)

    def on_train_start(self) -> None:
        """Completes a resume: reports what the interruption came before, sets the optimiser's options and layout."""
        for means in (self.window, self.epoch_means):
            means.to(self.device)
        self._report_if_due()
        for optimizer in self.trainer.optimizers:
            for group, options in zip(optimizer.param_groups, self.group_options(optimizer), strict=True):
                group.update({key: value for key, value in optimizer.defaults.items() if key in group} | options)
            for weight, state in optimizer.state.items():  # fused kernels read both in the order they lie in memory
                for key, value in state.items():
                    if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                        state[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seeds the noise of a training step by (seed, epoch, batch, rank).

        Like the order of the batches, the noise is then a function of the place in the run: a
        resumed run draws the same, and validation in between changes nothing.
        """
        if self.training:
            batch_idx = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._seed_noise(1 + self.trainer.current_epoch, batch_idx)
        return batch

    def _seed_noise(self, *place: int) -> None:
        seed_global(seed_of(self.seed, self.global_rank, *place), self.device)

    def _step(self, batch: Batch, means: Means) -> Outcome:
        """Measures a batch; its metrics are added to `means`."""
        outcome = (self.stepper or self.measure)(batch, self.noise(len(batch.images)))
        means.update(outcome.metrics, outcome.vectors, len(batch.images))
        return outcome

    def measure(self, batch: Batch, noise: Tensor | None) -> Outcome:
        """Computes the objective of a batch, the terms it is made of and its metrics; changes no state.

        Raises UserError for an objective that is no scalar, as a user's own may be.
        """
        terms_of = self.terms
        if self.compiled and self.training and len(batch.images) == self.compiled[1] and self.trainer.global_step:
            terms_of = self.compiled[0]
        terms = terms_of(batch, noise)
        loss = self.objective(terms)
        if not (isinstance(loss, Tensor) and loss.ndim == 0):
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"{type(self).__name__}.objective returns {what}: a tensor of one number is wanted, a mean")
        with torch.no_grad():
            of_images = {name: term for name, term in terms.items() if term.ndim == 1 and term.is_floating_point()}
            metrics = {"loss": loss} | {name: term.mean() for name, term in of_images.items()}
            metrics |= {name: getattr(self, name).clone() for name in self.scalars}  # schedules change them in place
            return Outcome(loss, metrics, self.vectors(terms), terms)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the objective, weighted so that the optimiser sees its mean over all images of a step.

        DDP averages it over processes, and Lightning over the batches that a step accumulates.
        """
        self.place(batch)
        batch = self.untold(batch)
        outcome = self._step(batch, self.window)
        if outcome.terms and (seen := self.observe(batch, outcome.terms)) is not None:
            self.observed.append(seen)
        weight = batch.weight * (1.0 if batch.share is None else batch.share.weight)
        return outcome.loss if weight == 1 else outcome.loss * weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves what learns without the optimiser: after the backward pass, once per optimiser step."""
        if self.observed:
            observed, self.observed = self.observed, []
            with torch.no_grad():
                self.learn(observed)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._report_if_due()

    def _report_if_due(self) -> None:
        """Closes the window every log_every_n_steps optimiser steps, and the epoch after its last batch.

        The epoch is closed here, before validation, so that callbacks find both parts' metrics at its
        end.
        """
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self.closed_at:
            self._close_window()
        if self.trainer.is_last_batch or step == self.trainer.max_steps:
            self._close_epoch()

    def _close_window(self) -> None:
        """Hands the means since the last call to the loggers, as `step/...`; of a scalar the value in this step.

        (The mean of a value that moves belongs to no step: drawn at the window's end it lags behind.)
        """
        self.closed_at = self.trainer.global_step
        if not self.window.empty:
            self.latest, _ = self._metrics(self.window)
            if self.scalars:
                values = torch.stack([getattr(self, name).detach() for name in self.scalars]).tolist()
                self.latest |= dict(zip(self.scalars, values, strict=True))
            rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
            self._log({f"step/{name}": value for name, value in (self.latest | {"lr": rate}).items()})
            self.epoch_means.merge(self.window)
            self.window.clear()

    def on_train_epoch_end(self) -> None:
        self._close_epoch()  # for training that ends in the middle of an epoch

    def _close_epoch(self) -> None:
        self._close_window()
        self._report("train", self.epoch_means)

    def on_validation_epoch_start(self) -> None:
        self._seed_noise(0)  # the same noise at every validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.held_out)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.held_out.clear()  # untrained, and of a few batches: it only shows that validation works
        else:
            self._report("val", self.held_out)

    def on_test_epoch_start(self) -> None:
        self._seed_noise(0)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.held_out)

    def on_test_epoch_end(self) -> None:
        self._report("test", self.held_out)

    # --- metrics ------------------------------------------------------------------------------

    def _metrics(self, means: Means) -> tuple[dict[str, float], dict[str, Tensor]]:
        values, vectors = means.compute()
        if not all(map(math.isfinite, values.values())):
            raise DivergenceError(
                f"training diverged: {' and '.join(means.first_bad())} became infinite or NaN by step "
                f"{self.global_step}; lower optimizer.lr, or set trainer.gradient_clip_val=1"
            )
        return values | self.derived(values, vectors), vectors

    def _report(self, part: str, means: Means) -> None:
        """Logs an epoch's exact metrics as `part/...` and leaves them to callbacks under the same names."""
        if means.empty:
            return
        values, self.epoch_vectors[part] = self._metrics(means)
        metrics = {f"{part}/{name}": value for name, value in values.items()}
        if part == "test":
            self.log_dict(metrics, sync_dist=True)  # Lightning hands them to the loggers, and returns them
        else:
            self._log(metrics)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        means.clear()

    def _log(self, metrics: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics | {"epoch": float(self.current_epoch)}, step=self.global_step)

    # --- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what load needs beside the weights, the metrics of an unfinished epoch and those of the last one."""
        checkpoint["shape"], checkpoint["num_classes"] = list(self.shape), self.num_classes
        checkpoint["window"], checkpoint["epoch_means"] = self.window.state(), self.epoch_means.state()
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["reported"] = {"metrics": metrics, "vectors": self.epoch_vectors}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        first = self.global_rank == 0  # the saved sums are over all processes: one goes on from them
        self.window.restore(checkpoint["window"], empty=not first)
        self.epoch_means.restore(checkpoint["epoch_means"], empty=not first)
        if reported := checkpoint.get("reported"):  # which version 0.1 did not keep
            self.epoch_vectors = reported["vectors"]
            self.restored = {name: torch.tensor(value) for name, value in reported["metrics"].items()}
        if "state_dict" in checkpoint:  # a strategy may have loaded it itself
            checkpoint["state_dict"] = upgrade_tensors(checkpoint["state_dict"])
