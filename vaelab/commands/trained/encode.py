"""`vaelab encode` turns the user's own images into codes, as an .npz file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.types import NonNegativeInt

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.datasets.images import Found
    from vaelab.runs.trained import Trained


class Options(NamedTuple):
    """The keys of conf/encode.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    device: str
    input: str
    out: str
    resize: bool
    label: NonNegativeInt | str | None
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab encode` with these arguments. Returns the exit code."""
    return command.single("encode", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, encodes, writes the file and says what is in it."""
    from vaelab.core.config import options
    from vaelab.datasets import images

    asked = options(Options, config)
    out = Path(asked.out).expanduser()
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"out={asked.out}: codes are written to a file that ends in .npz, as in out=codes.npz")
    if not Path(asked.input).expanduser().exists():
        raise UserError(f"input={asked.input}: there is no such file or folder")
    from vaelab.runs.trained import Trained

    trained = Trained(asked.run, asked.checkpoint, asked.device, trust=asked.trust)
    found = images.find(asked.input, trained.model.shape, "input", asked.resize)
    labels = labels_of(found, trained, viewing.class_of(trained, asked.label))
    arrays = encoded(trained, found, labels)
    _write(out, arrays, _about(trained, found, labels), found.names, labels)
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in arrays.items())
    if asked.label is not None and found.classes is not None:
        print(f"label={asked.label} for all images: their folders are not looked at")
    count = f"{len(found.names):,} image{'s' * (len(found.names) != 1)}"
    print(f"{count} encoded by {trained.folder} ({trained.checkpoint} checkpoint): {shapes}")
    print(f"codes: {out}")


def labels_of(found: Found, trained: Trained, label: int | None) -> Tensor | None:
    """Returns the images' classes, [N] int64, or None where neither the model nor the folders have any.

    `label` for all, or the class folders, each of which is the class of that name in training. Folders of other names
    are numbered in alphabetical order where the model takes no labels, and refused where it does.
    """
    import torch

    if label is not None:
        return torch.full((len(found.names),), label)
    conditional, classes = trained.model.conditional, trained.classes
    if found.labels is None or found.classes is None:
        if not conditional:
            return None
        raise UserError(
            f"label: the model takes images with their labels\ngive label={classes.name(0)}, say, for all of them, or "
            "put them into a folder for each class"
        )
    numbers = [classes.find(name) for name in found.classes]
    unknown = next((name for name, number in zip(found.classes, numbers, strict=True) if number is None), None)
    if unknown is None:
        return torch.tensor(numbers)[found.labels]
    if conditional:
        raise UserError(
            f"input: the folder `{unknown}` is no class of the model, whose classes are {classes.words}\n"
            "name the folders by their classes, or give label= for all images"
        )
    return found.labels


def encoded(trained: Trained, found: Found, labels: Tensor | None) -> dict[str, Tensor]:
    """Returns the codes of all images by their names in the file, [N, ...]; images are read a batch at a time."""
    import torch
    from tqdm import tqdm

    from vaelab.datasets.images import as_model_sees
    from vaelab.inference.batches import batch_size

    model = trained.model
    binary = trained.dataset["binarize"] != "none"
    parts: list[dict[str, Tensor]] = []
    bar = tqdm(total=len(found.names), desc="encoding", unit="image", delay=2, leave=False, disable=None)
    with bar, torch.inference_mode():
        for index in torch.arange(len(found.names)).split(batch_size(model.shape)):
            x = found.split.batch(index).images.to(model.device)
            given = labels[index].to(model.device) if model.conditional and labels is not None else None
            coded = model.encode(as_model_sees(x, trained.pixel_range, binary), given).outputs
            parts.append({name: values.cpu() for name, values in coded.items()})
            if not all(values.isfinite().all() for values in parts[-1].values()):
                broken = f"checkpoint={trained.checkpoint}: codes of this model are NaN or infinite"
                raise UserError(f"{broken}\ntake the other checkpoint, or train again")
            bar.update(len(index))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _about(trained: Trained, found: Found, labels: Tensor | None) -> dict[str, Any]:
    """Describes the origin of the codes: plain data for the file."""
    from vaelab import __version__, runs

    point = runs.read_checkpoint(runs.checkpoint_path(trained.folder, trained.checkpoint))
    classes = {}
    if found.classes is not None and found.labels is not None and labels is not None:
        classes = {str(n): found.classes[i] for n, i in zip(labels.tolist(), found.labels.tolist(), strict=True)}
    return {
        "vaelab": __version__,
        "run": trained.config["run"]["name"],
        "model": type(trained.model).__name__,
        "checkpoint": {"name": trained.checkpoint, "epoch": point["epoch"] + 1, "step": point["global_step"]},
        "shape": list(trained.model.shape),
        "latents": trained.model.blank().name,
        "classes": classes,
    }


def _write(
    out: Path, arrays: dict[str, Tensor], about: dict[str, Any], names: list[str], labels: Tensor | None
) -> None:
    """Writes the file whole or not at all; nothing in it is pickled."""
    import numpy as np

    columns: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
    if labels is not None:
        columns["labels"] = labels.numpy()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as partial, partial.open("wb") as file:
            np.savez_compressed(file, files=np.array(names), about=np.array(json.dumps(about)), **columns)
    except OSError as error:
        raise UserError(f"out={out}: it cannot be written ({error.strerror}): name another file") from error
