"""What a run's data have answered to options that were null, such as the columns of a table: it joins the config."""

from __future__ import annotations

from typing import Any

KEYS = ("schema", "value_range")
"""Keys of a data set that its data may answer: numbers mean the same to a model from then on."""
TOLD = {"schema": ("likelihood", "columns"), "label_names": ("condition", "names")}
"""Answers that a part of the model is told, too, by the part's name and key: a model is then built without its data."""


def answer(config: dict[str, Any], found: dict[str, Any]) -> None:
    """Puts answers of the data, by key, into the config's section `dataset` where it has null, and notes which."""
    found = {key: value for key, value in found.items() if config["dataset"].get(key) is None}
    if found:
        _put(config, found)
        config["run"] = config["run"] | {"found": sorted({*config["run"].get("found", []), *found})}


def keep(config: dict[str, Any], saved: dict[str, Any]) -> None:
    """Has a run that is resumed go on with what its data had answered. saved: its config."""
    answer(config, {key: saved["dataset"][key] for key in saved["run"].get("found", []) if key in saved["dataset"]})


def asked(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config as it was before its data answered."""
    config = dict(config)
    _put(config, dict.fromkeys((config.get("run") or {}).get("found", [])))
    return config


def _put(config: dict[str, Any], values: dict[str, Any]) -> None:
    config["dataset"] = (config.get("dataset") or {}) | values
    for answered in values.keys() & TOLD.keys():
        (part, key), model = TOLD[answered], config.get("model") or {}
        if key in (config.get(part) or {}):
            config[part] = config[part] | {key: values[answered]}
        if key in (model.get(part) or {}):
            config["model"] = model | {part: model[part] | {key: values[answered]}}
