"""Looks up what `vaelab runs` shows of a run, by name: a column, a setting or a metric."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaelab.core.errors import UserError
from vaelab.evaluation.comparison import compared
from vaelab.runs import read_config_if_any
from vaelab.runs.overview import Run

COLUMNS = ("model", "dataset", "status", "epochs", "best", "seconds")
"""Columns of the table of runs, before the shown keys and the path."""
KEYS = ("model", "dataset", "status", "name", "sweep")
"""Names of a run's properties that are words, not metrics."""
MISSING = object()
"""Value of a key that a run does not have."""


class Config(NamedTuple):
    """A run's config. tree: as in config.yaml. settings: flat, as in comparisons. overrides: of the command line."""

    tree: dict[str, Any]
    settings: dict[str, Any]
    overrides: dict[str, str]


class Listed:
    """Lookup of runs' values; their configs are read when first needed, a millisecond each."""

    def __init__(self, options: dict[str, str]):
        """Takes `options`, the names of what `_target_`s select."""
        self._options = options
        self._read: dict[Path, Config] = {}

    def config(self, run: Run) -> Config:
        """Returns a run's config, empty if there is none, or if it is no run's."""
        if run.folder not in self._read:
            self._read[run.folder] = self._config(run.folder)
        return self._read[run.folder]

    def _config(self, folder: Path) -> Config:
        try:
            tree = read_config_if_any(folder)
            overrides = compared.overrides_of(tree)
        except (UserError, AttributeError, TypeError, OSError):
            return Config({}, {}, {})
        try:
            settings = compared.flat_settings(tree, self._options) | {"seed": tree["seed"]}
        except (KeyError, AttributeError, TypeError):
            settings = {}
        return Config(tree, settings, overrides)

    def value(self, run: Run, key: str) -> Any:
        """Returns a column, the sweep's name, a metric, or a key of the config; MISSING if it has none, or NaN."""
        if key == "sweep":
            return run.sweep.absolute().name if run.sweep else None
        if key in KEYS:
            return getattr(run, key)
        if key in COLUMNS or key in run.metrics:
            figure = (
                run.metrics[key]
                if key in run.metrics
                else run.best.get("value")
                if key == "best"
                else getattr(run, key)
            )
            return MISSING if figure is None or (isinstance(figure, float) and math.isnan(figure)) else figure
        return self._setting(self.config(run), key)

    def _setting(self, config: Config, key: str) -> Any:
        if key in config.settings:
            return config.settings[key]
        node: Any = config.tree
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return config.overrides.get(key, MISSING)  # of a group that leaves no key, such as experiment
            node = node[part]
        return config.overrides.get(key, MISSING) if isinstance(node, dict) else node  # a group: what was chosen

    def swept(self, runs: Iterable[Run]) -> list[str]:
        """Returns the keys that were set on the command line and differ among the jobs of a sweep, in that order."""
        keys: dict[str, None] = {}
        for jobs in sweeps(runs).values():
            begun = [run for run in jobs if self.config(run).tree]
            for key in dict.fromkeys(key for run in begun for key in self.config(run).overrides):
                if key not in COLUMNS and len({word(self.value(run, key)) for run in begun}) > 1:
                    keys[key] = None
        return list(keys)

    def differing(self, runs: Sequence[Run]) -> list[str]:
        """Returns all settings that differ among the runs that have any, those that follow from others included."""
        all_settings = [settings for run in runs if (settings := self.config(run).settings)]
        keys = dict.fromkeys(key for settings in all_settings for key in settings)
        return [key for key in keys if len({word(settings.get(key, MISSING)) for settings in all_settings}) > 1]

    def meant(self, runs: Sequence[Run], key: str) -> str:
        """Suggests keys for one that no run has: those that end in its last part, or are like it."""
        import difflib

        known = {name for run in runs for name in (*self.config(run).settings, *run.metrics)} | {*COLUMNS, *KEYS}
        last = key.rpartition(".")[2]
        close = sorted(name for name in known if name.replace("/", ".").rpartition(".")[2] == last)
        close = close or difflib.get_close_matches(key, sorted(known), 3)
        return f"; did you mean {' or '.join(close[:4])}?" if close else ""


def sweeps(runs: Iterable[Run]) -> dict[Path, list[Run]]:
    """Groups runs by sweep; single runs are left out."""
    by_sweep: dict[Path, list[Run]] = {}
    for run in runs:
        if run.sweep:
            by_sweep.setdefault(run.sweep, []).append(run)
    return by_sweep


def word(value: Any) -> str:
    """Writes a value as `where=` takes it; nothing for a missing one."""
    return "" if value is MISSING else value if isinstance(value, str) else json.dumps(value, default=str)
