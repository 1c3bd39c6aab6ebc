"""Commands as functions: they take the keys of a command, print what it prints, and return what it found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaelab import runs
from vaelab.lab import arguments
from vaelab.lab.run import Run
from vaelab.lab.show import Picture, Table


def invoke(name: str, given: Mapping[str, Any]) -> Any:
    """Runs a command with these keys; None leaves its own value. Returns what its job returns; raises UserError."""
    from vaelab.cli import COMMANDS
    from vaelab.commands import command

    module = importlib.import_module(COMMANDS[name][0])
    for_hydra = getattr(module, "for_hydra", lambda word: word)
    words = [command.quoted(for_hydra(word)) for word in arguments.of_command(given)]
    if name != "prior":
        words = [command.prior_named(word) for word in words]
    return command.invoke(name, module.job, words)


def sweep(data: Any = "digits", *, out: str | Path | None = None, **options: Any) -> list[Run]:
    """Trains every combination of options that are given as lists, as `vaelab train -m` does. Returns the runs.

    data: as `vaelab.train` takes it. out: the sweep's folder. options: as of `vaelab.train`, a list of values each to
    be swept over: sweep(model=["vae", "beta"], seed=[0, 1]).
    A job that fails does not end the others. Raises UserError for options that make no sweep, RuntimeError at the end
    if a job has failed; the same call goes on with those that are not done.
    """
    from vaelab.commands import train as trainings
    from vaelab.lab import data as sources

    words = arguments.of_training(sources.with_options(sources.options_of(data), options), sweeping=True)
    folder, failed = trainings.swept([*words, *arguments.of_command({"sweep.dir": out})])
    if failed:
        raise RuntimeError("\n".join(f"{folder / name}: {why}" for name, why in failed.items()))
    return [Run(job, trust=True) for job in runs.jobs_of(folder)]


def compare(
    *run: str | Path | Run | list[Run], figures: Sequence[str] | str = "main", split: str = "test", **options: Any
) -> Table:
    """Compares runs, or the runs of a sweep, as `vaelab compare` does. Returns a row per configuration.

    run: run folders, sweeps, or `vaelab.open`ed runs. figures: which metrics. split: of which images. options: keys of
    conf/compare.yaml.
    """
    several = [one for given in run for one in (given if isinstance(given, list) else [given])]
    named = [str(getattr(one, "folder", one)) for one in several]
    content = invoke("compare", {"runs": named, "figures": figures, "split": split, **options})
    return Table(content["configurations"])


def plan(data: Any = "digits", **options: Any) -> Table:
    """Lists the jobs of a sweep before they run, and how long they may take, as `vaelab plan` does.

    data, options: as of `vaelab.sweep`.
    """
    from vaelab.commands import command
    from vaelab.commands import plan as planning
    from vaelab.lab import data as sources

    words = arguments.of_training(sources.with_options(sources.options_of(data), options), "plan", sweeping=True)
    return Table(command.invoke("plan", planning.job, ["-m", *words]))


def bench(data: Any = "digits", **options: Any) -> dict[str, Any]:
    """Measures what a training step costs on this machine, beside a bare loop, as `vaelab bench` does.

    data, options: as of `vaelab.train`. Returns what it measured, in seconds.
    """
    from vaelab.commands import bench as benching
    from vaelab.commands import command
    from vaelab.lab import data as sources

    return command.invoke(
        "bench", benching.job, arguments.of_training(sources.with_options(sources.options_of(data), options), "bench")
    )


def explain(topic: str | None = None, **options: Any) -> dict[str, Picture]:
    """Shows the ideas behind a VAE as figures and numbers, as `vaelab explain` does. Returns the figures by topic.

    topic: `kl`, `reparameterisation`, `bound` or `capacity`; all if None. options: keys of conf/explain.yaml.
    """
    return {path.stem: Picture(path) for path in invoke("explain", {"topic": topic, **options})}


def prepare(data: str | Path, out: str | Path, **options: Any) -> Path:
    """Writes a data set into one file that training can read where it lies, as `vaelab data prepare` does.

    data: a folder of images, or the name of a data set. out: the file. options: keys of the data set, `size=64` say.
    """
    from vaelab.commands import command
    from vaelab.commands import data as preparing
    from vaelab.lab import data as sources

    words = arguments.of_training({**sources.options_of(data), **options, "out": out}, "data")
    words = [command.quoted(word) for word in words]
    command.invoke("data", lambda config: preparing.prepare(config, words), words)
    return Path(out)


def new(kind: str, name: str) -> list[Path]:
    """Writes a start for a model, network, dataset or metric of your own, as `vaelab new` does. Returns the files."""
    return invoke("new", {"kind": kind, "name": name})


def list_runs(*folder: str | Path) -> list[Run]:
    """Lists the runs at or below folders, in the order of their paths; those below ./outputs if none is named."""
    from vaelab.runs.layout import OUTPUTS

    return [Run(path) for path in runs.runs_below([Path(one) for one in folder] or [OUTPUTS])]


def doctor(run: str | Path | Run) -> str:
    """Says what may be wrong with a run, and what helps, as `vaelab doctor run=RUN` does."""
    from vaelab.commands.doctor import report

    return report(str(getattr(run, "folder", run)))
