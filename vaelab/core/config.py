"""Checks a resolved config against the signatures of what it builds, before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vaelab.core.conf import CONF
from vaelab.core.errors import UserError
from vaelab.core.own import make_importable, traceback_of
from vaelab.core.renames import upgrade_run

GIVEN_LATER = {"shape", "num_classes", "run"}
"""Names of constructor arguments that the program gives, not the config."""
SIZES = {"latent_dim", "num_embeddings", "embedding_dim"}
"""Names of arguments that a model gives to the parts that it builds."""
Options = TypeVar("Options")
NO_CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
RESERVED: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list[Any],
}
"""Keys by which Hydra makes an object of a mapping, and their types."""
OF_OBJECTS = {"is_instance_of", "is_subclass_of", "needs_python_object", "callable_type"}
"""Kinds of errors of pydantic that say that an object is wanted."""
LONGEST = 80
"""Most characters of a wrong value that is written out."""
PLAIN = {int, float, str, bool, list, dict, tuple, type(None)}
"""Types of plain values: what a key of these takes is not made by a class."""
WORDS = {
    "Input should": "must",
    "a valid array": "a list",
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid ": "a ",
    "an object": "a mapping of keys",
    "Field required": "too few values",
    "List should ": "",
    " after validation": "",
}
"""Words of pydantic, and those for the user."""


def _of_list(function: Callable[[Sequence[Any]], Any]) -> Callable[[Any], Any]:
    """Makes a function of lists of numbers give None for anything else, which the check refuses where it stands."""

    def computed(values: Any) -> Any:
        proper = isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)
        return function(values) if proper else None

    return computed


def _power(base: Any, exponent: Any) -> Any:
    """Computes a power of whole numbers; None for anything else, and for what is beyond all sizes."""
    proper = isinstance(base, int) and isinstance(exponent, int) and 0 <= exponent < 64
    return base**exponent if proper else None


# YAML computes sizes with these, as in ${product:${codebook.levels}} and ${power:2,${codebook.bits}}
OmegaConf.register_new_resolver("product", _of_list(math.prod), replace=True)
OmegaConf.register_new_resolver("length", _of_list(len), replace=True)
OmegaConf.register_new_resolver("power", _power, replace=True)


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
        _check_plain(hints[name], value, f"{prefix}{name}")


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
        raise UserError(f"{key}={_short(config)}: must be a finite number, below 2^63")
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        _check_call(config, key)
    for name, value in config.items():
        check(value, f"{key}.{name}" if key else name)


def target_of(config: dict[str, Any], key: str) -> Any:
    """The class or function that a config node calls. Raises UserError if it cannot be imported."""
    for name in RESERVED.keys() & config.keys():
        _check_plain(RESERVED[name], config[name], f"{key}.{name}")
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
        _check_plain(hint, value, key)


def _check_plain(hint: Any, value: Any, key: str) -> None:
    """Refuses what is not of the type `hint`, strictly: "off" is no boolean and 20.0 no integer.

    Values are checked as JSON, because there a list may stand for a tuple and an integer for a float, as in YAML.
    """
    try:
        _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        _refuse(error, value, key)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Returns what checks values against a type: made once, for a config has the same types again and again."""
    try:
        return _kept_adapter(hint)
    except TypeError:  # an annotation with a list in it, say, which is no key
        return _kept_adapter.__wrapped__(hint)


@functools.cache
def _kept_adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=None if _has_own_config(hint) else NO_CONFIG)


def _refuse(error: ValidationError, value: Any, key: str) -> NoReturn:
    """Raises the UserError for a value; of a list, the item that is wrong is named by its place."""
    places = [(_place(problem["loc"], value), problem) for problem in error.errors()]
    where, problem = max(places, key=lambda item: len(item[0]))
    found = [problem for place, problem in places if place == where]
    messages = []
    for message in (p["msg"] for p in found if p["type"] not in OF_OBJECTS):
        for words, ours in WORDS.items():
            message = message.replace(words, ours)
        messages.append(message.removeprefix("must be "))
    wanted = " or ".join(dict.fromkeys(messages)) or "a mapping with a _target_"
    must = "must " if wanted.startswith("have ") else "" if wanted.startswith("too ") else "must be "
    group = key.partition(".")[0]
    named = not messages and isinstance(value, str) and (CONF / group / f"{value}.yaml").is_file()
    hint = f": the option of that name is {group}@{key}={value}" if named else ""
    raise UserError(f"{key}{where}={_short(problem['input'])}: {must}{wanted}{hint}") from None


def _place(parts: Sequence[int | str], value: Any) -> str:
    """Writes the place within a value; pydantic's has names of a union's members in it, too."""
    place = ""
    for part in parts:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            place, value = f"{place}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            place, value = f"{place}.{part}", value[part]
    return place


def _short(value: Any) -> str:
    """Writes a wrong value out, if it is not too long for a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


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


def _has_own_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or hasattr(hint, "__pydantic_config__")


def _has_target(value: Any) -> bool:
    """Whether a config value has a `_target_` in it: it becomes an object, and is checked where it stands."""
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(v) for v in value.values())
    return isinstance(value, list) and any(_has_target(v) for v in value)
