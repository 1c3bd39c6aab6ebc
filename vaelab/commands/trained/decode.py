"""`vaelab decode` turns codes into images, as PNG files."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import viewing
from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.terminal import cut
from vaelab.core.types import NonNegativeInt

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.models import Model
    from vaelab.runs.trained import Trained

NOT_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError)
"""What a damaged archive raises beside the usual."""
LONGEST = 200
"""Most characters of a file's name, or of a folder's: file systems take 255 bytes."""
SOFTWARE = "vaelab decode"
"""Mark in the files that vaelab decode writes."""


class Options(NamedTuple):
    """The keys of conf/decode.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    device: str
    codes: str
    out: str
    label: NonNegativeInt | str | None
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab decode` with these arguments. Returns the exit code."""
    return command.single("decode", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks the codes against the model, decodes them and writes the images."""
    from vaelab.core.config import options

    asked = options(Options, config)
    arrays = read(asked.codes)
    from vaelab.runs.trained import Trained

    trained = Trained(asked.run, asked.checkpoint, asked.device, trust=asked.trust)
    codes = _codes(arrays, trained.model, asked.codes)
    labels = _labels(arrays, trained, asked, len(codes))
    names = _names(arrays, asked.codes, len(codes))
    out = folder(asked.out, names)
    write_images(trained, codes, labels, names, out)
    if note := _other_run(arrays, trained):
        print(note)
    print(f"{len(codes):,} images decoded by {trained.folder} ({trained.checkpoint} checkpoint)")
    print(f"images: {out}")


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
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, RuntimeError, *NOT_ZIP) as error:
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
    """Returns classes to decode with, [N] int64, of `label` or of the file; None unless the model is conditional."""
    import torch

    label = viewing.class_of(trained, asked.label)
    if not trained.model.conditional:
        return None
    if label is not None:
        return torch.full((count,), label)
    if "labels" not in arrays:
        raise UserError(f"label: the model takes a label, and codes={asked.codes} holds no `labels`: give label=0, say")
    labels = arrays["labels"]
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
    return image_names(files.tolist(), f"codes={path}: `files`")


def image_names(files: list[str], where: str) -> list[str]:
    """Returns where to write the images of these files, each a PNG of its own. Raises UserError for what leads outside.

    where: the key and what there holds them, for messages.
    """
    names = [PurePosixPath(name) for name in files]
    for name in names:
        if name.is_absolute() or ".." in name.parts or not name.name or "\0" in str(name):
            raise UserError(f"{where} holds {str(name)!r}, which would lie outside the folder out=")
        if max(map(len, name.parts)) > LONGEST or len(str(name)) > 10 * LONGEST:
            raise UserError(f"{where} holds {cut(str(name), 60)!r}, which is too long for a file's name")
    written = [str(name.with_suffix(".png")) for name in names]
    if len({name.lower() for name in written}) < len(names):  # such as a.jpg beside a.png
        written = [f"{name}.png" for name in names]
    if len(set(written)) < len(names):
        raise UserError(f"{where} holds a name twice: each row is written to a file of its own")
    return written


def folder(given: str, names: list[str]) -> Path:
    """Returns the folder to write into: a new one, or one that holds nothing but images which are written anew."""
    out = Path(given).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={given}: this is a file: name a folder")
    written = set(names)
    for path in out.rglob("*"):
        if path.is_symlink():
            raise UserError(
                f"out={given}: {path.relative_to(out)} is a link, and nothing is written through it\n"
                "name a new or an empty folder"
            )
        if not path.is_dir() and not (path.relative_to(out).as_posix() in written and _is_own(path)):
            raise UserError(
                f"out={given}: the folder holds {path.relative_to(out)}, which is no earlier image of these codes\n"
                "name a new or an empty folder"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={given}: it cannot be made ({error.strerror}): name another folder") from error
    return out


def write_images(trained: Trained, codes: Tensor, labels: Tensor | None, names: list[str], out: Path) -> None:
    """Writes the mean image of each row, a batch at a time."""
    import torch
    from tqdm import tqdm

    from vaelab.inference.batches import batch_size

    model = trained.model
    bar = tqdm(total=len(codes), desc="decoding", unit="image", delay=2, leave=False, disable=None)
    with bar, torch.inference_mode():
        for index in torch.arange(len(codes)).split(batch_size(model.shape)):
            given = None if labels is None else labels[index].to(model.device)
            mean = model.likelihood.mean(model.decode(codes[index].to(model.device), given))
            if not mean.isfinite().all():
                row = int((~mean.isfinite()).flatten(1).any(1).nonzero()[0, 0] + index[0])
                raise UserError(f"codes: the model's image of row {row} is NaN or infinite: are its values too large?")
            pixels = trained.unit(mean.float()).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
            for row, picture in zip(index.tolist(), pixels.numpy(), strict=True):
                _save(picture, out / names[row])
            bar.update(len(index))


def _is_own(path: Path) -> bool:
    """Whether an image was written by vaelab decode, and is no original of the same name."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:  # raised for files that are no image, too
        return False


def _save(picture: Any, path: Path) -> None:
    """Writes [H, W, C] uint8 as PNG, grey or RGB, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        image.save(partial, format="PNG", pnginfo=mark)


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
