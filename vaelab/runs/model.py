"""The model of a run, rebuilt from its config and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.core.errors import UserError
from vaelab.runs.config import read_config
from vaelab.runs.layout import Files, find
from vaelab.runs.records import checkpoint_name, checkpoint_path, read_checkpoint

if TYPE_CHECKING:
    from vaelab.models import Model


def load(
    run: str | Path, checkpoint: str = "best", device: str = "cpu", prior: str | None = None, trust: bool = False
) -> Model:
    """Loads the trained model of a run, in eval mode.

    run: a run folder, `last`, or a folder that vaelab export wrote, which holds one checkpoint's weights; the latter
    also from the Hugging Face hub, as hf://USER/NAME or hf://USER/NAME@REVISION.
    checkpoint: `best` or `last`; of a run that has no best one yet, `best` is the last. device: where to put it.
    prior: the name of one that vaelab prior has fitted to the run, which takes the place of the model's own. trust:
    whether to build what the folder names whatever it is, which runs its maker's code; without, only what stands on
    the list of `vaelab.runs.gate`.
    Raises UserError if the folder is no run, if the checkpoint is missing or damaged, or the prior is of other weights.
    """
    from vaelab.core.config import check
    from vaelab.core.renames import upgrade_tensors
    from vaelab.runs import exported, gate, hub, priors

    if str(run).startswith(hub.SCHEME):
        run = hub.fetch(str(run))
    if exported.holds_export(run):
        if prior is not None:
            raise UserError(f"prior={prior}: {run} is an export, which has none: name the run folder")
        return exported.load(run, device, trust)
    folder = find(run)
    config = read_config(folder)
    gate.check(config["model"], "model", Files(folder).config, trust)
    checkpoint = checkpoint_name(folder, checkpoint)
    saved = read_checkpoint(checkpoint_path(folder, checkpoint))
    check(config["model"], "model")
    try:
        model = with_weights(
            config["model"], saved["shape"], saved["num_classes"], upgrade_tensors(saved["state_dict"])
        )
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: checkpoints/{checkpoint}.ckpt is of another model than config.yaml says") from error
    model = model.to(device).eval()
    model.likelihood.missing = config["dataset"].get("missing") == "mask"
    if prior is not None:
        model.draw_from(priors.read(folder, prior, model, checkpoint, trust).eval())
    return model


def with_weights(node: dict[str, Any], shape: list[int], num_classes: int | None, state: dict[str, Any]) -> Model:
    """Builds a model and gives it its weights. Raises RuntimeError if they are another's, before it takes memory.

    node: the model's config, checked. Files that disagree may ask for a model of any size.
    """
    import torch

    from vaelab.core.config import build

    sizes: dict[str, Any] = {"shape": tuple(shape), "num_classes": num_classes}
    try:
        with torch.device("meta"):
            plan = _sizes(build(node, **sizes).state_dict())
    except RuntimeError as error:
        if "meta" not in str(error).lower():
            raise
        plan = _sizes(state)  # a model that looks at its values while it is built, as a flow does, has no plan
    if plan != _sizes(state):
        raise RuntimeError("the weights are of another model")
    model = build(node, **sizes)
    model.load_state_dict(state)
    return model


def _sizes(state: dict[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {name: tuple(value.shape) if hasattr(value, "shape") else None for name, value in state.items()}
