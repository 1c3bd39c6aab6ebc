"""Keyword arguments of Python, written as arguments of the command line: both take one way from there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaelab.commands import answers, command
from vaelab.core.conf import CONF
from vaelab.core.errors import UserError

BARE = re.compile(r"[A-Za-z_][\w./-]*")
"""Pattern of texts that Hydra takes without quotes."""
WORDS = {"true", "false", "null", "nan", "inf"}
"""Texts that would mean something else without quotes."""


def written(value: Any) -> str:
    """Writes a value in Hydra's grammar. Raises UserError for one that a config cannot hold."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | Path):
        text = str(value)
        return text if BARE.fullmatch(text) and text.lower() not in WORDS else command.as_text(text)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of NumPy or torch
        return written(value.item())
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Sequence):
        return "[" + ",".join(written(item) for item in value) + "]"
    what = f"{value!r:.60}".replace("\n", " ")
    raise UserError(f"{what} cannot stand in a config: numbers, texts, lists and dicts can")


def of_command(given: Mapping[str, Any]) -> list[str]:
    """Writes a command's keys as its arguments; None leaves the command's own value."""
    return [f"{key}={written(value)}" for key, value in given.items() if value is not None]


def taken_by(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the keys that a command takes."""
    import yaml

    keys = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in given.items() if key in keys}


def keys_in(config: Mapping[str, Any], before: str = "") -> list[str]:
    """Lists the keys of a config and of its sections, with dots."""
    found = []
    for key, value in config.items():
        found += [f"{before}{key}", *(keys_in(value, f"{before}{key}.") if isinstance(value, Mapping) else ())]
    return found


def of_training(
    given: Mapping[str, Any], name: str = "train", known: Sequence[str] | None = None, sweeping: bool = False
) -> list[str]:
    """Writes the options of a training as arguments of the command `name`.

    A group of conf/ takes the name of an option, a mapping of its keys, or both: {"": "conv", "hidden_dims": [32]}; a
    section takes a mapping of its keys. A key of any section is found by its last name where one section has it, or by
    all of its name with dots.
    known: all keys; those of the options that are given if None. sweeping: a list is of values to be swept over.
    Raises UserError for a key that several sections have.
    """
    groups = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir()}
    write = _choices if sweeping else written
    for key, value in given.items():
        for option in value if sweeping and isinstance(value, list) else [value]:
            if key in groups and not isinstance(option, str | Mapping | Sequence | None):
                raise UserError(f"{key}={option!r:.60}: it takes the name of an option, a mapping of its keys, or both")
        if sweeping and isinstance(value, list) and not value:
            raise UserError(f"{key}=[]: a sweep needs values")
    options = {key: _option(value) for key, value in given.items() if key in groups}
    chosen = [f"{key}={write(option)}" for key, option in options.items() if option is not None]
    if known is None:
        first = {key: option[0] if isinstance(option, list) else option for key, option in options.items()}
        known = answers.keys_of(name, of_command(first))
    for key, value in given.items():
        if key in groups or (isinstance(value, Mapping) and any(name.startswith(f"{key}.") for name in known)):
            items = value.items() if isinstance(value, Mapping) else ()
            chosen += [f"{_place(f'{key}.{inner}', known)}={write(item)}" for inner, item in items if inner != ""]
        else:
            chosen.append(f"{_place(key, known)}={write(value)}")
    return chosen


def _choices(value: Any) -> str:
    return ",".join(map(written, value)) if isinstance(value, list) else written(value)


def _option(value: Any) -> Any:
    return value.get("") if isinstance(value, Mapping) else value


def _place(key: str, known: Sequence[str]) -> str:
    """Finds the whole name of a key: `lr` is optimizer.lr. One below a section that is not there yet is added."""
    if key in known or "." in key:
        return key if key in known else f"++{key}"
    found = [name for name in known if name.endswith(f".{key}") and name.count(".") == 1]
    if len(found) > 1 and f"model.{key}" in found:
        return f"model.{key}"
    if len(found) > 1:
        raise UserError(f"{key}: {' or '.join(found)}? Name the section: {found[0].partition('.')[0]}={{{key!r}: …}}")
    return found[0] if found else key
