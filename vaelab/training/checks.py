"""Checks a run for what is wrong with it before its data and model are built."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from vaelab.core.conf import CONF, target_names
from vaelab.core.errors import UserError
from vaelab.runs.jobs import MAY_MOVE
from vaelab.runs.layout import Files
from vaelab.runs.records import read_summary

FIRST = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
"""Whether this is the first of the processes that torchrun or srun may have started."""
PARTS = {"codebook": "vqvae", "posterior": "vae", "prior": "vae", "condition": "vae"}
"""Parts of a config that not every model has, each with a model that has it."""
SWITCHES = {
    "test": (True, False),
    "report": (True, False),
    "compile": (True, False),
    "channels_last": (True, False, None),
}
"""Switches of the config, and the values they take."""


def check_run(config: dict[str, Any], run: Path) -> None:
    """Raises UserError for mistakes in a config that show before data and model are built."""
    from vaelab import runs
    from vaelab.core.config import check, target_of

    if FIRST and config["resume"] is None:
        check_unused(run)
    known = {path.stem for path in CONF.iterdir() if path.is_dir()} | {"seed", "resume", "run", "checkpoint", *SWITCHES}
    if unknown := sorted(config.keys() - known - {"sweep", "trainer", "callbacks"}):
        raise UserError(f"{unknown[0]}: no such key; vaelab train --cfg job prints all keys")
    seed, trainer = config["seed"], config["trainer"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed!r}: must be an integer from 0 to 4294967295")
    for key, values in SWITCHES.items():
        if not any(config[key] is value for value in values):
            raise UserError(f"{key}={config[key]}: must be {' or '.join(json.dumps(value) for value in values)}")
    compiler = shlex.split(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))[0]
    if config["compile"] and not shutil.which(compiler):
        raise UserError(f"compile=true needs a C++ compiler, and {compiler} is not there: install it, or set CXX")
    if not config["model"]:
        raise UserError("model=null: choose a model, such as model=vae")
    if config["prior"] and getattr(target_of(config["prior"], "prior"), "afterwards", False):
        name = target_names().get(config["prior"]["_target_"], "")
        raise UserError(
            f"prior={name}: it is fitted afterwards: leave it out and train, then vaelab prior run=RUN prior={name}"
        )
    for part, example in PARTS.items():
        if config[part] and part not in config["model"]:
            raise UserError(f"{part}= is for models that have one: add model={example}, or leave it out")
    # a model's parts last: what is wrong with them is named where the user set it
    check({key: config[key] for key in sorted(config, key=lambda k: k in ("model", "callbacks"))})
    if 0 in (trainer["max_epochs"], trainer["max_steps"]):
        raise UserError("trainer.max_epochs=0 or max_steps=0: there is nothing to train")
    if trainer["limit_train_batches"] == 0:
        raise UserError("trainer.limit_train_batches=0: there is nothing to train")
    if trainer["accumulate_grad_batches"] < 1:
        raise UserError(f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}: must be 1 or more")
    if str(trainer["precision"]).endswith("-true") and trainer["precision"] != "32-true":
        raise UserError(f"trainer.precision={trainer['precision']}: use bf16-mixed, 16-mixed or 32-true")
    mixed, optimizer = str(trainer["precision"]).endswith("-mixed"), config["optimizer"] or {}
    if mixed and trainer["gradient_clip_val"] and optimizer.get("fused"):
        raise UserError("trainer.gradient_clip_val with 16 bits needs optimizer.fused=false: add it")
    if config["resume"] is not None:
        _check_resumed(config, runs.read_config(run), runs.read_summary(run))


def check_unused(run: Path) -> None:
    """Raises UserError if a run folder is not empty, unless it is of a run that ended before it saved anything."""
    files = Files(run)
    if files.saved or (files.config.is_file() and read_summary(run).get("status") == "finished"):
        raise UserError(f"run.dir={run} holds a run already: continue it with resume={run}, or choose another folder")
    if not files.config.is_file() and any(path not in (*files.logs, files.summary) for path in run.iterdir()):
        raise UserError(f"run.dir={run} is not empty: choose another folder, or empty it")


def _check_resumed(config: dict[str, Any], saved: dict[str, Any], summary: dict[str, Any]) -> None:
    """Refuses to resume a run that is done, or with another model or other data.

    A checkpoint is of this model, on these images in this order.
    """
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
        if new != old:
            keys = [f"{section}.{k}" for k in new if new[k] != old.get(k)] if isinstance(new, dict) else [section]
            raise UserError(f"resume= continues the run as it is, but {keys[0]} has changed: start a new run for that")
