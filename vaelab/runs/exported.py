"""A model outside its run folder: model.safetensors with the weights, model.json with what they are of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.files import whole, write_text
from vaelab.core.renames import upgrade_run, upgrade_tensors

if TYPE_CHECKING:
    from vaelab.models import Model

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
FORMAT = "vaelab-1"
"""Format of model.json that `save` writes and `load` reads."""
BUILDS = ("vaelab.models", "vaelab.nn")
"""Modules whose classes a model.json may name."""


def holds_export(folder: str | Path) -> bool:
    """Whether a folder is one that vaelab export wrote, and no run."""
    return (Path(folder) / DESCRIPTION).is_file() and not (Path(folder) / "config.yaml").exists()


def save(model: Model, folder: Path, description: dict[str, Any]) -> None:
    """Writes both files, each whole or not at all; `format` and `extra` are added to the description."""
    from safetensors.torch import save_file

    state = model.state_dict()
    tensors = {name: value.cpu().clone().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    with whole(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "vaelab": FORMAT})
    text = json.dumps({"format": FORMAT} | description | {"extra": extra}, indent=2) + "\n"
    write_text(folder / DESCRIPTION, text)


def load(folder: str | Path, device: str = "cpu") -> Model:
    """Loads an exported model, in eval mode, on `device`.

    The files may be anyone's: only classes of vaelab are built, and no pickle is read. Raises UserError
    for a file that is missing or damaged, or names other classes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from vaelab.core.config import build, check

    root = Path(folder)
    about = read_description(root)
    about["model"] = upgrade_run({"model": about["model"]})["model"]
    check_builds(about["model"], root)
    check(about["model"], "model")
    try:
        tensors = load_file(root / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{root / WEIGHTS} does not exist: it belongs to {DESCRIPTION}; export the run again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{root / WEIGHTS} is damaged: export the run again") from error
    try:
        model = build(about["model"], shape=tuple(about["shape"]), num_classes=about["num_classes"])
        model.load_state_dict(upgrade_tensors(tensors | about["extra"]))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{root / WEIGHTS} is of another model than {DESCRIPTION} says: export the run again"
        ) from error
    return model.to(device).eval()


def read_description(folder: Path) -> dict[str, Any]:
    """Reads model.json. Raises UserError if it is missing, damaged or another program's."""
    path = folder / DESCRIPTION
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a folder that vaelab export wrote") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged, it is no JSON: export the run again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not of this version of vaelab export, or another program's: export the run again")
    sizes, classes = about.get("shape"), about.get("num_classes")
    complete = isinstance(about.get("model"), dict) and isinstance(about.get("extra"), dict)
    complete = complete and isinstance(sizes, list) and len(sizes) == 3 and all(type(n) is int and n > 0 for n in sizes)
    if not complete or not (classes is None or (type(classes) is int and classes > 0)):
        raise UserError(f"{path} is damaged: `model`, `shape`, `num_classes` or `extra` is missing; export again")
    return about


def check_builds(node: dict[str, Any], folder: Path) -> None:
    """Raises UserError if a config node of a model names anything but classes of vaelab's own, which is not run."""
    if "_target_" not in node:
        raise UserError(f"{folder / DESCRIPTION} is damaged: `model` names no class; export the run again")
    if foreign := foreign_targets(node):
        raise UserError(
            f"{folder / DESCRIPTION} builds the model with {foreign[0]}, which is no class of vaelab: it is not run\n"
            f"build the model yourself and load {WEIGHTS} into it, or load the run folder"
        )


def foreign_targets(node: Any) -> list[str]:
    """Lists what a config node would call or read that is no class of vaelab's models and their parts.

    The class itself is looked up, since a name that begins with `vaelab.` can lead anywhere, as
    vaelab.runs.os.system does. Interpolations read the environment, and are refused like it.
    """
    return [str(value) for key, value in _leaves(node) if not _harmless(key, value)]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _harmless(key: str, value: Any) -> bool:
    if key == "_target_":
        return _is_class_of_vaelab(value)
    return not (isinstance(value, str) and "${" in value)


def _is_class_of_vaelab(target: Any) -> bool:
    import importlib

    module, _, name = str(target).rpartition(".")
    if not any(module == known or module.startswith(f"{known}.") for known in BUILDS):  # so no other module is imported
        return False
    try:
        value = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(value, type) and value.__module__.startswith(BUILDS)
