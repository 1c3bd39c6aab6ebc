"""`vaelab compress` turns images into a small file: the entropy-coded codes of a model with a codebook."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import own_images, viewing
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeInt

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.datasets.images import Found
    from vaelab.inference.packed import Packed
    from vaelab.runs.trained import Trained

COMPARED = 1024
"""Most images that are held against JPEG and WebP."""


class Options(NamedTuple):
    """The keys of conf/compress.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    prior: dict[Literal["name"], str | None]
    device: str
    input: str
    out: str
    resize: bool
    label: NonNegativeInt | str | None
    names: bool
    trust: bool

    @property
    def fitted(self) -> str | None:
        """The name of the fitted prior to code by; None for the codes' frequencies."""
        return self.prior["name"]


def main(arguments: list[str]) -> int:
    """Runs `vaelab compress` with these arguments. Returns the exit code."""
    return command.single("compress", job, [command.prior_named(argument) for argument in arguments])


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, encodes, writes the file and says what it costs and what it keeps."""
    from vaelab.core.config import options
    from vaelab.datasets import images

    asked = options(Options, config)
    out = Path(asked.out).expanduser()
    if out.is_dir():
        raise UserError(f"out={asked.out}: this is a folder: name a file, as in out=photos.vaelab")
    if not Path(asked.input).expanduser().exists():
        raise UserError(f"input={asked.input}: there is no such file or folder")
    from vaelab.inference import entropy, packed
    from vaelab.runs.priors import fingerprint
    from vaelab.runs.trained import Trained

    entropy.require_library()
    trained = Trained(asked.run, asked.checkpoint, asked.device, prior=asked.fitted, trust=asked.trust)
    trained.model.layout.require_codes(type(trained.model).__name__)
    found = images.find(asked.input, trained.model.shape, "input", asked.resize)
    labels = _needed(
        trained, asked.fitted, own_images.labels_of(found, trained, viewing.class_of(trained, asked.label))
    )
    indices = own_images.encoded(trained, found, labels)["indices"]
    codes = indices.flatten(1).int().numpy()
    words, bits = entropy.encode(entropy.steps(codes, trained.model, asked.fitted, labels))
    file = packed.Packed(
        fingerprint(trained.model),
        packed.NO_PRIOR if asked.fitted is None else fingerprint(trained.model.require_prior()),
        len(codes),
        [] if labels is None else labels.tolist(),
        found.names if asked.names else [],
        zlib.crc32(codes.tobytes()),
        words,
    )
    packed.write(out, file)
    _report(trained, asked, file, bits)
    print(_comparison(trained, found, indices, labels, file))
    print(f"file: {out}")


def _needed(trained: Trained, prior: str | None, labels: Tensor | None) -> Tensor | None:
    """Returns the labels if decoding needs them. Raises UserError if it does and there are none."""
    told = prior is not None and getattr(trained.model.prior, "classes", None) is not None
    if told and labels is None:
        raise UserError(
            f"label: prior={prior} is told the class of an image: give label=, or a folder for each class\n"
            f"vaelab prior prior={prior} prior.labels=false fits one that is not"
        )
    return labels if told or trained.model.conditional else None


def _report(trained: Trained, asked: Options, file: Packed, bits: float) -> None:
    """Prints what the codes take, and what the model of the codes asks for."""
    from vaelab.inference import packed

    codes, beside = file.sizes
    shape = " x ".join(map(str, trained.model.layout.shape))
    images = f"{file.count:,} image{'s' * (file.count != 1)}"
    print(
        f"{images} by {trained.folder} ({trained.checkpoint} checkpoint): {shape} codes of {trained.model.layout.codes}"
    )
    how = "their frequencies in the images before" if asked.fitted is None else f"prior={asked.fitted}"
    header = f"codes: {codes:,} bytes, {packed.HEADER.size} of them a header"
    print(f"{header}; their rate under {how}: {bits / 8:,.0f} bytes")
    if beside:
        what = " and ".join(word for word, there in (("labels", file.labels), ("names", file.names)) if there)
        print(f"{what}: {beside:,} bytes")


def _comparison(trained: Trained, found: Found, indices: Tensor, labels: Tensor | None, file: Packed) -> str:
    """Returns a table of what the file's images are worth beside JPEG and WebP of the same size."""
    import torch

    from vaelab.core.terminal import table
    from vaelab.datasets.images import as_model_sees
    from vaelab.evaluation.metrics import formats
    from vaelab.inference import coding

    some = torch.linspace(0, file.count - 1, min(file.count, COMPARED)).round().long().unique()
    seen = as_model_sees(found.split.batch(some).images, trained.pixel_range, trained.dataset["binarize"] != "none")
    given = labels[some] if labels is not None and trained.model.conditional else None
    decoded = coding.decode(trained.model, indices[some], given, trained.pixel_range)
    pixels = file.count * trained.model.shape[1] * trained.model.shape[2]
    rows = formats.beside(trained.unit(seen), decoded, 8 * file.sizes[0] / pixels)
    return table([["", "bits per pixel", "PSNR, dB", "SSIM"], *rows], {1, 2, 3}, {})
