"""`vaelab plan` shows the jobs of a sweep before they run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from vaelab import runs
from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeInt


class Options(NamedTuple):
    """The keys of `plan` in conf/plan.yaml, which says what they mean."""

    steps: NonNegativeInt
    output: str | None


def main(arguments: list[str]) -> int:
    """Runs `vaelab plan` with these arguments. Returns the exit code."""
    try:
        command.check_folders(arguments)
        sweeping = command.sweeps(arguments)
        arguments = [command.of_search(command.quoted(argument, sweeping)) for argument in arguments]
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    return command.run("plan", job, arguments)


def job(task: Any) -> list[dict[str, Any]]:
    """Hydra's job: plans, prints and returns the jobs.

    task: the config of a single run, or what `PlanSweeper` found of a sweep.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from vaelab.core.config import options
    from vaelab.sweeps import plan

    sweep = task if isinstance(task, plan.Planned) else plan.Planned(None, [plan.resolved(task)], None)
    hydra: Any = HydraConfig.instance()
    hydra.cfg = None  # otherwise Lightning would rerun this command line in every process
    (asked, *_) = [options(Options, OmegaConf.create(config.pop("plan"))) for config in sweep.jobs]
    output = command.file_to_write("plan.output", asked.output)
    if sweep.jobs[0]["resume"] is not None:
        raise UserError("resume= is for vaelab train: for what is left of a sweep, give its sweep.dir")
    folder = sweep.config and runs.shown(sweep.config.hydra.sweep.dir)
    _check(folder or Path(sweep.jobs[0]["run"]["dir"]), "run.dir" if folder is None else "sweep.dir")
    found = plan.rows(sweep.jobs, folder, asked.steps)
    if folder is None and found[0].refused:
        raise UserError(found[0].refused)
    print(plan.text(found, sweep))
    rows = [dict(zip(row._fields[:-1], row, strict=False)) | row.known._asdict() for row in found]
    if output:
        output.write_text(json.dumps(rows, indent=2) + "\n")
    if reasons := {row.number: row.refused for row in found if row.refused}:
        raise UserError("\n".join(plan.numbered(reasons, len(found))))
    return rows


def _check(folder: Path, key: str) -> None:
    """Raises UserError if the planned runs cannot be put into this folder."""
    from vaelab.sweeps.sweep import check_folder
    from vaelab.training.checks import check_unused

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder}: it is no folder: name another")
    if key == "run.dir" and folder.is_dir():
        check_unused(folder)
    elif key == "sweep.dir":
        check_folder(folder)
