"""Records that a run keeps of itself: summary.json, metrics.csv, its evaluations, its checkpoints."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from vaelab.core.errors import UserError
from vaelab.core.files import damaged, read_json, write_text
from vaelab.runs.layout import Files

if TYPE_CHECKING:
    from torch import Tensor

RESTORE = "restore it, or train again"


class Best(TypedDict, total=False):
    epoch: int | None
    by: str | None
    value: float | None


Trained = TypedDict("Trained", {"class": str, "parameters": int, "latent_dimensions": int | None}, total=False)
Data = TypedDict(
    "Data",
    {
        "class": str, "shape": list[int], "dimensions": int, "train": int, "val": int, "test": int,
        "num_classes": int | None, "class_names": list[str] | None, "binarize": str, "pixel_range": list[float],
    },
    total=False,
)  # fmt: skip


class Objective(TypedDict, total=False):
    likelihood: str
    log_likelihood_is: str
    reduction: str
    beta: float | None
    beta_if_mean_reduced: float | None  # fmt: skip


class Summary(TypedDict, total=False):
    """Content of summary.json, as far as it is there: `vaelab.training.summary.collect` explains it."""

    status: str | None
    name: str | None
    error: str | None
    identity: str | None
    metrics: dict[str, float] | None
    best: Best | None
    epochs: int | None
    steps: int | None
    seconds: float | None
    findings: list[dict[str, str]] | None
    kl_per_dim: dict[str, list[float]] | None
    model: Trained | None
    data: Data | None
    objective: Objective | None
    versions: dict[str, str] | None
    commit: str | None
    device: str | None
    processes: int | None


MEASURE_AGAIN = "delete it, and run vaelab eval again"


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Writes the summary.json of a run."""
    write_text(Files(run).summary, json.dumps(summary, indent=2) + "\n")


def read_summary(run: Path) -> dict[str, Any]:
    """Reads the summary.json of a run, {} if it has none yet. Raises UserError if it is damaged."""
    path = Files(run).summary
    summary = read_json(path, RESTORE)
    try:
        _kinds().validate_python(summary, strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise damaged(path, f"its '{place}' is of another type", RESTORE) from error
    if not all("code" in finding for finding in summary.get("findings") or []):
        raise damaged(path, "its findings are no findings", RESTORE)
    return summary


@cache
def _kinds() -> TypeAdapter[Summary]:
    return TypeAdapter(Summary)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads the rows of metrics.csv with their filled cells, [] without a file. Raises UserError if it is damaged."""
    path = Files(run).metrics
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, str(error), RESTORE) from error
    names, rows = lines[0] if lines else [], []
    if "step" not in names:
        raise damaged(path, "it has no column 'step'", RESTORE)
    for number, cells in enumerate(lines[1:], 2):
        try:
            rows.append({name: float(cell) for name, cell in zip(names, cells, strict=True) if cell})
            int(rows[-1]["step"])
        except (ValueError, KeyError, OverflowError) as error:
            raise damaged(path, f"line {number} is cut short or no row of numbers", RESTORE) from error
    return rows


def read_vectors(run: Path, name: str) -> tuple[list[float], dict[str, list[list[float]]]]:
    """Reads a vector of each epoch, `kl_per_dim` or `code_counts`: the epochs, and a row of values for each, by level.

    The level is "" where there is only one. [] and {} without a file. Raises UserError if it is damaged.
    """
    path = Files(run).vectors[name]
    if not path.is_file():
        return [], {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = list(csv.reader(file, strict=True)) or [[]]
        if names[:2] != ["step", "epoch"] or any(len(row) != len(names) for row in rows):
            raise ValueError("its rows are not of a step, an epoch and the same components")
        values = [[float(cell or "nan") for cell in row] for row in rows]
    except (csv.Error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise damaged(path, str(error), RESTORE) from error
    places: dict[str, list[int]] = {}
    for place, component in enumerate(names[2:], 2):
        places.setdefault(component.rpartition("_")[0], []).append(place)
    of = {level: [[row[place] for place in own] for row in values] for level, own in places.items()}
    return [row[1] for row in values], of


def write_evaluation(run: Path, evaluation: dict[str, Any]) -> None:
    """Writes the evaluation of a split, under the prior that it names."""
    path = Files(run).evaluation(evaluation["split"], evaluation.get("prior", {}).get("name"))
    write_text(path, json.dumps(evaluation, indent=2) + "\n")


def read_evaluation(run: Path, split: str, prior: str | None = None) -> dict[str, Any]:
    """Reads the evaluation of a split under the model's own prior or a fitted one; {} if there is none.

    Raises UserError if the file is damaged.
    """
    return read_json(Files(run).evaluation(split, prior), MEASURE_AGAIN)


def checkpoint_path(run: Path, name: str) -> Path:
    """Returns the path of the `best` or `last` checkpoint of a run. Raises UserError if it is missing."""
    path = Files(run).checkpoint(name)
    if not path.is_file():
        others = [other.stem for other in Files(run).saved]
        remedy = f"there is {others[0]}.ckpt (checkpoint={others[0]})" if others else "the run has none: train again"
        raise UserError(f"{path} does not exist: {remedy}")
    return path


def checkpoint_name(run: Path, asked: str) -> str:
    """Returns the name of the checkpoint to take: `last` for `best` where a run ended before its first validation."""
    files = Files(run)
    alone = not files.checkpoint("best").is_file() and files.checkpoint("last").is_file()
    return "last" if asked == "best" and alone else asked


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's tensors and plain data to the CPU; nothing in it is executed.

    Raises UserError if the file is damaged, be it by a single byte, or holds anything else.
    """
    import pickle
    import zipfile

    import torch

    try:
        _check_sums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := _wrong(saved):
            raise ValueError(wrong)
    except pickle.UnpicklingError as error:
        why = "it is damaged, or holds more than tensors and plain data"
        raise UserError(f"{path} is refused: {why}\n{_other(path)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})\n{_other(path)}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        why = str(error) if isinstance(error, ValueError | zipfile.BadZipFile) else "it cannot be read"
        raise UserError(f"{path} is damaged: {why}\n{_other(path)}") from error
    return saved


def _check_sums(path: Path) -> None:
    """Raises ValueError or BadZipFile unless every record has the checksum that it was written with.

    Torch writes them into the file, which is a zip archive, and does not look at them. Nothing in it is compressed.
    """
    import pickle
    import zipfile

    with path.open("rb") as file:
        if file.read(2) not in (b"PK", b""):
            raise pickle.UnpicklingError("it is no archive")
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("its records are compressed")
        if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
            raise ValueError("its records are larger than the file")
        if broken := file.testzip():
            raise ValueError(f"the checksum of its record {broken} is another")


PARTS = {
    "epoch": int, "global_step": int, "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list,
    "lr_schedulers": list, "shape": list, "num_classes": (int, type(None)), "window": dict, "epoch_means": dict,
}  # fmt: skip
"""What a checkpoint holds, and of which types."""
MOST_VALUES = 2**31
"""Values of the largest image that a checkpoint can be of."""


def _wrong(saved: Any) -> str:
    """Says what is wrong with the content of a checkpoint: nothing, if it is one."""
    if not isinstance(saved, dict):
        return "it holds no checkpoint"
    for name, kind in PARTS.items():
        if name not in saved or not isinstance(saved[name], kind):
            return f"its `{name}` is missing, or of another type"
    shape, classes = saved["shape"], saved["num_classes"]
    sizes = [*shape, *([] if classes is None else [classes])]
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in sizes) or math.prod(sizes) > MOST_VALUES:
        return f"its `shape` or `num_classes` is none: {str(sizes)[:60]}"
    reported = saved.get("reported", {"metrics": {}, "vectors": {}})
    if not isinstance(reported, dict) or not _reported(reported.get("metrics"), reported.get("vectors")):
        return "its `reported` is of another type"
    means = {"names", "sums", "vectors", "count"}
    if not (saved["window"].keys() >= means and saved["epoch_means"].keys() >= means):
        return "its `window` or `epoch_means` is incomplete"
    return "one of its tensors is larger than its values" if any(map(_inflated, _tensors(saved))) else ""


def _reported(metrics: Any, vectors: Any) -> bool:
    """Whether these are metrics by name, and vectors by part and name."""
    import torch

    parts = [metrics, vectors, *(vectors.values() if isinstance(vectors, dict) else ())]
    return (
        all(isinstance(part, dict) for part in parts)
        and all(isinstance(value, float) for value in metrics.values())
        and all(isinstance(value, torch.Tensor) for part in vectors.values() for value in part.values())
    )


def _tensors(node: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _tensors(value)


def _inflated(tensor: Tensor) -> bool:
    """Whether a tensor says that it has more values than it holds, of which a copy could be of any size."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _other(path: Path) -> str:
    """Says what to take in the place of a damaged checkpoint: one beside it that is whole."""
    import pickle
    import zipfile

    for other in sorted(path.parent.glob("*.ckpt")):
        with suppress(OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError):
            if other != path:
                _check_sums(other)
                return f"{other.name} beside it is whole: take checkpoint={other.stem}, or train again"
    return "there is no other that is whole: train again"
