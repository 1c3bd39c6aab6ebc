"""`vaelab plan`: the jobs of a sweep before they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hydra.experimental.callback import Callback

from vaelab import command, jobs, runs
from vaelab.errors import UserError
from vaelab.train import check_folders
from vaelab.types import NonNegativeInt

if TYPE_CHECKING:
    from vaelab.forecast import Known

SWEEPER = "hydra_plugins.vaelab_plan.sweeper.PlanSweeper"


class Options(NamedTuple):
    """The keys of `plan` in conf/plan.yaml, which says what they mean."""

    steps: NonNegativeInt
    output: str | None


class Plan(Callback):
    """Has the jobs of a sweep composed, and not run."""

    def on_multirun_start(self, config: Any, **unused: Any) -> None:
        config.hydra.sweeper = {"_target_": SWEEPER, "_recursive_": False, "of": config.hydra.sweeper}


class Planned(NamedTuple):
    """A sweep: Hydra's config of it, every job's resolved config, and how many trials it has if it is a search.

    Of a search there is one job: a trial at the first value of every space.
    """

    config: Any
    jobs: list[dict[str, Any]]
    trials: int | None


class Job(NamedTuple):
    """A row of the plan.

    settings: the keys in which jobs differ. folder: of an earlier try. refused: why, if it would be.
    """

    number: int
    settings: dict[str, Any]
    state: Literal["new", "begun", "done", "refused"]
    folder: str | None
    refused: str | None
    known: Known


def main(arguments: list[str]) -> int:
    """Runs `vaelab plan` with these arguments. Returns the exit code."""
    try:
        check_folders(arguments)
        arguments = [command.of_search(command.quoted(argument)) for argument in arguments]
    except UserError as error:
        print(f"vaelab: {error}", file=sys.stderr)
        return 2
    return command.run("plan", job, arguments)


def job(task: Any) -> None:
    """Hydra's job. task: the config of a single run, or of a sweep what `PlanSweeper` found."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from vaelab.config import options

    sweep = task if isinstance(task, Planned) else Planned(None, [resolved(task)], None)
    hydra: Any = HydraConfig.instance()
    hydra.cfg = None  # or Lightning would rerun this command line in every process
    (asked, *_) = [options(Options, OmegaConf.create(config.pop("plan"))) for config in sweep.jobs]
    output = command.file_to_write("plan.output", asked.output)
    if sweep.jobs[0]["resume"] is not None:
        raise UserError("resume= is for vaelab train: for what is left of a sweep, give its sweep.dir")
    folder = sweep.config and runs.shown(sweep.config.hydra.sweep.dir)
    _check(folder or Path(sweep.jobs[0]["run"]["dir"]), "run.dir" if folder is None else "sweep.dir")
    found = _plan(sweep.jobs, folder, asked.steps)
    if folder is None and found[0].refused:
        raise UserError(found[0].refused)
    print(_text(found, sweep))
    if output:
        rows = [dict(zip(row._fields[:-1], row, strict=False)) | row.known._asdict() for row in found]
        output.write_text(json.dumps(rows, indent=2) + "\n")
    if reasons := {row.refused: None for row in found if row.refused}:
        raise UserError("\n".join(f"{_numbers(found, reason)}: {reason}" for reason in reasons))


def _numbers(found: Sequence[Job], reason: str) -> str:
    """Which jobs are refused for a reason."""
    numbers = [str(row.number) for row in found if row.refused == reason]
    return "all jobs" if 1 < len(numbers) == len(found) else f"job{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _check(folder: Path, key: str) -> None:
    """Raises UserError if what is planned cannot be put into this folder."""
    from vaelab.checks import check_unused

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}={folder}: it is no folder: name another")
    if key == "run.dir" and folder.is_dir():
        check_unused(folder)


def resolved(config: Any) -> dict[str, Any]:
    """A job's config as `vaelab train` sees it."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        if hydra := config.pop("hydra", None):  # of a sweep
            config.run.dir = str(runs.shown(hydra.runtime.output_dir))
        config.run.overrides, config.run.config_dir = [], None
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return plain


def _plan(configs: Sequence[dict[str, Any]], folder: Path | None, steps: int) -> list[Job]:
    """A row for each job. folder: of the sweep."""
    from tqdm import tqdm

    from vaelab.forecast import UNKNOWN, Forecast

    there = jobs.earlier(folder) if folder else {}
    settings = _differing(configs)
    found = []
    with TemporaryDirectory() as place:
        forecast = Forecast(Path(place), steps)
        bar = tqdm(configs, desc="planning", unit="job", delay=2, leave=False, disable=None)
        for number, config in enumerate(bar):
            own = there.get(jobs.identity(config))
            state = jobs.state_of(own) if own else "new"
            refused, known = None, UNKNOWN
            try:
                known = forecast.of(config, own if state == "begun" else None, state == "done")
            except UserError as error:
                state, refused = "refused", str(error)
            found.append(Job(number, settings[number], state, own and str(own), refused, known))
    return found


def _differing(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each job the settings that tell the jobs apart."""
    from vaelab.compare import target_names
    from vaelab.evaluation import compared, comparison

    options = target_names()
    flat = [compared.flat_settings(config, options) | {"seed": config["seed"]} for config in configs]
    keys, _ = comparison.columns([comparison.Configuration(settings, (), {}, {}) for settings in flat])
    return [{key: settings.get(key) for key in keys} for settings in flat]


# --- what is printed --------------------------------------------------------------------------


def _text(found: Sequence[Job], sweep: Planned) -> str:
    import shutil

    from vaelab.evaluation import comparison, tables
    from vaelab.page.run import duration

    keys = list(found[0].settings)
    columns = [["job", *(str(row.number) for row in found)], ["state", *map(_state, found)]]
    names = tables.titles(keys)
    columns += [[names[key], *(comparison.word(row.settings[key]) for row in found)] for key in keys]

    def cells(name: str, title: str, shown: Any) -> list[str]:
        values = [getattr(row.known, name) for row in found]
        return [title, *("-" if value is None else shown(value) for value in values)]

    flowing = [
        cells("beta", "β", "{:.4g}".format),
        cells("beta_if_mean_reduced", "β of means", "{:.4g}".format),
        cells("capacity", "C", "{:.4g}".format),
        cells("steps", "steps", "{:,}".format),
        cells("epochs", "epochs", "{:,}".format),
        cells("seconds", "time", lambda seconds: duration(seconds) if seconds else ""),
    ]
    flowing = [column for column in flowing if set(column[1:]) != {"-"} or column[0] in ("steps", "epochs")]
    table = tables.layout(columns, flowing, shutil.get_terminal_size((100, 24)).columns)
    return f"{table}\n\n{_outlook(found, sweep)}"


def _state(row: Job) -> str:
    return f"begun, at step {row.known.steps_done:,}" if row.state == "begun" else row.state


def _outlook(found: Sequence[Job], sweep: Planned) -> str:
    """How much there is to do, and how long that takes."""
    from vaelab.page.run import duration

    left = [row for row in found if row.state in ("new", "begun")]
    times = [row.known.seconds for row in left if row.known.seconds is not None]
    if sweep.trials is not None:
        made = jobs.folders(Path(sweep.config.hydra.sweep.dir))
        ended = sum(jobs.state_of(folder) != "begun" for folder in made)  # a trial that failed is not tried again
        to_do = max(sweep.trials - ended, 0)
        text = f"a search of {sweep.trials} trials, {ended} of them made; the row is of one at the first of all values"
        return text + (f"\nabout {duration(times[0] * to_do)} if all took as long as that" if times and to_do else "")
    if sweep.config is None:
        return f"about {duration(sum(times))}, without figures and report" if times else "one run"
    states = {state: sum(row.state == state for row in found) for state in ("done", "begun", "new", "refused")}
    text = f"{len(found)} jobs: " + ", ".join(f"{count} {state}" for state, count in states.items() if count)
    if times:
        missing = f", {len(left) - len(times)} of them unknown" if len(times) < len(left) else ""
        text += f"\nabout {duration(sum(times))} one after the other{missing}, without figures and reports"
    at_once = sweep.config.hydra.launcher.get("n_jobs") or 1
    at_once = at_once if at_once > 0 else os.cpu_count()
    return text + (f"; {at_once} at a time" if at_once != 1 else "")
