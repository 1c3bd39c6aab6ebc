"""What commands on a user's own images share: their classes and codes, and the files of the images that come back."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.core.terminal import cut

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.datasets.images import Found
    from vaelab.runs.trained import Trained

LONGEST = 200
"""Most characters of a file's name, or of a folder's: file systems take 255 bytes."""
SOFTWARE = "vaelab decode"
"""Mark in the files that vaelab decode writes."""


# --- images to codes --------------------------------------------------------------------------


def labels_of(found: Found, trained: Trained, label: Tensor | None) -> Tensor | None:
    """Returns the images' labels, [N] int64 or [N, A], or None where neither the model nor the folders have any.

    `label` for all, or the class folders, each of which is the class of that name in training. Folders of other names
    are numbered in alphabetical order where the model takes no labels, and refused where it does.
    """
    import torch

    from vaelab.nn.conditions import for_all

    if label is not None:
        return for_all(label, len(found.names))
    conditional, classes = trained.model.conditional, trained.classes
    if found.labels is None or found.classes is None or (conditional and not trained.model.by_class):
        if not conditional:
            return None
        example = f"label={classes.name(0)}" if trained.model.by_class else trained.model.condition.example
        raise UserError(
            f"label: the model takes images with their labels\ngive {example}, say, for all of them"
            + ", or put them into a folder for each class" * trained.model.by_class
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


def binary(trained: Trained, found: Found) -> Tensor:
    """Returns all images as a model of binary pixels sees them, [N, C, H, W] uint8, 0 or 1."""
    import torch

    from vaelab.datasets.images import as_model_sees
    from vaelab.inference.batches import batch_size

    parts = torch.arange(len(found.names)).split(batch_size(trained.model.shape))
    return torch.cat([as_model_sees(found.split.batch(part).images, (0.0, 1.0), True).byte() for part in parts])


# --- images that come back --------------------------------------------------------------------


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
                save(picture, out / names[row])
            bar.update(len(index))


def _is_own(path: Path) -> bool:
    """Whether an image was written by vaelab decode, and is no original of the same name."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:  # raised for files that are no image, too
        return False


def save(picture: Any, path: Path) -> None:
    """Writes [H, W, C] uint8 as PNG, grey or RGB, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        image.save(partial, format="PNG", pnginfo=mark)
