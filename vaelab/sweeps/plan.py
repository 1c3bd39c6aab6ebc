"""Plans the jobs of a sweep before they run: what each is, how far it is, and how long the rest takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hydra.experimental.callback import Callback

from vaelab import runs
from vaelab.core.conf import target_names
from vaelab.core.errors import UserError
from vaelab.core.words import duration
from vaelab.evaluation.comparison import compared, configurations, tables
from vaelab.runs import jobs

if TYPE_CHECKING:
    from vaelab.sweeps.forecast import Known

SWEEPER = "hydra_plugins.vaelab_plan.sweeper.PlanSweeper"


class Plan(Callback):
    """A callback that has the jobs of a sweep composed, and not run."""

    def on_multirun_start(self, config: Any, **unused: Any) -> None:
        config.hydra.sweeper = {"_target_": SWEEPER, "_recursive_": False, "of": config.hydra.sweeper}


class Planned(NamedTuple):
    """A sweep: Hydra's config of it, every job's resolved config, and how many trials it has if it is a search.

    Of a search there is one job: a trial at the first value of every space.
    """

    config: Any
    jobs: list[dict[str, Any]]
    trials: int | None


class Row(NamedTuple):
    """A row of the plan.

    settings: the keys in which jobs differ. folder: of an earlier try. refused: why, if it would be.
    """

    number: int
    settings: dict[str, Any]
    state: Literal["new", "begun", "done", "refused"]
    folder: str | None
    refused: str | None
    known: Known


def resolved(config: Any) -> dict[str, Any]:
    """Resolves a job's config as `vaelab train` does."""
    from omegaconf import open_dict

    from vaelab.core.config import resolved as as_plain

    with open_dict(config):
        if hydra := config.pop("hydra", None):  # the config of a sweep
            config.run.dir = str(runs.shown(hydra.runtime.output_dir))
        config.run.overrides, config.run.config_dir = [], None
        return as_plain(config)


def rows(configs: Sequence[dict[str, Any]], folder: Path | None, steps: int) -> list[Row]:
    """Makes a row of the plan for each job. folder: of the sweep."""
    from tqdm import tqdm

    from vaelab.sweeps.forecast import UNKNOWN, Forecast

    earlier = jobs.earlier(folder) if folder else {}
    settings = _differing(configs)
    planned = []
    with TemporaryDirectory() as place:
        forecast = Forecast(Path(place), steps)
        bar = tqdm(configs, desc="planning", unit="job", delay=2, leave=False, disable=None)
        for number, config in enumerate(bar):
            begun_folder = earlier.get(jobs.identity(config))
            state = jobs.state_of(begun_folder) if begun_folder else "new"
            refused, known = None, UNKNOWN
            try:
                known = forecast.of(config, begun_folder if state == "begun" else None, state == "done")
            except UserError as error:
                state, refused = "refused", str(error)
            planned.append(Row(number, settings[number], state, begun_folder and str(begun_folder), refused, known))
    return planned


def _differing(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns of each job the settings that tell the jobs apart."""
    options = target_names()
    flat = [compared.flat_settings(config, options) | {"seed": config["seed"]} for config in configs]
    keys, _ = configurations.columns([configurations.Configuration(settings, (), {}, {}) for settings in flat])
    return [{key: settings.get(key) for key in keys} for settings in flat]


# --- what is printed --------------------------------------------------------------------------


def numbered(reasons: Mapping[int, str], count: int) -> list[str]:
    """Words why jobs are refused, a line per reason, with their numbers. count: of all jobs."""
    jobs: dict[str, list[str]] = {}
    for number, reason in reasons.items():
        jobs.setdefault(reason, []).append(str(number))
    lines = []
    for reason, numbers in jobs.items():
        several = f"jobs {', '.join(numbers)}" if len(numbers) > 1 else f"job {numbers[0]}"
        lines.append(f"{'all jobs' if 1 < len(numbers) == count else several}: {reason}")
    return lines


def text(found: Sequence[Row], sweep: Planned) -> str:
    """Formats the table of a plan, and how much there is to do."""
    keys = list(found[0].settings)
    columns = [["job", *(str(row.number) for row in found)], ["state", *map(_state, found)]]
    names = tables.titles(keys)
    columns += [[names[key], *(configurations.word(row.settings[key]) for row in found)] for key in keys]

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


def _state(row: Row) -> str:
    return f"begun, at step {row.known.steps_done:,}" if row.state == "begun" else row.state


def _outlook(found: Sequence[Row], sweep: Planned) -> str:
    """Tells how much there is to do, and how long that takes."""
    left = [row for row in found if row.state in ("new", "begun")]
    times = [row.known.seconds for row in left if row.known.seconds is not None]
    if sweep.trials is not None:
        folders = runs.jobs_of(Path(sweep.config.hydra.sweep.dir))
        ended = sum(jobs.state_of(folder) != "begun" for folder in folders)  # a trial that failed is not tried again
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
