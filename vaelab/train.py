"""`vaelab train`: from a config to a run folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from vaelab import command
from vaelab.errors import DivergenceError, UserError

log = logging.getLogger("vaelab")


def main(arguments: list[str]) -> int:
    """Runs `vaelab train` with these arguments. Returns the exit code."""
    try:
        arguments, sweep = _prepare(arguments)
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    code = command.run("train", job, arguments)
    return code or (_close_sweep(sweep) if sweep else 0)


def _prepare(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments as Hydra gets them, and the sweep's folder if this is a sweep.

    `resume=RUN` becomes the run's own arguments, then those given now; the run folder stays.
    """
    values = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    sweeping = any(a in ("-m", "--multirun") for a in arguments)
    if "resume" in values and values["resume"] != "null":
        from vaelab import runs

        if sweeping:
            raise UserError("resume= continues one run: leave out -m, and resume the sweep's runs one by one")
        run = runs.find(values["resume"])
        saved = {_key(a): a for a in runs.read_config(run)["run"]["overrides"]}
        now = {_key(a): a for a in arguments} | {"resume": f"resume={run}", "run.dir": f"run.dir={run}"}
        for key in [k for k, a in now.items() if a.startswith("~") and saved.get(k, "").startswith("+")]:
            del saved[key], now[key]  # added then, taken away now
        return list((saved | now).values()), None
    if not sweeping:
        return arguments, None
    if "sweep.dir" not in values:
        values["sweep.dir"] = f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}-sweep"
        arguments = [*arguments, f"sweep.dir={values['sweep.dir']}"]
    return arguments, Path(values["sweep.dir"])


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def job(config: Any) -> None:
    """Hydra's job: checks the config, makes the run folder and trains.

    In a sweep nothing is raised: a failed job leaves its traceback in run.log and its state in
    summary.json, and the next job goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    hydra: Any = HydraConfig.get()
    instance: Any = HydraConfig.instance()
    run = Path(os.path.relpath(hydra.runtime.output_dir))
    with open_dict(config):
        config.run.dir = str(run)
        config.run.overrides = [o for o in hydra.overrides.task if not o.startswith(("resume=", "sweep.dir="))]
        if hydra.mode.name == "MULTIRUN" and "wandb" in config.logger and config.logger.wandb.group is None:
            config.logger.wandb.group = Path(hydra.sweep.dir).name
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    instance.cfg = None  # or Lightning would rerun this command line in every process
    try:
        if hydra.mode.name != "MULTIRUN":
            _run(plain, run)
            return
        print(f"\n[{hydra.job.num}] {' '.join(o for o in hydra.overrides.task if not o.startswith('sweep.dir='))}")
        try:
            _run(plain, run)
        except (UserError, DivergenceError) as error:
            _record_failure(run, str(error))
        except Exception:
            _record_failure(run, traceback.format_exc())
    finally:
        if run.is_dir() and not any(run.iterdir()):
            run.rmdir()  # Hydra made it before anything was checked
        instance.cfg = OmegaConf.create({"hydra": hydra})


def _record_failure(run: Path, text: str) -> None:
    from vaelab import runs

    print(f"vaelab: {text}", file=sys.stderr)
    with (run / "run.log").open("a") as file:
        file.write(f"{text}\n")
    runs.write_summary(run, runs.read_summary(run) | {"status": "failed", "error": text.strip().splitlines()[-1]})


def _close_sweep(sweep: Path) -> int:
    """Prints what became of every job. Returns 1 if one failed."""
    from vaelab import runs
    from vaelab.summary import sweep_table

    summaries = {path.parent.name: runs.read_summary(path.parent) for path in sweep.glob("*/summary.json")}
    print(f"\n{sweep_table(summaries)}\nsweep: {sweep}")
    return int(any(summary.get("status") != "finished" for summary in summaries.values()))


def worker(run: str) -> int:
    """A further process of a distributed run, which reads what to do from the run folder."""
    from vaelab import runs

    path = Path(run)
    fit(runs.read_config(path), path)
    return 0


def _run(config: dict[str, Any], run: Path) -> None:
    from vaelab import runs
    from vaelab.config import check

    if config["resume"] is None and (run / "config.yaml").exists():
        raise UserError(f"run.dir={run} holds a run already: continue it with resume={run}, or choose another folder")
    # a model's parts last: what is wrong with them is named where the user set it
    check({key: config[key] for key in sorted(config, key=lambda k: k in ("model", "callbacks"))})
    if not isinstance(config["seed"], int) or isinstance(config["seed"], bool):
        raise UserError(f"seed={config['seed']!r}: must be an integer")
    if 0 in (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]):
        raise UserError("trainer.max_epochs=0 or max_steps=0: there is nothing to train")
    if config["resume"] is not None:
        runs.checkpoint_path(run, "last")
        _check_resumed(config, runs.read_config(run))
    sys_argv, sys.argv = sys.argv, [sys.argv[0], "_worker", str(run)]  # what Lightning starts further processes with
    environment = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    try:
        fit(config, run)
    except SystemExit as stop:  # how Lightning ends after Ctrl-C (1) and SIGTERM (0), its last checkpoint written
        _set_status(run, "interrupted")
        if stop.code == 1:
            raise KeyboardInterrupt from None
        sys.exit(128 + signal.SIGTERM)
    except DivergenceError as error:
        _set_status(run, "diverged", str(error))
        raise
    except Exception as error:
        if (run / "config.yaml").exists():
            _set_status(run, "failed", str(error))
        raise
    finally:
        sys.argv = sys_argv
        _leave_process_group(environment)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # or a sweep's next job would log into this run


MAY_MOVE = ("root", "download", "storage", "num_workers")
"""What of a data set may be another on resume: where it lies and how it is read."""


def _check_resumed(config: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuses to resume a run as another one: its checkpoint is of this model, on these images in this order."""
    for section in ("seed", "model", "dataset"):
        new, old = config[section], saved[section]
        if section == "dataset":
            new, old = ({k: v for k, v in part.items() if k not in MAY_MOVE} for part in (new, old))
        if new != old:
            keys = [f"{section}.{k}" for k in new if new[k] != old.get(k)] if isinstance(new, dict) else [section]
            raise UserError(f"resume= continues the run as it is, but {keys[0]} has changed: start a new run for that")


LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


def _leave_process_group(environment: dict[str, str | None]) -> None:
    """Undoes what a distributed run leaves behind, so that a sweep's next job starts afresh."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _set_status(run: Path, status: str, error: str | None = None) -> None:
    from vaelab import runs

    runs.write_summary(run, runs.read_summary(run) | {"status": status, "error": error})
    log.info("%s%s", status, f": {error}" if error else f"; continue with: vaelab train resume={run}")


def fit(config: dict[str, Any], run: Path) -> None:
    """Builds data, model and trainer from a resolved config, trains, tests, and writes the run folder."""
    started = time.monotonic()
    from vaelab.quiet import quieten

    quieten()
    import pytorch_lightning as pl

    from vaelab import runs, summary
    from vaelab.config import build

    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data = build(config["dataset"])
    data.setup()
    model = build(config["model"], shape=data.shape, num_classes=data.num_classes)
    model.likelihood.check(data.pixel_range)
    model.seed = config["seed"]
    model.optimizer = build(config["optimizer"])
    _try_optimizer(model)
    resumed = config["resume"] is not None
    if not resumed:
        model.start_from(data.mean_image, data.spread)
    checkpoint = runs.checkpoint_path(run, "last") if resumed else None
    resumed_step = runs.read_checkpoint(checkpoint)["global_step"] if checkpoint else None
    trainer = build_trainer(config, run, model, data, resumed_step)
    log.setLevel(logging.INFO if trainer.is_global_zero else logging.ERROR)
    if trainer.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        runs.write_config(run, config)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        _log_to(run / "run.log")
        log.info(summary.opening(config, model, data, trainer))
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    best = trainer.checkpoint_callbacks[0].best_model_path or str(run / "checkpoints" / "last.ckpt")
    if config["test"] and trainer.callback_metrics and Path(best).exists():
        trained = dict(trainer.callback_metrics)
        trainer.test(model, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
        trainer.callback_metrics.update(trained)
    if trainer.is_global_zero:
        result = summary.collect(config, model, data, trainer, best, time.monotonic() - started)
        runs.write_summary(run, result)
        print(summary.table(result["metrics"]))
        print(f"run: {run}")


def _try_optimizer(model: Any) -> None:
    try:
        model.configure_optimizers()
    except ValueError as error:
        raise UserError(f"optimizer: {str(error)[0].lower()}{str(error)[1:]}") from error


def build_trainer(config: dict[str, Any], run: Path, model: Any, data: Any, resumed_step: int | None) -> Any:
    """Lightning's trainer with the config's callbacks and loggers."""
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from vaelab.callbacks import LastOnException, ProgressLine
    from vaelab.config import build
    from vaelab.loggers import MetricsFile

    callbacks = [build(node) for node in config["callbacks"].values() if node]
    for callback in callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    part, checkpoints = "val" if len(data.val) else "train", run / "checkpoints"
    if config["trainer"]["enable_checkpointing"]:
        callbacks += [
            ModelCheckpoint(
                checkpoints,
                "best",
                monitor=f"{part}/{model.monitor}",
                mode=model.best,
                save_on_train_epoch_end=part == "train",
                enable_version_counter=False,
            ),
            ModelCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False),
            LastOnException(checkpoints / "last.ckpt"),
        ]
    if config["trainer"]["enable_progress_bar"]:
        callbacks.append(ProgressLine())
    loggers = [MetricsFile(run / "metrics.csv", resumed_step)]
    loggers += [build(node, run=run) for node in (config["logger"] or {}).values()]
    try:
        return build(config["trainer"], callbacks=callbacks, logger=loggers)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error


def _log_to(path: Path) -> None:
    """Sends the lab's messages to the terminal and to a file, until the next run."""
    from vaelab.quiet import Terminal

    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    log.addHandler(Terminal())
    log.propagate = False
