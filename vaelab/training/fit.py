"""Fits one run: data, model and trainer from a resolved config, trained, tested and written to its folder."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.nn.modules.batchnorm import _BatchNorm

from vaelab import runs
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.core.words import listed
from vaelab.datasets.classes import labels_of
from vaelab.runs import Files
from vaelab.runs.answers import answer
from vaelab.runs.quiet import quieten
from vaelab.training import afterwards, resume, studies, summary
from vaelab.training.callbacks import EpochVector, ProgressLine, Prune, RunCheckpoint, WholeFile
from vaelab.training.captured import capture
from vaelab.training.checks import check_codes, doubts
from vaelab.training.fsdp import FullySharded
from vaelab.training.loggers import MetricsFile, PictureLogger, RunLogger
from vaelab.training.logs import log_to
from vaelab.training.loop import quicken
from vaelab.training.vectorized import turns

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

log = logging.getLogger("vaelab")


def fit(config: dict[str, Any], run: Path) -> None:
    """Trains what `config` says and writes the run folder. With several processes, each calls it."""
    started = time.monotonic()
    log_to(run)
    checkpoint = resume.newest(run) if config["resume"] is not None else None
    data, model, trainer = prepare(config, run, checkpoint)
    afterwards.check(config, model)
    if checkpoint is None:
        check_codes(model, data)
    if trainer.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        runs.write_config(run, config)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        log.info(summary.opening(config, model, data, trainer))
        log.info("run folder: %s", config["run"]["dir"])
        for doubt in doubts(config, model, data):
            log.warning(doubt)
        if config["compile"]:
            log.info("compile=true: the second step compiles the model, which may take a minute")
    try:
        with lightning_errors(), resume.taking_up(checkpoint, model, trainer), turns.together(model, trainer):
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except UserError:
        if checkpoint is None and trainer.global_step == 0:
            Files(run).config.unlink(missing_ok=True)  # nothing was trained
        raise
    result = summary.collect(config, model, data, trainer, time.monotonic() - started)
    if trainer.is_global_zero:
        runs.write_summary(run, result | {"status": "trained"})
    if isinstance(trainer.strategy, FullySharded):
        model, result["best"] = _whole(config, run, trainer), _best(trainer)
    else:
        result["best"] = _take_best_weights(trainer, model)
    pruned = any(isinstance(callback, Prune) and callback.pruned for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if pruned:
        result["status"] = "pruned"
    if config["test"] and not pruned:
        trainer.test(model, datamodule=data, verbose=False)
        result["metrics"] |= summary.numbers(trainer.callback_metrics)
    if trainer.is_global_zero:
        runs.write_summary(run, result)
        print(summary.table(result))
        if not pruned:
            whole = _whole(config, run, trainer) if isinstance(trainer.strategy, FullySharded) else model
            afterwards.fit(config, run, whole, data, trainer.strategy.root_device)
            if config["report"]:
                _report(config, run, whole, data, trainer)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.log_run(run)
        print(f"run: {run}")


def _report(config: dict[str, Any], run: Path, model: Model, data: ImageData, trainer: pl.Trainer) -> None:
    """Makes figures and report.html of the finished run; the figures go to the loggers, too.

    The run is complete by now, and a figure that cannot be drawn does not undo it.
    """
    from vaelab.figures.style import rendered
    from vaelab.report import build as report

    try:
        model.to(trainer.strategy.root_device)  # Lightning has moved it off the device
        figures = report.of_run(run, model, data, Files(run).report, drawing=report.drawing_in(config["figures"]))
        for logger in trainer.loggers:
            if isinstance(logger, PictureLogger):
                for name, figure in figures.items():
                    logger.log_picture(name, rendered(figure), trainer.global_step)
        print(f"report: {Files(run).report}")
    except Exception as error:
        again = f"vaelab report run={shlex.quote(str(run))}"
        log.warning("the report could not be made (%s); try again: %s", error, again, exc_info=True)


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Makes UserErrors of what Lightning finds wrong with the trainer's arguments when it begins to fit."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, MisconfigurationException) or "val_check_interval" in str(error):
            raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error
        if "more than 1 value per channel" in str(error):
            raise UserError("dataset.batch_size=1: network.norm=batch needs more images in a batch") from error
        raise


def prepare(config: dict[str, Any], run: Path, checkpoint: Path | None = None) -> tuple[Any, Any, pl.Trainer]:
    """Builds data, model and trainer of a run, ready to fit."""
    quieten()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data = build(config["dataset"])
    turns.set_up(data, config["dataset"])
    if augment := build(config["augment"] or {}):
        augment.check(data.shape, data.fields is None and not data.masked)
        data.augment = augment
    model = build_model(config, data)
    if checkpoint is None:
        model.start_from(data.mean_image, data.spread, len(data.train))
        model.condition.start_from(partial(labels_of, data.train), partial(labels_of, data.val or data.train))
        if model.prior is not None:
            model.prior.start_from(data.training_images)
    trainer = _build_trainer(config, run, model, data, checkpoint)
    if isinstance(trainer.strategy, FullySharded):
        trainer.strategy.check(trainer, model)
    check_batch_norm(config, model, trainer)
    hasten(config, model, data, trainer.strategy.root_device.type)
    if config["cuda_graph"]:
        capture(config, model, data, trainer)
    return data, model, trainer


def check_batch_norm(config: dict[str, Any], model: Model, trainer: pl.Trainer) -> None:
    """Raises UserError for a batch norm that should see the batch of several processes, which only GPUs have."""
    several = trainer.world_size > 1 and trainer.strategy.root_device.type != "cuda"
    if several and config["trainer"]["sync_batchnorm"] and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise UserError(
            "network.norm=batch: of several processes it sees the whole batch on GPUs only: use network.norm=group, or "
            "trainer.sync_batchnorm=false, with which each process has a norm of its own part"
        )


def build_model(config: dict[str, Any], data: ImageData) -> Any:
    """Builds a run's model for its data. What the data have answered joins the config."""
    answer(config, data.found)
    try:
        model = build(config["model"], shape=data.shape, num_classes=data.num_classes)
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise UserError("model: it does not fit the memory; make it smaller (model.latent_dim, network)") from error
    model.likelihood.check(data.pixel_range)
    if data.batch_size < model.least_batch:
        raise UserError(
            f"dataset.batch_size={data.batch_size}: {type(model).__name__} compares the images of a batch: "
            f"give at least {model.least_batch}"
        )
    if data.labelled is not None and not model.semi_supervised:
        raise UserError(
            f"dataset.labelled={data.labelled}: {type(model).__name__} does not learn from images with and without "
            "labels: use model=m2, or leave it out"
        )
    if data.fields is not None and model.likelihood.unit_range:
        name = model.likelihood.name
        raise UserError(f"likelihood={name} takes pixels in [0, 1], and this is a table: use likelihood=table")
    model.likelihood.missing = data.masked
    model.seed = config["seed"]
    model.optimizer = build(config["optimizer"])
    model.lr_factors = _lr_factors(config["lr_factor"], model)
    try:
        model.configure_optimizers()
    except ValueError as error:
        raise UserError(f"optimizer: {str(error)[0].lower()}{str(error)[1:]}") from error
    return model


def _lr_factors(given: dict[str, float], model: Model) -> dict[str, float]:
    """Returns the factors other than 1. Raises UserError for one of a part that the model has not, or learns not."""
    learning = [name for name, part in model.named_children() if any(True for _ in part.parameters())]
    factors = {name: factor for name, factor in given.items() if factor != 1}
    if unknown := [name for name in factors if name not in learning]:
        raise UserError(
            f"lr_factor.{unknown[0]}: {type(model).__name__} has no such part to learn; it has {listed(learning)}"
        )
    return factors


def _build_trainer(
    config: dict[str, Any], run: Path, model: Model, data: ImageData, checkpoint: Path | None
) -> pl.Trainer:
    """Builds Lightning's trainer with the config's callbacks and loggers, and the lab's own."""
    saves = config["trainer"]["enable_checkpointing"]
    callbacks = [build(config["checkpoint"])(Files(run).checkpoint("last") if saves else None)]
    callbacks += [build(node) for node in config["callbacks"].values() if node]
    for callback in callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    part, folder = "val" if len(data.val) else "train", Files(run).checkpoints
    if saves:
        callbacks += [
            RunCheckpoint(
                folder,
                "best",
                monitor=f"{part}/{model.monitor}",
                mode=model.best,
                save_on_train_epoch_end=part == "train",
                enable_version_counter=False,
            ),
            RunCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ]
    if config["trainer"]["enable_progress_bar"]:
        callbacks.append(ProgressLine())
    if place := studies.place():
        callbacks.append(Prune(place))
    resumed_step = runs.read_checkpoint(checkpoint)["global_step"] if checkpoint else None
    for name, path in Files(run).vectors.items():
        callbacks.append(EpochVector(name, MetricsFile(path, resumed_step)))
    loggers = [MetricsFile(Files(run).metrics, resumed_step)]
    loggers += [build(node, run=run) for node in (config["logger"] or {}).values()]
    try:
        trainer = build(config["trainer"], callbacks=callbacks, logger=loggers)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFile()
    quicken(trainer)
    return trainer


def hasten(config: dict[str, Any], model: Model, data: ImageData, device: str) -> None:
    """Applies the memory layout, precision of products and compilation that the config wants on such a device."""
    if device == "cuda":
        torch.set_float32_matmul_precision(config["matmul_precision"])
    if config["channels_last"] or (config["channels_last"] is None and device == "cpu"):
        model.to(memory_format=torch.channels_last)
    if config["compile"]:
        if device == "cuda" and importlib.util.find_spec("triton") is None:
            raise UserError("compile=true needs Triton on a GPU: pip install triton, or leave it out")
        model.compile_terms(data.batch_size)


def _take_best_weights(trainer: pl.Trainer, model: Model) -> dict[str, Any]:
    """Gives the model its best checkpoint's weights. Returns which those are: epoch, metric and value.

    Without a validated checkpoint the model stays as it ended. (`trainer.test(ckpt_path=...)` would
    give a model with averaged weights its raw ones back.)
    """
    if not (callback := _best_checkpoint(trainer)):
        return _best(trainer)
    saved = runs.read_checkpoint(Path(callback.best_model_path))
    model.load_state_dict(saved["state_dict"])
    return _best(trainer, saved)


def _whole(config: dict[str, Any], run: Path, trainer: pl.Trainer) -> Any:
    """Builds the model anew with its best checkpoint's weights, or the last one's: the trained one is in parts."""
    model = runs.load(run, "best" if _best_checkpoint(trainer) else "last", trust=True)
    model.seed = config["seed"]
    return model


def _best_checkpoint(trainer: pl.Trainer) -> RunCheckpoint | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoint) and callback.monitor and callback.best_model_path:
            return callback
    return None


def _best(trainer: pl.Trainer, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describes the best weights: epoch, metric and value. saved: their checkpoint, where it has been read."""
    if callback := _best_checkpoint(trainer):
        saved = saved or runs.read_checkpoint(Path(callback.best_model_path))
        return {"epoch": saved["epoch"] + 1, "by": callback.monitor, "value": float(callback.best_model_score or 0)}
    return {"epoch": trainer.current_epoch, "by": None, "value": None}
