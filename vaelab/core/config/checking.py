"""Checks a resolved config against the signatures of what it builds, before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from vaelab.core.config.building import RESERVED, target_of
from vaelab.core.config.values import check_plain, short
from vaelab.core.errors import UserError

GIVEN_LATER = {"shape", "num_classes", "run"}
"""Names of constructor arguments that the program gives, not the config."""
SIZES = {"latent_dim", "num_embeddings", "embedding_dim"}
"""Names of arguments that a model gives to the parts that it builds."""
PLAIN = {int, float, str, bool, list, dict, tuple, type(None)}
"""Types of plain values: what a key of these takes is not made by a class."""
Options = TypeVar("Options")


def options(kind: type[Options], config: Any, key: str = "") -> Options:
    """Makes a `kind` of the keys of a command; the annotations of `kind` say what each value can be.

    key: where the keys stand in the whole.

    Raises UserError for an unknown key, a value that is missing or one that cannot be.
    """
    given: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_keys(kind, given, key)
    constructor: Any = kind
    return constructor(**given)


def check_keys(kind: type, given: dict[str, Any], key: str = "") -> None:
    """Raises UserError for a key that `kind` has no annotation for, and for a value that is not as its annotation says.

    key: where the mapping stands in the whole.
    """
    hints, prefix = get_type_hints(kind, include_extras=True), f"{key}." if key else ""
    for name, value in given.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise UserError(f"{prefix}{name}: no such key" + (f"; did you mean {prefix}{near[0]}?" if near else ""))
        check_plain(hints[name], value, f"{prefix}{name}")


def check(config: Any, key: str = "", hint: Any = Any) -> None:
    """Raises UserError if a value does not fit the constructor that will receive it.

    config: a plain container with `_target_` nodes anywhere. key: where it stands in the whole. hint: what is wanted
    there of the object that it becomes, as an annotation.
    """
    if _has_target(config):
        _check_objects(hint, config, key)
    if isinstance(config, list):
        for i, item in enumerate(config):
            check(item, f"{key}[{i}]")
    if isinstance(config, int | float) and not abs(config) < 2**63:
        raise UserError(f"{key}={short(config)}: must be a finite number, below 2^63")
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        _check_call(config, key)
    for name, value in config.items():
        check(value, f"{key}.{name}" if key else name)


def _check_call(config: dict[str, Any], key: str) -> None:
    target = target_of(config, key)
    try:
        signature = inspect.signature(target).parameters
    except ValueError:  # one written in C may not say what it takes
        return
    for name, parameter in signature.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        needed |= dataclasses.is_dataclass(target) and parameter.default is parameter.empty
        if needed and name not in config and name not in GIVEN_LATER and not config.get("_partial_"):
            lazy = f", or _partial_: true, with which the model gives {name}" if name in SIZES else ""
            raise UserError(f"{key}.{name}: this value must be given: {key}.{name}=…{lazy}")
    owner = target if dataclasses.is_dataclass(target) or inspect.isfunction(target) else target.__init__
    try:
        hints = get_type_hints(owner, include_extras=True)
    except NameError:  # another library's, of names that only its type checker knows
        hints = {}
    for name, value in config.items():
        if name in RESERVED:
            continue
        if name not in signature:
            near = difflib.get_close_matches(name, signature, 1)
            hint = f"; did you mean {key}.{near[0]}?" if near else ""
            raise UserError(f"{key}.{name}: {config['_target_']} takes no such value{hint}")
        if name in hints and not _is_none(hints[name], value):
            _check_value(hints[name], value, f"{key}.{name}")


def _is_none(hint: Any, value: Any) -> bool:
    """Whether a value is the option `none` of a group, a file without content, where None is allowed."""
    return value == {} and type(None) in get_args(hint)


def _check_value(hint: Any, value: Any, key: str) -> None:
    """Refuses what is not of the type `hint`: a plain value, or what its `_target_` makes."""
    if _has_target(value):
        _check_objects(hint, value, key)
    else:
        check_plain(hint, value, key)


def _check_objects(hint: Any, value: Any, key: str) -> None:
    """Refuses a value that becomes an object, or has some in it, where `hint` names other classes or plain values.

    Where `hint` is of a function that makes a part, the `_target_` is that function. What a function makes is known
    by its annotation.
    """
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for member in members:
        if isinstance(value, list) and get_origin(member) in (list, Sequence):
            for i, item in enumerate(value):
                _check_value(get_args(member)[0], item, f"{key}[{i}]")
            return
        if isinstance(value, dict) and get_origin(member) is dict and "_target_" not in value:
            for name, item in value.items():
                if not _is_none(get_args(member)[1], item):
                    _check_value(get_args(member)[1], item, f"{key}.{name}")
            return
    if Any in members or not isinstance(value, dict) or "_target_" not in value:
        return
    target, lazy = target_of(value, key), bool(value.get("_partial_"))
    parts = [get_args(m)[-1] for m in members if get_origin(m) is Callable and inspect.isclass(get_args(m)[-1])]
    if not (parts := [part for part in parts if part not in PLAIN]):
        kinds = [get_args(m)[0] if get_origin(m) is Annotated else get_origin(m) or m for m in members]
        parts, made = [kind for kind in kinds if inspect.isclass(kind)], functools.partial if lazy else _made_by(target)
    elif lazy:
        made = _made_by(target)
    else:
        raise UserError(f"{key}._partial_: it must be true, since it is built with sizes that stand elsewhere")
    names = " or ".join(_article(part.__name__) for part in parts if part not in PLAIN) or "a plain value"
    if PLAIN.issuperset(parts) or (made is not None and not any(issubclass(made, part) for part in parts)):
        raise UserError(f"{key}._target_={value['_target_']}: makes no such value: it must be {names}")
    if made is None and object not in parts:
        raise UserError(
            f"{key}._target_={value['_target_']}: it must be {names}, or a function that says by its annotation "
            "that it returns one"
        )


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _made_by(target: Any) -> type | None:
    """The class of what a class or function makes; None for a function that does not say so."""
    if inspect.isclass(target):
        return target
    try:
        made = get_type_hints(target).get("return")
    except (NameError, TypeError):
        return None
    return made if inspect.isclass(made) else None


def _has_target(value: Any) -> bool:
    """Whether a config value has a `_target_` in it: it becomes an object, and is checked where it stands."""
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(v) for v in value.values())
    return isinstance(value, list) and any(_has_target(v) for v in value)
