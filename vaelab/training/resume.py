"""Where training goes on from: which checkpoint, and whether its states are such as a run writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vaelab import runs
from vaelab.core.errors import DivergenceError, UserError
from vaelab.core.files import damaged
from vaelab.core.terminal import cut
from vaelab.runs import Files
from vaelab.training.callbacks import KeepLast
from vaelab.training.fsdp import FullySharded
from vaelab.training.loop import counts_of, ended_inside

if TYPE_CHECKING:
    from vaelab.models import Model

log = logging.getLogger("vaelab")


def newest(run: Path) -> Path | None:
    """Finds the checkpoint that training goes on from: the last one, else the best; None if nothing was saved.

    Raises UserError if what there is is damaged.
    """
    if not Files(run).saved:
        log.info("nothing was saved yet: training begins anew")
        return None
    try:
        path = runs.checkpoint_path(run, "last")
        runs.read_checkpoint(path)
    except UserError as error:
        path = runs.checkpoint_path(run, "best")
        runs.read_checkpoint(path)
        log.warning("%s\ntraining goes on from %s", error, path)
    return path


@contextmanager
def taking_up(checkpoint: Path | None, model: Model, trainer: pl.Trainer) -> Iterator[None]:
    """Makes a UserError of what goes wrong with the states of a checkpoint until the first step with them is done.

    Each callback and optimiser reads its own, and says in its own way that it cannot be.
    """
    try:
        if checkpoint is not None:
            _look_at(runs.read_checkpoint(checkpoint), model, trainer)
        yield
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        done = max(c.batches for c in trainer.callbacks if isinstance(c, KeepLast)) > trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        fault = "memory" in str(error) or isinstance(error, MisconfigurationException | DivergenceError)
        if checkpoint is None or done or fault:
            raise
        best = Files(checkpoint.parents[1]).checkpoint("best")
        other = best.is_file() and best != checkpoint
        remedy = f"remove it, and training goes on from {best.name}" if other else "train again"
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise damaged(checkpoint, f"its states are not of this run ({cut(why, 120)})", remedy) from error


def _look_at(checkpoint: dict[str, Any], model: Model, trainer: pl.Trainer) -> None:
    """Raises ValueError for states that nobody would refuse; says if the run had ended inside an epoch.

    A fused optimiser reads as many numbers of its states as a weight has, be they there or not.
    """
    if not counts_of(trainer, checkpoint):
        raise ValueError("loops")
    if ended_inside(checkpoint):
        log.warning(
            "the run had ended inside epoch %d, after step %d: its steps go on as if it had not, but that epoch has a "
            "row of metrics for each of its parts, and its first validation counts like any other",
            *(checkpoint["epoch"] + 1, checkpoint["global_step"]),
        )
    optimizer, saved = model.configure_optimizers(), checkpoint["optimizer_states"][0]
    sizes, before = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if sum(sizes) == sum(before) and sizes != before:
        raise UserError(
            "lr_factor: a run goes on with the parts that it began with factors for: give these others than 1, and no "
            "further ones"
        )
    if "fused" not in optimizer.defaults or isinstance(trainer.strategy, FullySharded):
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in zip([i for group in saved["param_groups"] for i in group["params"]], weights, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            fits = not isinstance(value, torch.Tensor) or value.shape == (() if name == "step" else weight.shape)
            if not fits:
                raise ValueError(f"{name} of {list(value.shape)} for a weight of {list(weight.shape)}")
