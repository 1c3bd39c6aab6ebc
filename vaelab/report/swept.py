"""Reads the jobs of a sweep from their folders: the settings that differ, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaelab import runs
from vaelab.core.conf import target_names
from vaelab.core.errors import UserError
from vaelab.core.metrics import MAIN, metric
from vaelab.evaluation.comparison import compared, selection, sources
from vaelab.evaluation.comparison import configurations as comparison
from vaelab.figures.series import series
from vaelab.report.run import STATES

PANELS = 4
"""Most metrics of a figure."""


class Job(NamedTuple):
    """A job of a sweep. config, settings: empty if it failed before it began. run: None if it is not finished."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    settings: dict[str, Any]
    run: compared.Run | None
    error: str

    @property
    def metrics(self) -> dict[str, float]:
        return self.summary.get("metrics", {})

    @property
    def status(self) -> str:
        status = self.summary.get("status", "")
        return STATES.get(status, (status,))[0]


def read(folder: Path) -> list[Job]:
    """Reads the jobs of a sweep from its folder."""

    options = target_names()
    return [_job(path, options) for path in runs.jobs_of(folder)]


def _job(folder: Path, options: dict[str, str]) -> Job:
    """Reads a job from the files that it has. options: names of models and the like, by their `_target_`."""

    config, settings, run, summary = {}, {}, None, {}
    try:
        summary = runs.read_summary(folder)
        error = str(summary.get("error") or "")
        if config := runs.read_config_if_any(folder):
            settings = compared.flat_settings(config, options) | {"seed": config["seed"]}
        if summary.get("status") == "finished":
            read_or_reason = sources.read_run(folder, "test", options)
            run = None if isinstance(read_or_reason, str) else read_or_reason
    except UserError as damage:
        error = str(damage)
    return Job(folder, summary, config, settings, run, error)


def configurations(jobs: Sequence[Job]) -> list[comparison.Configuration]:
    return comparison.group(job.run for job in jobs if job.run)[0]


def differing(jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """Returns the keys that tell the runs apart, and those that differ along with them."""
    rows = [comparison.Configuration(job.settings, (), {}, {}) for job in jobs if job.settings]
    keys, also = comparison.columns(rows)
    keys = [key for key in keys if key != "seed"] + ["seed"] * (len({row.settings["seed"] for row in rows}) > 1)
    return keys, [key for key in also if key != "seed"]


def told_apart(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Returns the keys that were set on the command line and differ between the runs, with their values in order."""
    told = [compared.overrides_of(job.config) for job in jobs if job.config]
    keys = dict.fromkeys(key for overrides in told for key in overrides)
    found = {key: {overrides[key] for overrides in told if key in overrides} for key in keys}
    differ = [key for key in keys if len({overrides.get(key) for overrides in told}) > 1]
    return {key: sorted(found[key], key=_place) for key in differ}


def _place(word: str) -> tuple[int, float, str]:
    try:
        return comparison.sortable(float(word))
    except ValueError:
        return comparison.sortable(word)


def values(jobs: Sequence[Job], key: str) -> list[str]:
    """Returns the values that a key takes, in order."""
    values = {comparison.word(job.settings.get(key)): job.settings.get(key) for job in jobs if job.settings}
    return sorted(values, key=lambda word: comparison.sortable(values[word]))


def short(keys: Sequence[str]) -> dict[str, str]:
    """Shortens each key to its last part, where no other key has the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def label(settings: dict[str, Any], keys: Sequence[str]) -> str:
    names = short(keys)
    return ", ".join(f"{names[key]}={comparison.word(settings.get(key))}" for key in keys)


def word(job: Job, key: str) -> str:
    return comparison.word(job.settings.get(key))


def cell(job: Job, key: str) -> float | str | None:
    """Returns a setting as a number if it is one, else as a word."""
    value = job.settings.get(key)
    return value if value is None or type(value) in (int, float) else comparison.word(value)


def figures(jobs: Sequence[Job]) -> list[str]:
    """Returns the names of the test metrics that any run has, but for those that were only set."""
    names = dict.fromkeys(name for job in jobs for name in job.metrics if name.startswith("test/"))
    first = [name for name in ("test/elbo", "test/reconstruction", "test/kl") if name in names]
    others = [name for name in names if not metric(name).set and name not in first]
    return first + others


def evaluated(jobs: Sequence[Job]) -> list[str]:
    """Returns the names of the main metrics that evaluations alone have, and not the end of training, too."""
    own = {name for job in jobs if job.run for name in job.run.evaluated}
    return [name for name in MAIN if name in own and name not in compared.FROM_TRAINING.values()]


def against(rows: Sequence[comparison.Configuration], key: str, keys: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Returns what `trends.against` draws of a setting: by metric and by the other settings, the configurations."""
    others = [other for other in keys if other not in (key, "seed")]
    panels: dict[str, dict[str, list[Any]]] = {}
    for name in selection.figures_shown("main", sorted({n for row in rows for n in row.figures}), "test")[:PANELS]:
        for row in (row for row in rows if name in row.figures):
            mean, low, high, _ = row.figures[name]
            value = row.settings.get(key)
            cell = value if value is None or type(value) in (int, float) else comparison.word(value)
            lines = panels.setdefault(name, {})
            lines.setdefault(label(row.settings, others), []).append((cell, mean, low, high))
    return panels


def curves(jobs: Sequence[Job], keys: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """Returns what `trends.overlaid` draws: by metric, the curve of each run and what tells its configuration apart.

    names: of metrics of the test, whose values in training or validation are shown.
    """
    told = [key for key in keys if key != "seed"]
    rows = {job.folder: runs.read_metrics(job.folder) for job in jobs}
    part = "val" if any("val/loss" in row for read in rows.values() for row in read) else "train"
    panels: dict[str, list[Any]] = {}
    for name in [f"{part}/{name.partition('/')[2]}" for name in names][:PANELS]:
        for job in jobs:
            x, y = series(rows[job.folder], name, "epoch")
            if len(x) > 1:
                panels.setdefault(name, []).append((label(job.settings, told), x, y))
    return panels
