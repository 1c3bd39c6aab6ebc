"""Checks a run for what is wrong with it before its data and model are built."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.core.conf import options, target_names
from vaelab.core.errors import UserError
from vaelab.core.words import listed
from vaelab.runs import answers
from vaelab.runs.jobs import MAY_MOVE
from vaelab.runs.layout import Files
from vaelab.runs.records import read_summary
from vaelab.training.options import Figures, Run, Trainer, Training

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model
    from vaelab.nn.quantizers import Codebook

FIRST = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
"""Whether this is the first of the processes that torchrun or srun may have started."""
NARROW = 0.01
"""Width of the noise, as a part of the range of pixels, below which it is doubtful."""
PARTS = {"codebook": "vqvae", "posterior": "vae", "prior": "vae", "condition": "vae"}
"""Parts of a config that not every model has, each with a model that has it."""
MADE = {
    "network": "vaelab.nn.networks.Network",
    "likelihood": "vaelab.nn.likelihoods.Likelihood",
    "posterior": "vaelab.nn.posteriors.Head",
    "prior": "vaelab.nn.priors.Prior",
    "condition": "vaelab.nn.conditions.Unconditional",
    "codebook": "vaelab.nn.quantizers.Codebook",
    "optimizer": "torch.optim.Optimizer",
    "checkpoint": "pytorch_lightning.Callback",
    "lr_schedule": "pytorch_lightning.Callback",
    "averaging": "pytorch_lightning.Callback",
    "augment": "vaelab.nn.augment.Augment",
    "callbacks": "pytorch_lightning.Callback",
    "logger": "pytorch_lightning.loggers.Logger",
    "dataset": "vaelab.datasets.ImageData",
    "model": "vaelab.models.Model",
}
"""The class that each section of a config makes."""
LAZY = {"posterior", "prior", "condition", "codebook", "optimizer", "checkpoint"}
"""Sections that are built with what stands elsewhere."""
SEVERAL = {"callbacks", "logger"}
"""Sections of several nodes by name."""
IMPORTING = ("checkpoint", "lr_schedule", "averaging", "dataset", "logger", "model", "schedule", "callbacks")
"""Sections whose classes take a second to import, as they need Lightning: checked after the others. A model's parts
stand before it, and what the callbacks refer to before them: what is wrong is named where the user set it."""


def check_sections(config: dict[str, Any]) -> None:
    """Raises UserError if a section of a config is missing or no mapping, or a value of its own is not one of its kind.

    Whoever reads a composed config checks this first.
    """
    from vaelab.core.config import check_keys

    if unknown := sorted(config.keys() - Training.__annotations__.keys()):
        raise UserError(f"{unknown[0]}: no such key; vaelab train --cfg job prints all keys")
    for kind, section in {Training: "", Run: "run", Trainer: "trainer", Figures: "figures"}.items():
        values, prefix = (config[section], f"{section}.") if section else (config, "")
        if missing := sorted(kind.__required_keys__ - values.keys()):
            raise UserError(f"{prefix}{missing[0]}: it must be given: leave out what removes it")
        check_keys(kind, values, section)


def check_run(config: dict[str, Any], run: Path) -> None:
    """Raises UserError for mistakes in a config that show before data and model are built."""
    from vaelab import runs
    from vaelab.core.config import target_of

    if FIRST and config["resume"] is None:
        check_unused(run)
    check_options(config)
    compiler = shlex.split(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))[0]
    if config["compile"] and not shutil.which(compiler):
        raise UserError(f"compile=true needs a C++ compiler, and {compiler} is not there: install it, or set CXX")
    for name, node in (config["logger"] or {}).items():
        if node and (require := getattr(target_of(node, f"logger.{name}"), "require", None)):
            require()
    check_accelerator(config["trainer"]["accelerator"])
    if config["resume"] is not None:
        _check_resumed(config, runs.read_config(run), runs.read_summary(run))


def check_options(config: dict[str, Any]) -> None:
    """Raises UserError for values that are none, or that do not go together, on whatever machine they are trained."""
    from vaelab.core.config import check, target_of

    check_sections(config)
    for part, example in {"model": "vae", "dataset": "digits", "optimizer": "adam"}.items():
        if not config[part]:
            raise UserError(f"{part}=null: choose one, such as {part}={example}")
    _check_trainer(config)
    prior: Any = target_of(config["prior"], "prior") if config["prior"] else None
    afterwards = getattr(prior, "afterwards", False)
    if afterwards and "prior" in config["model"] and not prior.in_training:
        name = target_names().get(config["prior"]["_target_"], "")
        raise UserError(
            f"prior={name}: it is fitted afterwards, and this model has a prior that it is trained with: leave it out, "
            f"then vaelab prior run=RUN prior={name} if that is a prior for its latents"
        )
    for part, example in PARTS.items():
        if config[part] and part not in config["model"] and not (part == "prior" and afterwards):
            target = config["model"]["_target_"]
            model = target_names().get(target, target)
            raise UserError(f"{part}=: model={model} takes none: leave it out, or choose another, as model={example}")
    for section in sorted(
        config.keys() - {"trainer", "figures"}, key=lambda key: (key in IMPORTING and IMPORTING.index(key) + 1, key)
    ):
        if section == "model":
            _check_needed(config)
        check(config[section], section, _wanted(section))
    _check_parts_of_trainer(config["trainer"])
    if config["figures"]["own"]:
        from vaelab.report.build import check_figures

        check_figures(config["figures"])


def _check_needed(config: dict[str, Any]) -> None:
    """Raises UserError for a part that the model cannot do without, and that is none."""
    from vaelab.core.config import target_of

    parameters = inspect.signature(target_of(config["model"], "model")).parameters
    for part in PARTS:
        needed = part in parameters and parameters[part].default is inspect.Parameter.empty
        if needed and part in config["model"] and not config[part]:
            choices = [name for name in options(part) if name != "none"]
            raise UserError(f"{part}=none: this model needs one: {part}={listed(choices, 'or')}")


def _wanted(section: str) -> Any:
    """What a section must make, as an annotation; its class is imported."""
    from vaelab.core.config import target_of

    if section not in MADE:
        return Any
    made = target_of({"_target_": MADE[section]}, section)
    made = Callable[..., made] if section in LAZY else made
    return dict[str, made | None] if section in SEVERAL else made


def _check_parts_of_trainer(trainer: dict[str, Any]) -> None:
    """Raises UserError for a value of the trainer that its `_target_` makes of another class than is wanted there."""
    from typing import get_type_hints

    import pytorch_lightning as pl

    from vaelab.core.config import check

    hints = get_type_hints(pl.Trainer.__init__)
    for name, value in trainer.items():
        if name != "_target_":
            check(value, f"trainer.{name}", hints.get(name, Any))


def _check_trainer(config: dict[str, Any]) -> None:
    """Raises UserError for options of the trainer that do not go together, or with others."""
    trainer, optimizer = config["trainer"], config["optimizer"]
    if trainer["limit_train_batches"] == 0:
        raise UserError("trainer.limit_train_batches=0: there is nothing to train")
    if trainer["max_epochs"] is None and trainer["max_steps"] == -1 and trainer["max_time"] is None:
        raise UserError(
            "trainer.max_epochs=null: Lightning would take 1,000; give a number, or -1 for a run without an end"
        )
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"] or 0, trainer[f"max_{unit}"] or -1
        if least > most > 0:
            raise UserError(f"trainer.min_{unit}={least}: must not be more than trainer.max_{unit}={most}")
    if isinstance(rate := optimizer.get("lr"), int | float) and not rate > 0:
        raise UserError(f"optimizer.lr={rate}: {'nothing would be learned: ' * (rate == 0)}it must be greater than 0")
    if str(trainer["precision"]).endswith("-mixed") and trainer["gradient_clip_val"] and optimizer.get("fused"):
        raise UserError("trainer.gradient_clip_val with 16 bits needs optimizer.fused=false: add it")


def check_accelerator(name: str) -> None:
    """Raises UserError if this machine has no such accelerator."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not {"gpu": any(there.values())}.get(name, there.get(name, True)):
        raise UserError(
            f"trainer.accelerator={name}: torch finds none here: use accelerator=auto or cpu (vaelab doctor says more)"
        )


def doubts(config: dict[str, Any], model: Model, data: ImageData) -> list[str]:
    """Says in a line each what is allowed but hardly meant: trained it is all the same."""
    from vaelab.models import BetaVAE

    found, (low, high), scale = [], data.pixel_range, model.likelihood.fixed_scale
    codes, at_once = model.layout.codes, data.batch_size * min(model.layout.sizes)
    if data.batch_size > len(data.train):
        found.append(f"dataset.batch_size={data.batch_size}: a batch is all {len(data.train):,} training images")
    if scale is not None and scale < NARROW * (high - low):
        found.append(
            f"dataset.pixel_range={[low, high]} with noise of width {scale:g} (likelihood): the KL hardly counts "
            "beside the reconstruction: widen the noise in proportion, or use likelihood=gaussian_learned"
        )
    head: Any = getattr(model, "posterior", None)
    prior = model.prior
    if prior is not None and prior.of_posteriors and getattr(head, "passes", 1) > 2:
        found.append(
            f"prior={target_names().get(config['prior']['_target_'], 'its own')}: every step runs the posterior's flow "
            f"backwards for each of its pseudo-inputs, in {head.passes} passes: fewer prior.components, or "
            "posterior.passes=2"
        )
    if isinstance(model, BetaVAE) and config["model"]["beta"] == 1:
        found.append("model.beta=1: the objective is that of model=vae")
    found += [
        f"column {name} has one value in all training rows, and its density there only adds to the ELBO: "
        f"dataset.columns={{{name}: none}} leaves it out"
        for name in _constant(data)
    ]
    restarts = (config["codebook"] or {}).get("restart_after", "none of its own")
    if codes is not None and restarts is None and codes > at_once:
        found.append(
            f"model.num_embeddings={codes}: the codes start on the {at_once} vectors of a batch, many on "
            "the same, and codebook.restart_after=null moves none of them: fewer codes, or restarts"
        )
    return found


def _constant(data: ImageData) -> list[str]:
    """Names the columns of a table that have a density, and one value in all training rows."""
    import torch

    from vaelab.nn.likelihoods.columns import spans

    if data.fields is None:
        return []
    rows = data.train.batch(torch.arange(len(data.train))).images[:, 0, 0]
    found = []
    for column, span in zip(data.fields, spans(data.fields), strict=True):
        values = rows[:, span]
        known = values[~values.isnan()]
        if column.kind == "gaussian" and len(known) and known.min() == known.max():
            found.append(column.name)
    return found


def check_codes(model: Model, data: ImageData) -> None:
    """Raises UserError for more codes than there are vectors in the training images that could choose them."""
    vectors: dict[Codebook, int] = {}
    for book, size in zip(model.books, model.layout.sizes, strict=False):
        vectors[book] = vectors.get(book, 0) + size * len(data.train)
    for book, there in vectors.items():
        if book.learned and book.num_embeddings > there:
            raise UserError(
                f"model.num_embeddings={book.num_embeddings}: {len(data.train):,} training images have {there:,} "
                f"vectors to choose codes for: give at most {there:,} codes, or train on more images"
            )


def check_unused(run: Path) -> None:
    """Raises UserError if a run folder is not empty, unless it is of a run that ended before it saved anything."""
    files = Files(run)
    if files.saved or (files.config.is_file() and read_summary(run).get("status") == "finished"):
        raise UserError(f"run.dir={run} holds a run already: continue it with resume={run}, or choose another folder")
    if not files.config.is_file() and any(path not in files.logs for path in run.iterdir()):
        raise UserError(f"run.dir={run} is not empty: choose another folder, or empty it")


def _check_resumed(config: dict[str, Any], saved: dict[str, Any], summary: dict[str, Any]) -> None:
    """Refuses to resume a run that is done, or with another model or other data.

    A checkpoint is of this model, on these images in this order. What the data had answered then holds still.
    """
    answers.keep(config, saved)
    epochs, steps = config["trainer"]["max_epochs"] or -1, config["trainer"]["max_steps"]
    if summary.get("status") == "finished" and (summary["epochs"] >= epochs > 0 or summary["steps"] >= steps > 0):
        raise UserError(
            f"resume={config['resume']}: this run is finished, after {summary['epochs']} epochs and "
            f"{summary['steps']} steps: raise trainer.max_epochs or trainer.max_steps to train it longer"
        )
    for section in ("seed", "model", "dataset"):
        new, old = config[section], saved[section]
        if section == "dataset":
            new, old = ({k: v for k, v in part.items() if k not in MAY_MOVE} for part in (new, old))
        old = _filled(old, new)
        if new != old:
            keys = [f"{section}.{k}" for k in new if new[k] != old.get(k)] if isinstance(new, dict) else [section]
            raise UserError(f"resume= continues the run as it is, but {keys[0]} has changed: start a new run for that")


def _filled(old: Any, new: Any) -> Any:
    """Returns an earlier config with the values that options had before there were keys for them: the defaults."""
    from vaelab.core.config import target_of

    if not isinstance(old, dict) or not isinstance(new, dict):
        return old
    filled = {key: _filled(value, new.get(key)) for key, value in old.items()}
    if "_target_" in new and new["_target_"] == old.get("_target_"):
        parameters = inspect.signature(target_of(new, "")).parameters
        filled |= {key: parameters[key].default for key in new.keys() - old.keys() if key in parameters}
    return filled
