"""Finds and builds what the `_target_` keys of a config name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from vaelab.core.config.values import check_plain
from vaelab.core.errors import UserError
from vaelab.core.own import make_importable, traceback_of

RESERVED: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list[Any],
}
"""Keys by which Hydra makes an object of a mapping, and their types."""


def build(node: Any, /, **arguments: Any) -> Any:
    """Instantiates a checked config node; nested lists and mappings become plain Python."""
    for target in _targets(node):
        make_importable(target)
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        # Hydra wraps what the constructor raised; the cause is what matters
        cause = error.__cause__
        if missing := re.match(r"([\w.]+)\.__init__\(\) missing \d+ required [\w ]+: (.*)", str(cause)):
            raise UserError(f"{missing[1]} needs {missing[2]}: give it in the YAML file that selects it") from cause
        if cause is not None:
            raise cause from None
        raise


def _targets(node: Any) -> Iterator[str]:
    """Lists what the `_target_` keys in a node name."""
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield node["_target_"]
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _targets(value)


def target_of(config: dict[str, Any], key: str) -> Any:
    """The class or function that a config node calls. Raises UserError if it cannot be imported."""
    for name in RESERVED.keys() & config.keys():
        check_plain(RESERVED[name], config[name], f"{key}.{name}")
    make_importable(config["_target_"])
    logging.getLogger("hydra.utils").disabled = True  # it prints an error that is raised as well
    try:
        target = get_object(config["_target_"])
    except Exception as error:
        raise UserError(_not_imported(config["_target_"], key, error)) from error
    if not callable(target):
        raise UserError(f"{key}._target_={config['_target_']}: must be a class or a function")
    return target


def _not_imported(target: str, key: str, error: Exception) -> str:
    """Words why what a `_target_` names cannot be imported; with the lines, if it is the user's code that fails."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = f"{key}._target_={target}: cannot be imported"
    if isinstance(cause, SyntaxError):
        return f"{text}: {cause.filename}, line {cause.lineno}: {cause.msg}"
    if not isinstance(cause, ModuleNotFoundError) and (lines := traceback_of(cause)):
        return f"{text}\n{lines}"
    return f"{text} ({' '.join(str(error).split())})"
