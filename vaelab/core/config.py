"""Checks a resolved config against the signatures of what it builds, before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vaelab.core.errors import UserError
from vaelab.core.renames import upgrade_run

GIVEN_LATER = {"shape", "num_classes", "run"}
"""Names of constructor arguments that the program gives, not the config."""
SIZES = {"latent_dim", "num_embeddings", "embedding_dim"}
"""Names of arguments that a model gives to the parts that it builds."""
Options = TypeVar("Options")
NO_CONFIG = ConfigDict(arbitrary_types_allowed=True)


def _of_list(function: Callable[[Sequence[Any]], Any]) -> Callable[[Any], Any]:
    """Makes a function of lists of numbers give None for anything else, which the check refuses where it stands."""

    def computed(values: Any) -> Any:
        proper = isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)
        return function(values) if proper else None

    return computed


# YAML computes sizes from a list with these, as in ${product:${codebook.levels}}
OmegaConf.register_new_resolver("product", _of_list(math.prod), replace=True)
OmegaConf.register_new_resolver("length", _of_list(len), replace=True)


def build(node: Any, /, **arguments: Any) -> Any:
    """Instantiates a checked config node; nested lists and mappings become plain Python."""
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


def resolved(config: Any) -> dict[str, Any]:
    """Returns a composed config as plain containers, with today's names of classes.

    Raises what OmegaConf does for `???`.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _refuse_secrets(plain, "")
    return upgrade_run(plain)


SECRET = re.compile(r"KEY$|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Pattern in the names of environment variables whose values are nobody else's business."""
SHORT = 8
"""Characters of a value that is too short to be a secret, and may stand in a config by chance."""


def _refuse_secrets(node: Any, key: str) -> None:
    """Raises UserError if a secret of the environment stands in a config, which goes into files and reports."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str):
        for name, value in os.environ.items():
            if len(value) >= SHORT and value in node and SECRET.search(name):
                raise UserError(
                    f"{key}: it holds the value of the environment variable {name}, which would stand in config.yaml "
                    "and the report: leave it out"
                )


def options(kind: type[Options], config: Any) -> Options:
    """Makes a `kind` of the keys of a command; the annotations of `kind` say what each value can be.

    Raises UserError for an unknown key, a value that is missing or one that cannot be.
    """
    given: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    hints = get_type_hints(kind, include_extras=True)
    for name, value in given.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise UserError(f"{name}: no such key" + (f"; did you mean {near[0]}?" if near else ""))
        _check_value(hints[name], value, name)
    constructor: Any = kind
    return constructor(**given)


def check(config: Any, key: str = "") -> None:
    """Raises UserError if a value does not fit the constructor that will receive it.

    config: a plain container with `_target_` nodes anywhere. key: where it stands in the whole.
    """
    if isinstance(config, list):
        for i, item in enumerate(config):
            check(item, f"{key}[{i}]")
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        _check_call(config, key)
    for name, value in config.items():
        check(value, f"{key}.{name}" if key else name)


def target_of(config: dict[str, Any], key: str) -> Any:
    """The class or function that a config node calls. Raises UserError if it cannot be imported."""
    try:
        return get_object(config["_target_"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key}._target_={config['_target_']}: cannot be imported ({reason})") from error


def _check_call(config: dict[str, Any], key: str) -> None:
    target = target_of(config, key)
    signature = inspect.signature(target).parameters
    for name, parameter in signature.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        needed |= dataclasses.is_dataclass(target) and parameter.default is parameter.empty
        if needed and name not in config and name not in GIVEN_LATER and not config.get("_partial_"):
            lazy = f", or _partial_: true, with which the model gives {name}" if name in SIZES else ""
            raise UserError(f"{key}.{name}: this value must be given: {key}.{name}=…{lazy}")
    owner = target if dataclasses.is_dataclass(target) or inspect.isfunction(target) else target.__init__
    hints = get_type_hints(owner, include_extras=True)
    for name, value in config.items():
        if name in ("_target_", "_partial_", "_convert_", "_recursive_", "_args_"):
            continue
        if name not in signature:
            near = difflib.get_close_matches(name, signature, 1)
            hint = f"; did you mean {key}.{near[0]}?" if near else ""
            raise UserError(f"{key}.{name}: {config['_target_']} takes no such value{hint}")
        if name in hints and not _has_target(value) and not _is_none(hints[name], value):
            _check_value(hints[name], value, f"{key}.{name}")


def _is_none(hint: Any, value: Any) -> bool:
    """Whether a value is the option `none` of a group, a file without content, where None is allowed."""
    return value == {} and type(None) in get_args(hint)


def _check_value(hint: Any, value: Any, key: str) -> None:
    """Refuses what is not of the type `hint`, strictly: "off" is no boolean and 20.0 no integer.

    Values are checked as JSON, because there a list may stand for a tuple and an integer for a float, as in YAML.
    """
    adapter = TypeAdapter(hint, config=None if _has_own_config(hint) else NO_CONFIG)
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
        if problem["type"] in ("is_instance_of", "is_subclass_of", "needs_python_object"):
            raise UserError(f"{key}={value!r}: must be a mapping with a _target_") from None
        message = problem["msg"].removeprefix("Input ").replace("should be a valid array", "must be a list")
        message = message.replace("should be a valid int", "must be an int").replace("should be a valid", "must be a")
        message = message.replace("should", "must").replace("Field required", "too few values")
        raise UserError(f"{key}{place}={problem['input']!r}: {message[0].lower() + message[1:]}") from None


def _has_own_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or hasattr(hint, "__pydantic_config__")


def _has_target(value: Any) -> bool:
    """Whether a config value has a `_target_` in it: it becomes an object, and is checked where it stands."""
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(v) for v in value.values())
    return isinstance(value, list) and any(_has_target(v) for v in value)
