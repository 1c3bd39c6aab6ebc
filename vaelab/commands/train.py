"""`vaelab train` trains a config into a run folder, or a sweep of them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from vaelab.commands import command
from vaelab.core.errors import UserError


def main(arguments: list[str]) -> int:
    """Runs `vaelab train` with these arguments. Returns the exit code."""
    try:
        arguments = _with_resumed([command.of_search(command.quoted(argument)) for argument in arguments])
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    from vaelab.sweeps import sweep as sweeps

    try:
        code = command.run("train", job, arguments)
    except sweeps.Refused as refusal:
        print(f"vaelab: {refusal}", file=sys.stderr)
        code = 2
    except Exception:
        if not sweeps.begun:
            raise
        traceback.print_exc()  # an error of a launcher: the state of its jobs is printed all the same
        code = 1
    try:
        return max([code, *(sweeps.close(sweep, code == 2) for sweep in sweeps.release())])
    except BrokenPipeError:  # the reader has seen enough
        return command.end_of_pipe()


def _with_resumed(arguments: list[str]) -> list[str]:
    """Returns the arguments for Hydra: `resume=RUN` becomes the run's own, then those given now."""
    given = {command.key_of(a): a for a in arguments}
    _, _, resume = given.get("resume", "").partition("=")
    command.check_folders(arguments)
    if resume in ("", "null"):
        return arguments
    from vaelab import runs

    if "run.dir" in given:
        raise UserError("resume= continues a run in its own folder: leave out run.dir")
    if command.SWEEPING & given.keys():
        raise UserError("resume= continues one run: leave out -m, and resume the sweep's runs one by one")
    run = runs.find(resume.strip("'\""))
    started = runs.read_config(run)["run"]
    saved = {command.key_of(a): a for a in started["overrides"]}
    now = given | {
        "resume": f"resume={command.in_quotes(str(run))}",
        "run.dir": f"run.dir={command.in_quotes(str(run))}",
    }
    former = PROCESSES if "accelerator" in given else ("trainer.strategy.",) if "trainer.strategy" in given else ()
    saved = {key: argument for key, argument in saved.items() if not key.startswith(former)}
    for key in [k for k, a in now.items() if a.startswith("~") and saved.get(k, "").startswith("+")]:
        del saved[key], now[key]  # a key that was added then and is removed now
    flags = ["--config-dir", started["config_dir"]] if started["config_dir"] and "--config-dir" not in given else []
    return flags + list((saved | now).values())


PROCESSES = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Keys that `accelerator=` sets."""


def job(config: Any) -> str:
    """Hydra's job: trains, and returns the run folder.

    In a sweep nothing is raised: a failed job leaves its error in run.log and its state in
    summary.json, and the next job goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    from vaelab import runs
    from vaelab.core.config import resolved
    from vaelab.sweeps import sweep as sweeps
    from vaelab.training import launch

    hydra: Any = HydraConfig.get()
    instance: Any = HydraConfig.instance()
    run = runs.shown(hydra.runtime.output_dir)
    in_sweep = hydra.mode.name == "MULTIRUN"
    overrides = [o for o in hydra.overrides.task if command.key_of(o) not in ("resume", "run.dir", "sweep.dir")]
    with open_dict(config):
        config.run.format, config.run.dir, config.run.overrides = runs.FORMAT, str(run), overrides
        config.run.config_dir = next(
            (s.path for s in hydra.runtime.config_sources if s.provider == "command-line"), None
        )
        if in_sweep and "wandb" in config.logger and config.logger.wandb.group is None:
            config.logger.wandb.group = Path(hydra.sweep.dir).name
    title = f"[{hydra.job.num}] {' '.join(overrides)}" if in_sweep else ""
    try:
        plain = resolved(config)
        instance.cfg = None  # otherwise Lightning would rerun this command line in every process
        if in_sweep:
            run = sweeps.do(plain, run, title, hydra.launcher)
        else:
            launch.attempt(plain, run)
    except OmegaConfBaseException as error:
        if not in_sweep:
            raise
        launch.record(run, "failed", error, None)
        print(f"\n{title}\nvaelab: {error}", file=sys.stderr)
    finally:
        launch.discard_unused(run)
        instance.cfg = OmegaConf.create({"hydra": hydra})
    return str(run)
