"""The config.yaml of a run, read by one reader, whatever version wrote it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from vaelab.core.errors import UserError
from vaelab.core.files import damaged, read_json, write_text
from vaelab.core.renames import upgrade_run
from vaelab.runs.layout import FORMAT, Files

NEEDED = {"run", "model", "dataset"}
"""Sections that every config has."""
KINDS: dict[str, Any] = {
    "seed": int, "run": dict, "run.name": str, "run.overrides": list, "run.config_dir": str | None, "run.found": list,
    "model": dict,
    "dataset": dict, "trainer": dict | None, "callbacks": dict | None,
    "schedule": dict | None, "logger": dict | None,
}  # fmt: skip
"""Types of what commands read from a config, where it is there."""
MOST = 2**24
"""Bytes of the largest config that is read."""


def read_config(run: Path) -> dict[str, Any]:
    """Reads the resolved config of a run, as plain containers with today's names.

    Raises UserError if it is missing, damaged or another program's.
    """
    config = read_config_if_any(run)
    if not config:
        error = read_json(Files(run).summary, "remove the folder").get("error")
        if error and isinstance(error, str):
            raise UserError(f"{run} was never trained: {error.splitlines()[0]}")
        raise UserError(f"{Files(run).config} is missing or empty: restore it, or remove the folder")
    if not config.keys() >= NEEDED:
        raise _foreign(run)
    if wrong := next((key for key, kind in KINDS.items() if not _is(config, key, kind)), None):
        raise damaged(Files(run).config, f"{wrong} is missing, or of another type", "restore it, or remove the folder")
    return config


def _is(config: dict[str, Any], key: str, kind: Any) -> bool:
    """Whether the value of a key, if it is there, is of a type."""
    section, _, name = key.partition(".")
    part = config if not name else config.get(section)
    name = name or section
    if not isinstance(part, dict) or name not in part:
        return True
    value = part[name]
    return isinstance(value, kind) and (kind is not list or all(isinstance(item, str) for item in value))


def read_config_if_any(run: Path) -> dict[str, Any]:
    """Reads what there is of a run's config, {} if there is no such file. Raises UserError if it is damaged."""
    path = Files(run).config
    try:
        if not path.is_file():  # a pipe would be waited for
            return {}
        if path.stat().st_size > MOST:
            raise damaged(path, "it is too large", "restore it, or remove the folder")
        config = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # the file is no YAML, or no UTF-8
        raise UserError(f"{path} is damaged, it is no YAML: restore it, or remove the folder") from error
    if not isinstance(config, dict):
        raise _foreign(run)
    about = config.get("run")
    made_by = about.get("format", 1) if isinstance(about, dict) else 1
    if not isinstance(made_by, int) or made_by > FORMAT:
        raise UserError(f"{path} is of a newer vaelab (format {made_by}, this one reads up to {FORMAT}): update vaelab")
    return upgrade_run(config)


def _foreign(run: Path) -> UserError:
    return UserError(f"{run} is no run of vaelab: its config.yaml is another program's")


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Writes the config.yaml of a run."""
    import yaml

    write_text(Files(run).config, yaml.dump(config, Dumper=_dumper(), allow_unicode=True, sort_keys=False))


def _load(text: str) -> Any:
    """Reads YAML as Hydra does, ten times as fast as OmegaConf: there may be hundreds of runs."""
    import yaml

    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_loader())):
            raise ValueError("it has aliases, which may stand for more than any memory holds; vaelab writes none")
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@cache
def _loader() -> Any:
    """PyYAML's safe loader, in C where there is one."""
    import yaml

    return _with_numbers(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def _dumper() -> Any:
    """PyYAML's safe dumper, in C where there is one.

    It quotes texts that the loader would take for something else, and writes what stands in two places twice: aliases
    are refused by the reader.
    """
    import yaml

    made = _with_numbers(getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    made.ignore_aliases = lambda self, data: True
    return made


def _with_numbers(base: Any) -> Any:
    """Makes a loader or dumper take 1e-3 for a number, as OmegaConf does; PyYAML alone makes a word of it."""
    made = type(base.__name__, (base,), {})
    number = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|[-+]?\.?\d[\d_]*[eE][-+]?\d+$")
    made.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return made
