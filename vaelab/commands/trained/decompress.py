"""`vaelab decompress` makes images of a file that `vaelab compress` wrote."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import own_images
from vaelab.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.inference.packed import Packed
    from vaelab.runs.trained import Trained


class Options(NamedTuple):
    """The keys of conf/decompress.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    device: str
    input: str
    out: str
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab decompress` with these arguments. Returns the exit code."""
    return command.single("decompress", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks the file against the run, decodes what it holds and writes the images."""
    from vaelab.core.config import options
    from vaelab.inference import entropy, packed

    asked = options(Options, config)
    entropy.constriction()
    file = packed.read(asked.input)
    trained, prior = _opened(asked, file)
    names = own_images.image_names(
        file.names or [f"{row:06d}.png" for row in range(file.count)], f"input={asked.input}: it"
    )
    out = own_images.folder(asked.out, names)
    labels = _labels(trained, asked, file)
    damaged = UserError(
        f"input={asked.input}: what is in it is not what was written\n"
        "is this the kind of machine and the version of torch that it was compressed with?"
    )
    try:
        found = _codes(file, trained, prior, labels) if file.kind == packed.CODES else _images(file, trained, labels)
    except (AssertionError, LookupError, ValueError) as error:
        raise damaged from error
    if zlib.crc32(found.numpy().tobytes()) != file.checksum:
        raise damaged
    if file.kind == packed.CODES:
        indices = found.long().view(file.count, *trained.model.layout.shape)
        own_images.write_images(trained, indices, labels if trained.model.conditional else None, names, out)
    else:
        for picture, name in zip(255 * found.permute(0, 2, 3, 1).numpy(), names, strict=True):
            own_images.save(picture, out / name)
    print(f"{file.count:,} images decoded by {trained.folder} ({trained.checkpoint} checkpoint)")
    print(f"images: {out}")


def _codes(file: Packed, trained: Trained, prior: str | None, labels: Tensor | None) -> Tensor:
    """Returns the codes in a file, [N, P] int32."""
    import numpy as np
    import torch

    from vaelab.inference import entropy

    codes = np.zeros((file.count, math.prod(trained.model.layout.shape)), np.int32)
    entropy.decode(file.words, entropy.steps(codes, trained.model, prior, labels))
    return torch.from_numpy(codes)


def _images(file: Packed, trained: Trained, labels: Tensor | None) -> Tensor:
    """Returns the images in a file, [N, C, H, W] uint8, 0 or 1."""
    from vaelab.inference import bitsback

    return bitsback.decode(trained.model, file.words, file.count, labels)


def _opened(asked: Options, file: Packed) -> tuple[Trained, str | None]:
    """Opens the run with the prior that the file was written with, and its name; None for none."""
    from vaelab import runs
    from vaelab.inference import bitsback, packed
    from vaelab.runs.priors import fingerprint
    from vaelab.runs.trained import Trained

    found = runs.find(asked.run)
    for name in [None] if file.prior == packed.NO_PRIOR else runs.Files(found).fitted:
        trained = Trained(found, asked.checkpoint, asked.device, prior=name, trust=asked.trust)
        if fingerprint(trained.model) != file.model and name is None:
            raise UserError(
                f"input={asked.input}: it was written by another model than the {trained.checkpoint} checkpoint of "
                f"{found}\nname its run=, or checkpoint=last"
            )
        if name is None or fingerprint(trained.model.require_prior()) == file.prior:
            if file.kind == packed.CODES:
                trained.model.layout.require_codes(type(trained.model).__name__)
            else:
                bitsback.require(trained.model, trained.dataset["binarize"] != "none")
            _check_size(file, trained, asked.input)
            return trained, name
    raise UserError(
        f"input={asked.input}: it was written with a fitted prior that {found} does not have\n"
        "name its run=, or fit the prior as it was"
    )


def _check_size(file: Packed, trained: Trained, path: str) -> None:
    """Raises UserError for more codes or images than fit half of the free memory: a header can say anything."""
    import psutil

    from vaelab.inference import packed

    model, codes = trained.model, file.kind == packed.CODES
    what, each = ("codes", 12 * math.prod(model.layout.shape)) if codes else ("images", 3 * math.prod(model.shape))
    size = file.count * each
    free = psutil.virtual_memory().available // 2
    if size > free:
        raise UserError(
            f"input={path}: its {what} take {size / 2**20:,.0f} MiB, and {free / 2**20:,.0f} may be used here\n"
            "compress fewer images at a time"
        )


def _labels(trained: Trained, asked: Options, file: Packed) -> Any:
    """Returns the labels in the file, [N], or None. Raises UserError where the model does not know one."""
    import torch

    told = trained.model.conditional or getattr(trained.model.prior, "classes", None) is not None
    if not told:
        return None
    labels = torch.tensor(file.labels, dtype=torch.int64)
    if len(labels) != file.count or labels.min() < 0 or labels.max() >= trained.model.classes:
        raise UserError(f"input={asked.input}: it has no label for each image that this model knows\nname its run=")
    return labels
