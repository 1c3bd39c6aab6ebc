"""A model outside its run folder: model.safetensors with the weights, model.json with what they are of.

In the layout of the Hugging Face hub, model.json is called config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.files import whole, write_text
from vaelab.core.renames import upgrade_run, upgrade_tensors

if TYPE_CHECKING:
    from vaelab.models import Model
    from vaelab.runs.trained import Trained

DESCRIPTION, HUB_DESCRIPTION, WEIGHTS = "model.json", "config.json", "model.safetensors"
FORMAT = "vaelab-1"
"""Format of model.json that `save` writes and `load` reads."""


def holds_export(folder: str | Path) -> bool:
    """Whether a folder is one that vaelab export wrote, and no run."""
    return _description(Path(folder)).is_file() and not (Path(folder) / "config.yaml").exists()


def _description(folder: Path) -> Path:
    """Returns the path of model.json, or of the hub's config.json if there is no such file."""
    path = folder / DESCRIPTION
    return path if path.exists() or not (folder / HUB_DESCRIPTION).exists() else folder / HUB_DESCRIPTION


def describe(trained: Trained) -> dict[str, Any]:
    """Returns the content of model.json: the model's config, sizes, inputs and outputs, and origin."""
    import torch

    from vaelab import __version__, runs

    model, dataset = trained.model, trained.dataset
    point = runs.read_checkpoint(runs.checkpoint_path(trained.folder, trained.checkpoint))
    layout, (low, high) = model.layout, trained.pixel_range
    sizes: dict[str, Any] = {"latent_dim": layout.dimensions}
    if layout.codes is not None:
        sizes = {"map_size": list(layout.shape), "num_embeddings": layout.codes}
    binary = dataset["binarize"] != "none"
    values = f"{low:g} (black) or {high:g} (white)" if binary else f"from {low:g} (black) to {high:g} (white)"
    values = f"{'RGB' if model.shape[0] == 3 else 'grey'}: {values}" if trained.fields is None else "columns, scaled"
    return {
        "model": trained.config["model"],
        "class": type(model).__name__,
        "shape": list(model.shape),
        "num_classes": model.num_classes,
        "class_names": trained.classes.names,
        "conditional": model.conditional,
        "samples": model.prior is not None,
        "latents": model.blank().name,
        **sizes,
        "likelihood": type(model.likelihood).__name__,
        "pixel_range": [low, high],
        "binary": binary,
        "missing": dataset.get("missing") == "mask",
        "columns": None if trained.fields is None else [field.name for field in trained.fields],
        "images": f"float32 [batch, {', '.join(map(str, model.shape))}], {values}",
        "run": {
            "name": trained.config["run"]["name"],
            "dataset": dataset["_target_"].rpartition(".")[2],
            "checkpoint": trained.checkpoint,
            "epoch": point["epoch"] + 1,
            "step": point["global_step"],
            "commit": runs.read_summary(trained.folder).get("commit"),
        },
        "versions": {"vaelab": __version__, "torch": torch.__version__},
    }


def save(model: Model, folder: Path, description: dict[str, Any], name: str = DESCRIPTION) -> None:
    """Writes both files, each whole or not at all; `format` and `extra` are added to the description.

    name: that of the file with the description.
    """
    from safetensors.torch import save_file

    state = model.state_dict()
    tensors = {name: value.cpu().clone().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    with whole(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "vaelab": FORMAT})
    text = json.dumps({"format": FORMAT} | description | {"extra": extra}, indent=2) + "\n"
    write_text(folder / name, text)


def load(folder: str | Path, device: str = "cpu", trust: bool = False) -> Model:
    """Loads an exported model, in eval mode, on `device`.

    The files may be anyone's: no pickle is read, and unless it is trusted, only what stands on the list of
    `vaelab.runs.gate` is built. Raises UserError for a file that is missing or damaged, or names anything else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from vaelab.core.config import check
    from vaelab.runs import gate
    from vaelab.runs.model import with_weights

    root = Path(folder)
    described = _description(root)
    about = read_description(root)
    about["model"] = upgrade_run({"model": about["model"]})["model"]
    gate.check(about["model"], "model", described, trust)
    check(about["model"], "model")
    try:
        tensors = load_file(root / WEIGHTS)
    except FileNotFoundError:
        raise UserError(
            f"{root / WEIGHTS} does not exist: it belongs to {described.name}; export the run again"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{root / WEIGHTS} is damaged: export the run again") from error
    try:
        state = upgrade_tensors(tensors | about["extra"])
        model = with_weights(about["model"], about["shape"], about["num_classes"], state)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{root / WEIGHTS} is of another model than {described.name} says: export the run again"
        ) from error
    model.likelihood.missing = about.get("missing") is True
    return model.to(device).eval()


def read_description(folder: Path) -> dict[str, Any]:
    """Reads model.json. Raises UserError if it is missing, damaged or another program's."""
    path = _description(folder)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a folder that vaelab export wrote") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged, it is no JSON: export the run again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not of this version of vaelab export, or another program's: export the run again")
    sizes, classes = about.get("shape"), about.get("num_classes")
    model = about.get("model")
    complete = (
        isinstance(model, dict) and isinstance(model.get("_target_"), str) and isinstance(about.get("extra"), dict)
    )
    complete = complete and isinstance(sizes, list) and len(sizes) == 3 and all(type(n) is int and n > 0 for n in sizes)
    if not complete or not (classes is None or (type(classes) is int and classes > 0)):
        raise UserError(f"{path} is damaged: `model`, `shape`, `num_classes` or `extra` is missing; export again")
    return about
