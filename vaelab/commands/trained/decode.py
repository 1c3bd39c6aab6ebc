"""`vaelab decode` turns codes into images, as PNG files, or into the rows of a table."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import own_images, own_tables, viewing
from vaelab.core.errors import UserError
from vaelab.core.files import NO_ARRAYS
from vaelab.core.types import AskedLabel

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.models import Model
    from vaelab.runs.trained import Trained


class Options(NamedTuple):
    """The keys of conf/decode.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    device: str
    codes: str
    out: str
    label: AskedLabel | None
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab decode` with these arguments. Returns the exit code."""
    return command.single("decode", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks the codes against the model, decodes them and writes the images."""
    from vaelab.core.config import options

    asked = options(Options, config)
    arrays = read_columns(asked.codes) if own_tables.is_table(asked.codes) else read(asked.codes)
    from vaelab.runs.trained import Trained

    trained = Trained(asked.run, asked.checkpoint, asked.device, trust=asked.trust)
    codes = _codes(arrays, trained.model, asked.codes)
    labels = _labels(arrays, trained, asked, len(codes))
    own_tables.check_kind(trained, asked.out, own_tables.is_table(asked.out))
    if trained.fields is None:
        names = _names(arrays, asked.codes, len(codes))
        out = own_images.folder(asked.out, names)
        own_images.write_images(trained, codes, labels, names, out)
    else:
        own_tables.write(out := Path(asked.out).expanduser(), _rows(trained, codes, labels))
    if note := _other_run(arrays, trained):
        print(note)
    what = "images" if trained.fields is None else "rows"
    print(f"{len(codes):,} {what} decoded by {trained.folder} ({trained.checkpoint} checkpoint)")
    print(f"{what}: {out}")


def _rows(trained: Trained, codes: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Decodes the mean row of each code to a table."""
    import torch

    from vaelab.inference import coding

    with torch.no_grad():
        means = [trained.model.likelihood.mean(raw).cpu() for raw in coding.raw(trained.model, codes, labels)]
    return own_tables.columns(trained, torch.cat(means), labels)


def read_columns(path: str) -> dict[str, Any]:
    """Reads codes from a CSV file as vaelab encode writes it: an array of the columns NAME_0, NAME_1, ... by its name.

    Raises UserError for a file that is no table, or a column that holds no numbers.
    """
    import numpy as np

    from vaelab.datasets.own import table_file

    cells, arrays = table_file.read(path, "codes"), {}
    for name, column in cells.items():
        stem, _, place = name.rpartition("_")
        if stem and place.isdigit():
            if column.dtype.kind != "f":
                raise UserError(f"codes={path}: column {name} holds texts, such as {str(column[0])!r}, not numbers")
            arrays.setdefault(stem, {})[int(place)] = column
    return {stem: np.stack([parts[i] for i in sorted(parts)], 1) for stem, parts in arrays.items()}


def read(path: str) -> dict[str, Any]:
    """Reads all arrays of an .npz file into numpy. Raises UserError if it is missing, damaged or of another kind."""
    import numpy as np

    file = Path(path).expanduser()
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited for
            raise UserError(f"codes={path}: this is no .npz file: vaelab encode writes one")
        with np.load(file, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise UserError(f"codes={path}: this is no .npz file: vaelab encode writes one")
            _check_size(arrays.zip, path)
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise UserError(f"codes={path}: there is no such file: vaelab encode writes one") from None
    except IsADirectoryError:
        raise UserError(f"codes={path}: this is a folder: name the file that vaelab encode wrote") from None
    except (*NO_ARRAYS, MemoryError) as error:
        raise UserError(
            f"codes={path}: it is damaged, or not an .npz file of plain arrays\nwrite it anew with vaelab encode"
        ) from error


def _check_size(file: zipfile.ZipFile, path: str) -> None:
    """Raises UserError if the arrays do not fit half of the free memory, or their headers say more than they hold."""
    import numpy as np
    import psutil

    size, free = sum(entry.file_size for entry in file.infolist()), psutil.virtual_memory().available // 2
    if size > free:
        raise UserError(
            f"codes={path}: its arrays are of {size / 2**20:,.0f} MiB, and {free / 2**20:,.0f} may be used here\n"
            "decode them in parts"
        )
    for entry in file.infolist():
        with file.open(entry) as array:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[np.lib.format.read_magic(array)](array)
            if math.prod(shape) * dtype.itemsize > entry.file_size or min(shape, default=0) < 0:
                raise ValueError("an array is larger than the file")


def _codes(arrays: dict[str, Any], model: Model, path: str) -> Tensor:
    """Returns the codes to decode, [N, ...], on the CPU. Raises UserError if they are not of the model."""
    import torch

    layout = model.layout
    what = " or ".join(f"`{name}`" for name in reversed(layout.arrays))
    name = next((name for name in layout.arrays if name in arrays), None)
    if name is None:
        holds = ", ".join(f"`{n}`" for n in arrays if n not in ("files", "about", "labels")) or "no codes"
        raise UserError(f"codes={path}: it holds {holds}, but {type(model).__name__} takes {what}\ntake another run=")
    values, discrete, one = arrays[name], layout.codes is not None, layout.shape
    if values.dtype.kind not in ("iu" if discrete else "fiu"):
        raise UserError(f"codes={path}: `{name}` must be {'integers' if discrete else 'numbers'}, not {values.dtype}")
    if values.shape[1:] != one or not len(values):
        wanted = ", ".join(["N", *map(str, one)])
        raise UserError(
            f"codes={path}: `{name}` is {list(values.shape)}, but the model takes [{wanted}]\ntake another run="
        )
    if layout.codes is not None:
        least, most, size = int(values.min()), int(values.max()), layout.codes
        if least < 0 or most >= size:
            wrong = least if least < 0 else most
            raise UserError(f"codes={path}: `{name}` holds {wrong}, but the codebook's codes are 0 to {size - 1}")
        return torch.from_numpy(values.astype("int64"))
    codes = torch.from_numpy(values.astype("float32"))
    if bad := int((~codes.isfinite()).any(1).sum()):
        raise UserError(f"codes={path}: `{name}` is NaN or infinite in {bad} of {len(codes)} rows")
    return codes


def _labels(arrays: dict[str, Any], trained: Trained, asked: Options, count: int) -> Tensor | None:
    """Returns labels to decode with, [N] int64 or [N, A], of `label` or of the file; None without a condition."""
    import torch

    from vaelab.nn.conditions import for_all

    label = viewing.label_of(trained, asked.label)
    if not trained.model.conditional:
        return None
    if label is not None:
        return for_all(label, count)
    if "labels" not in arrays:
        example = trained.model.condition.example
        raise UserError(
            f"label: the model takes a label, and codes={asked.codes} holds no `labels`: give {example}, say"
        )
    labels, one = arrays["labels"], trained.model.in_turn(1)
    assert one is not None
    if not trained.model.by_class:
        if labels.shape != (count, one.shape[1]) or labels.dtype.kind not in "iuf":
            raise UserError(f"codes={asked.codes}: `labels` must be {count} x {one.shape[1]} numbers, a row for each")
        return torch.from_numpy(labels).to(one.dtype)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(f"codes={asked.codes}: `labels` must be {count} integers, one for each row")
    if labels.min() < 0 or labels.max() >= trained.model.classes:
        known = f"the model's classes are 0 to {trained.model.classes - 1}"
        raise UserError(f"codes={asked.codes}: `labels` run from {labels.min()} to {labels.max()}, but {known}")
    return torch.from_numpy(labels.astype("int64"))


def _names(arrays: dict[str, Any], path: str, count: int) -> list[str]:
    """Returns a file name for each row, in the image's former sub-folder; numbers where the file has no names."""
    if "files" not in arrays:
        return [f"{row:06d}.png" for row in range(count)]
    files = arrays["files"]
    if files.shape != (count,) or files.dtype.kind != "U":
        raise UserError(f"codes={path}: `files` must be {count} names, one for each row")
    return own_images.image_names(files.tolist(), f"codes={path}: `files`")


def _other_run(arrays: dict[str, Any], trained: Trained) -> str:
    """Returns a line if the codes say that another model made them, else nothing."""
    try:
        about = json.loads(str(arrays["about"]))
        source = (about["run"], about["model"])
    except (KeyError, TypeError, ValueError):  # codes of the user's own making
        return ""
    this = (trained.config["run"]["name"], type(trained.model).__name__)
    return (
        "" if source == this else f"note: the codes are of {source[1]} {source[0]}, the images by {this[1]} {this[0]}"
    )
