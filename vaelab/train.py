"""`vaelab train`: from a config to a run folder, or to a sweep of them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaelab import command
from vaelab.errors import DivergenceError, UserError


def main(arguments: list[str]) -> int:
    """Runs `vaelab train` with these arguments. Returns the exit code."""
    try:
        arguments = _with_resumed([command.quoted(argument) for argument in arguments])
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    sweeps: dict[Path, bool] = {}
    code = command.run("train", lambda config: job(config, sweeps), arguments)
    return max([code, *(_close_sweep(sweep, report) for sweep, report in sweeps.items())])


def _with_resumed(arguments: list[str]) -> list[str]:
    """The arguments as Hydra gets them: `resume=RUN` becomes the run's own, then those given now."""
    given = {_key(a): a for a in arguments}
    _, _, resume = given.get("resume", "").partition("=")
    sweeping = {"-m", "--multirun"} & given.keys()
    if sweeping and "run.dir" in given:
        raise UserError("run.dir= is one run's folder: with -m, name the sweep's with sweep.dir=")
    if resume in ("", "null"):
        return arguments
    from vaelab import runs

    if "run.dir" in given:
        raise UserError("resume= continues a run in its own folder: leave out run.dir")
    if sweeping:
        raise UserError("resume= continues one run: leave out -m, and resume the sweep's runs one by one")
    run = runs.find(resume.strip("'\""))
    started = runs.read_config(run)["run"]
    saved = {_key(a): a for a in started["overrides"]}
    now = given | {
        "resume": f"resume={command.in_quotes(str(run))}",
        "run.dir": f"run.dir={command.in_quotes(str(run))}",
    }
    for key in [k for k, a in now.items() if a.startswith("~") and saved.get(k, "").startswith("+")]:
        del saved[key], now[key]  # added then, taken away now
    own = ["--config-dir", started["config_dir"]] if started["config_dir"] and "--config-dir" not in given else []
    return own + list((saved | now).values())


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def job(config: Any, sweeps: dict[Path, bool]) -> None:
    """Hydra's job: checks the config, makes the run folder and trains.

    In a sweep, which `sweeps` gets with whether a report is wanted, nothing is raised: a failed job leaves its error
    in run.log and its state in summary.json, and the next job goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    hydra: Any = HydraConfig.get()
    instance: Any = HydraConfig.instance()
    run = _shown(hydra.runtime.output_dir)
    in_sweep = hydra.mode.name == "MULTIRUN"
    overrides = [o for o in hydra.overrides.task if _key(o) not in ("resume", "run.dir", "sweep.dir")]
    if in_sweep:
        sweeps[_shown(hydra.sweep.dir)] = config.report is True
    used = (run / "config.yaml").exists()
    with open_dict(config):
        config.run.dir, config.run.overrides = str(run), overrides
        config.run.config_dir = next(
            (s.path for s in hydra.runtime.config_sources if s.provider == "command-line"), None
        )
        if in_sweep and "wandb" in config.logger and config.logger.wandb.group is None:
            config.logger.wandb.group = Path(hydra.sweep.dir).name
    try:
        if in_sweep:
            print(f"\n[{hydra.job.num}] {' '.join(overrides)}")
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        instance.cfg = None  # or Lightning would rerun this command line in every process
        _run(plain, run)
    except Exception as error:
        known = isinstance(error, UserError | DivergenceError | OmegaConfBaseException)
        refused = isinstance(error, UserError) and (used or not in_sweep)  # no word about it in a run that was there
        if not refused:
            _record(run, "diverged" if isinstance(error, DivergenceError) else "failed", error)
        if not in_sweep:
            raise
        print(f"vaelab: {error if known else traceback.format_exc()}", file=sys.stderr)
    finally:
        if run.is_dir() and {p.name for p in run.iterdir()} <= {"run.log"}:
            (run / "run.log").unlink(missing_ok=True)
            run.rmdir()  # nothing was trained
        instance.cfg = OmegaConf.create({"hydra": hydra})


def _shown(path: str) -> Path:
    """A path as the user would write it: relative to the current folder if it lies there."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def _record(run: Path, status: str, error: BaseException | None = None) -> None:
    """Writes how a run ended into its summary.json and run.log."""
    from vaelab import runs

    text = "".join(traceback.format_exception(error)) if error else status
    with (run / "run.log").open("a") as file:
        file.write(f"{text}\n")
    runs.write_summary(run, runs.read_summary(run) | {"status": status, "error": str(error) if error else None})


def _close_sweep(sweep: Path, report: bool) -> int:
    """Prints what became of every job, and reports if wanted. Returns 1 if one failed."""
    from vaelab import runs
    from vaelab.summary import sweep_table

    summaries = {path.parent.name: runs.read_summary(path.parent) for path in sweep.glob("*/summary.json")}
    print(f"\n{sweep_table(summaries)}")
    if report and len(summaries) > 1 and FIRST:
        _report(sweep)
    print(f"sweep: {sweep}")
    return int(any(summary.get("status") != "finished" for summary in summaries.values()))


def _report(sweep: Path) -> None:
    """report.html of a sweep; one that cannot be made does not undo the sweep."""
    from vaelab import report

    try:
        report.of_sweep(sweep, sweep / "report.html")
        print(f"report: {sweep / 'report.html'}")
    except Exception as error:
        print(f"warning: the report could not be made ({error}); try again: vaelab report run={sweep}", file=sys.stderr)


def worker(run: str) -> int:
    """A further process of a distributed run, which reads what to do from the run folder."""
    from vaelab import runs
    from vaelab.fit import fit

    path = Path(run)
    try:
        fit(runs.read_config(path), path)
    except (UserError, DivergenceError):  # the first process says it
        return 1
    return 0


LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


FIRST = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
"""Whether this is the first of the processes that torchrun or srun may have started."""


@contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Keeps any other process from training into the run folder; a lock that ends with this process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = (run / "run.log").open("a")
    except OSError as error:
        raise UserError(f"cannot write to {run} ({error.strerror}): set run.dir to another folder") from error
    with file:
        try:
            if FIRST:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{run} is being trained by another process: wait for it, or choose another run") from error
        yield


def _run(config: dict[str, Any], run: Path) -> None:
    """Checks the config and trains, alone in the run folder."""
    with _claimed(run):
        check_run(config, run)
        _train(config, run)


def _train(config: dict[str, Any], run: Path) -> None:
    """Trains in this process, and puts back what training changes about it."""
    from vaelab.fit import fit

    sys_argv, sys.argv = sys.argv, [sys.argv[0], "_worker", str(run)]  # what Lightning starts further processes with
    environment = {name: os.environ.get(name) for name in (*LAUNCH_VARIABLES, "PYTORCH_NVML_BASED_CUDA_CHECK")}
    try:
        fit(config, run)
    except SystemExit as stop:  # how Lightning ends after Ctrl-C (1) and SIGTERM (0), its last checkpoint written
        _record(run, "interrupted")
        print(f"interrupted; continue with: vaelab train {shlex.quote(f'resume={run}')}")
        if stop.code == 1:
            raise KeyboardInterrupt from None
        sys.exit(128 + signal.SIGTERM)
    finally:
        sys.argv = sys_argv
        _leave_process_group(environment)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # or a sweep's next job would log into this run


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


SWITCHES = {
    "test": (True, False),
    "report": (True, False),
    "compile": (True, False),
    "channels_last": (True, False, None),
}
"""What the config switches on and off, and the values it takes."""


def check_run(config: dict[str, Any], run: Path) -> None:
    """Raises UserError for what can be told to be wrong before data and model are built."""
    from vaelab import runs
    from vaelab.config import check

    if FIRST and config["resume"] is None and any(path.name != "run.log" for path in run.iterdir()):
        if not any(run.glob("checkpoints/*.ckpt")):
            raise UserError(f"run.dir={run} is not empty: choose another folder, or empty it")
        raise UserError(f"run.dir={run} holds a run already: continue it with resume={run}, or choose another folder")
    known = {path.stem for path in command.CONF.iterdir() if path.is_dir()} | {"seed", "resume", "run", *SWITCHES}
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
    if config["codebook"] and "codebook" not in config["model"]:
        raise UserError("codebook= is for models that have one: add model=vqvae, or leave it out")
    # a model's parts last: what is wrong with them is named where the user set it
    check({key: config[key] for key in sorted(config, key=lambda k: k in ("model", "callbacks"))})
    if 0 in (trainer["max_epochs"], trainer["max_steps"]):
        raise UserError("trainer.max_epochs=0 or max_steps=0: there is nothing to train")
    if trainer["accumulate_grad_batches"] < 1:
        raise UserError(f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}: must be 1 or more")
    if str(trainer["precision"]).endswith("-true") and trainer["precision"] != "32-true":
        raise UserError(f"trainer.precision={trainer['precision']}: use bf16-mixed, 16-mixed or 32-true")
    mixed, optimizer = str(trainer["precision"]).endswith("-mixed"), config["optimizer"] or {}
    if mixed and trainer["gradient_clip_val"] and optimizer.get("fused"):
        raise UserError("trainer.gradient_clip_val with 16 bits needs optimizer.fused=false: add it")
    if config["resume"] is not None:
        runs.checkpoint_path(run, "last")
        _check_resumed(config, runs.read_config(run), runs.read_summary(run))


MAY_MOVE = ("root", "download", "storage", "num_workers")
"""What of a data set may be another on resume: where it lies and how it is read."""


def _check_resumed(config: dict[str, Any], saved: dict[str, Any], summary: dict[str, Any]) -> None:
    """Refuses to resume a run that is done, or as another one.

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
