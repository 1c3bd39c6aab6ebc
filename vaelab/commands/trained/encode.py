"""`vaelab encode` turns the user's own images, or rows of a table, into codes, as an .npz or a CSV file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import own_images, own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.types import AskedLabel
from vaelab.core.words import counted

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
    label: AskedLabel | None
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
    if out.suffix not in (".npz", ".csv") or out.is_dir():
        raise UserError(f"out={asked.out}: codes are written to a file that ends in .npz or .csv, as in out=codes.npz")
    if not Path(asked.input).expanduser().exists():
        raise UserError(f"input={asked.input}: there is no such file or folder")
    from vaelab.runs.trained import Trained

    trained = Trained(asked.run, asked.checkpoint, asked.device, trust=asked.trust)
    label = viewing.label_of(trained, asked.label)
    if trained.fields is None:
        found = images.find(asked.input, trained.model.shape, "input", asked.resize, trained.bits)
        labels = own_images.labels_of(found, trained, label)
    else:
        rows = own_tables.read(trained, asked.input, "input", label)
        found, labels = rows.found, rows.labels
    arrays = own_images.encoded(trained, found, labels)
    if own_tables.is_table(asked.out):
        numbers = labels.tolist() if labels is not None and labels.ndim == 1 else []
        of_classes = {"label": [trained.classes.name(number) for number in numbers]} if numbers else {}
        own_tables.write(out, {"file": found.names} | own_tables.codes(arrays) | of_classes)
    else:
        _write(out, arrays, _about(trained, found, labels), found.names, labels)
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in arrays.items())
    if asked.label is not None and found.classes is not None:
        print(f"label={asked.label} for all images: their folders are not looked at")
    count = counted(len(found.names), "image" if trained.fields is None else "row")
    print(f"{count} encoded by {trained.folder} ({trained.checkpoint} checkpoint): {shapes}")
    print(f"codes: {out}")


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
