"""Checks plain values of a config against types, and says what is wrong in the words of a config."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vaelab.core.conf import CONF
from vaelab.core.errors import UserError

NO_CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
OF_OBJECTS = {"is_instance_of", "is_subclass_of", "needs_python_object", "callable_type"}
"""Kinds of errors of pydantic that say that an object is wanted."""
LONGEST = 80
"""Most characters of a wrong value that is written out."""
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


def check_plain(hint: Any, value: Any, key: str) -> None:
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
    if wanted == "a string" and isinstance(problem["input"], (int, float)):
        hint = f""": quote it, as in '{key}="{value}"'"""
    raise UserError(f"{key}{where}={short(problem['input'])}: {must}{wanted}{hint}") from None


def _place(parts: Sequence[int | str], value: Any) -> str:
    """Writes the place within a value; pydantic's has names of a union's members in it, too."""
    place = ""
    for part in parts:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            place, value = f"{place}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            place, value = f"{place}.{part}", value[part]
    return place


def short(value: Any) -> str:
    """Writes a wrong value out, if it is not too long for a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _has_own_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or hasattr(hint, "__pydantic_config__")
