"""`vaelab train` trains a config into a run folder, or a sweep of them."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vaelab.commands import answers, command
from vaelab.core import own
from vaelab.core.errors import UserError


def main(arguments: list[str]) -> int:
    """Runs `vaelab train` with these arguments. Returns the exit code."""
    try:
        _check_launcher(arguments)
        arguments = for_hydra(arguments)
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
        return max([code, *(sweeps.close(sweep, code) for sweep in sweeps.release())])
    except BrokenPipeError:  # the reader has seen enough
        return command.end_of_pipe()


def _check_launcher(arguments: list[str]) -> None:
    """Raises UserError for a launcher or a folder of a sweep without one, which Hydra would not look at.

    A flag may only print.
    """
    of_sweeps = ("hydra/launcher", "hydra.launcher", "sweep.dir")
    launcher = next((a for a in arguments if command.key_of(a).startswith(of_sweeps)), None)
    if launcher and not command.sweeps(arguments) and not any(argument.startswith("-") for argument in arguments):
        raise UserError(f"{launcher}: it is for the jobs of a sweep: add -m, or leave it out")


def swept(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    """Trains a sweep as `vaelab train -m` does. Returns its folder, and the errors of jobs that are not done."""
    from vaelab import runs
    from vaelab.runs import jobs
    from vaelab.sweeps import sweep as sweeps

    code, folder = 0, None
    try:
        command.invoke("train", job, ["-m", *for_hydra(arguments)])
    except (sweeps.Refused, UserError) as refusal:
        code = 2
        raise UserError(str(refusal)) from refusal
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        for sweep in sweeps.release():
            sweeps.close(sweep, code)
            folder = sweep.folder
    assert folder is not None
    undone = [path for path in runs.jobs_of(folder) if jobs.state_of(path) != "done"]
    return folder, {path.name: jobs.summary_of(path).get("error") or "it is not finished" for path in undone}


def for_hydra(arguments: list[str]) -> list[str]:
    """Writes the arguments in Hydra's grammar; `resume=RUN` becomes the run's own. Raises UserError for a wrong one."""
    sweeping = command.sweeps(arguments)
    return _with_resumed([command.of_search(command.quoted(argument, sweeping)) for argument in arguments])


def _with_resumed(arguments: list[str]) -> list[str]:
    """Returns the arguments for Hydra: `resume=RUN` becomes the run's own, then those given now."""
    given = {command.key_of(a): a for a in arguments}
    trust = _trusted(given)
    _, _, resume = given.get("resume", "").partition("=")
    command.check_folders(arguments)
    if resume in ("", "null"):
        if trust is not None:
            raise UserError("trust= is for resume=: what you choose yourself needs none: leave it out")
        return arguments
    from vaelab import runs
    from vaelab.core.renames import former_defaults
    from vaelab.runs import Files, gate

    if "run.dir" in given:
        raise UserError("resume= continues a run in its own folder: leave out run.dir")
    if command.SWEEPING & given.keys():
        raise UserError("resume= continues one run: leave out -m, and resume the sweep's runs one by one")
    run = runs.find(resume.strip("'\""))
    before, config = runs.read_config(run), Files(run).config
    started, then = before["run"], {key: f"{key}={value}" for key, value in former_defaults(before).items()}
    saved, now = _joined(then | {command.key_of(a): a for a in started.get("overrides", [])}, given)
    gate.check_overrides(list(saved.values()), config, bool(trust))
    flags = []
    theirs, here = started.get("config_dir"), own.options_folder()
    if theirs and theirs != str(here) and not {"--config-dir", "-cd"} & given.keys():
        gate.check_config_dir(theirs, config, bool(trust))
        flags = ["--config-dir", theirs]
    folder = command.in_quotes(str(run))
    return flags + list((saved | now | {"resume": f"resume={folder}", "run.dir": f"run.dir={folder}"}).values())


def _trusted(given: dict[str, str]) -> bool | None:
    """Takes `trust=` out of the arguments: it is said each time, and kept in no run. None if it is not given."""
    argument = given.pop("trust", None)
    if argument is None:
        return None
    if argument not in ("trust=true", "trust=false"):
        raise UserError(f"{argument}: write trust=true or trust=false")
    return argument == "trust=true"


def _joined(saved: dict[str, str], given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what is left of a run's own arguments beside those given now, and these; both by their keys.

    A key that is given anew takes along what was set below it, since that was of the former option; `~key` takes back
    what was set.
    """
    taken_back = {key for key, argument in given.items() if argument.startswith("~") and key in saved}
    gone = taken_back | {key for key, argument in given.items() if argument != saved.get(key)}
    gone |= set(PROCESSES) if "accelerator" in given else set()
    below = tuple(f"{key}." for key in gone)
    now = {key: argument for key, argument in given.items() if key not in taken_back}
    for key, argument in now.items():  # what was added then has to be added now, too
        if saved.get(key, "").startswith("+") and argument[0] not in "+~":
            now[key] = f"+{argument}"
    return {key: argument for key, argument in saved.items() if not (key in gone or key.startswith(below))}, now


PROCESSES = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Keys that `accelerator=` sets."""


def job(config: Any) -> str:
    """Hydra's job: trains, and returns the run folder.

    In a sweep nothing is raised: a failed job leaves its error in run.log and its state in
    summary.json, and the next job goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from vaelab import runs
    from vaelab.core.config import resolved
    from vaelab.sweeps import sweep as sweeps
    from vaelab.training import launch
    from vaelab.training.checks import check_sections

    hydra: Any = HydraConfig.get()
    instance: Any = HydraConfig.instance()
    whole = instance.cfg
    os.chdir(hydra.runtime.cwd)  # paths are meant from where the command was given, with hydra.job.chdir=true, too
    run = runs.shown(hydra.runtime.output_dir)
    in_sweep = hydra.mode.name == "MULTIRUN"
    overrides = [o for o in hydra.overrides.task if command.key_of(o) not in ("resume", "run.dir", "sweep.dir")]
    with open_dict(config):
        config.run.format, config.run.dir, config.run.overrides = runs.FORMAT, str(run), overrides
        config.run.config_dir = next(
            (s.path for s in hydra.runtime.config_sources if s.provider == "command-line"), None
        )
    title = f"[{hydra.job.num}] {' '.join(overrides)}" if in_sweep else ""
    try:
        plain = resolved(config)
        check_sections(plain)
        for node in (plain["logger"] or {}).values() if in_sweep else ():
            if node and node.get("group", "") is None:
                node["group"] = Path(hydra.sweep.dir).name
        instance.cfg = None  # otherwise Lightning would rerun this command line in every process
        if in_sweep:
            run = sweeps.do(plain, run, title, hydra.launcher)
        else:
            launch.attempt(plain, run)
    except (OmegaConfBaseException, UserError) as error:  # the config itself is wrong
        if not in_sweep:
            raise
        told = UserError(answers.message(error, "train", overrides))
        launch.record(run, "failed", told, None)
        print(f"\n{title}\nvaelab: {told}", file=sys.stderr)
    finally:
        launch.discard_unused(run)
        instance.cfg = whole
    return str(run)
