"""`vaelab compress` turns images into a small file: codes of a model with a codebook, or binary images by a VAE."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.commands.trained import own_images, viewing
from vaelab.core.errors import UserError
from vaelab.core.types import AskedLabel

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
    label: AskedLabel | None
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
    from vaelab.inference import packed

    asked = options(Options, config)
    out = Path(asked.out).expanduser()
    if out.is_dir():
        raise UserError(f"out={asked.out}: this is a folder: name a file, as in out=photos.vaelab")
    if out.exists() and not packed.begins(out):
        raise UserError(f"out={asked.out}: this file is there, and none of vaelab compress: name another")
    if not Path(asked.input).expanduser().exists():
        raise UserError(f"input={asked.input}: there is no such file or folder")
    from vaelab.inference import bitsback, entropy
    from vaelab.runs.trained import Trained

    entropy.constriction()
    trained = Trained(asked.run, asked.checkpoint, asked.device, prior=asked.fitted, trust=asked.trust)
    discrete = trained.model.layout.codes is not None
    if not discrete:
        bitsback.require(trained.model, trained.dataset["binarize"] != "none")
    found = images.find(asked.input, trained.model.shape, "input", asked.resize, trained.bits)
    labels = _needed(
        trained, asked.fitted, own_images.labels_of(found, trained, viewing.label_of(trained, asked.label))
    )
    file, said = (_codes if discrete else _images)(trained, asked, found, labels)
    packed.write(out, file)
    print(said)
    print(f"file: {out}")


def _codes(trained: Trained, asked: Options, found: Found, labels: Tensor | None) -> tuple[Packed, str]:
    """Codes the images' codes. Returns the file's content, and what they cost and keep, in words."""
    from vaelab.inference import entropy, packed

    indices = own_images.encoded(trained, found, labels)["indices"]
    codes = indices.flatten(1).int().numpy()
    words, bits = entropy.encode(entropy.steps(codes, trained.model, asked.fitted, labels))
    file = _packed(packed.CODES, trained, asked, found, labels, zlib.crc32(codes.tobytes()), words)
    shape = " x ".join(map(str, trained.model.layout.shape))
    how = "their frequencies in the images before" if asked.fitted is None else f"prior={asked.fitted}"
    size = f"codes: {file.sizes[0]:,} bytes, {packed.HEADER.size} of them a header"
    lines = [
        f"{_counted(trained, file)}: {shape} codes of {trained.model.layout.codes}",
        f"{size}; their rate under {how}: {bits / 8:,.0f} bytes",
        *_beside(file),
        _comparison(trained, found, indices, labels, file),
    ]
    return file, "\n".join(lines)


def _images(trained: Trained, asked: Options, found: Found, labels: Tensor | None) -> tuple[Packed, str]:
    """Codes the images themselves, with bits back. Returns the file's content, and what it costs, in words."""
    from vaelab.core.terminal import table
    from vaelab.evaluation.metrics import formats
    from vaelab.inference import bitsback, packed

    pixels = own_images.binary(trained, found)
    words, initial, bits = bitsback.encode(trained.model, pixels, labels)
    file = _packed(packed.IMAGES, trained, asked, found, labels, zlib.crc32(pixels.numpy().tobytes()), words)
    rows = [
        ("-ELBO", bits),
        ("this model, net", 8 * (len(words) - initial)),
        ("this model, the file", 8 * file.sizes[0]),
        *((name, 8 * len(content)) for name, content in formats.lossless(pixels)),
    ]
    cells = [[name, f"{count / pixels.numel():.4f}", f"{count / 8:,.0f}"] for name, count in rows]
    lines = [
        f"{_counted(trained, file)}: black and white pixels, none of which is lost",
        f"images: {file.sizes[0]:,} bytes, {packed.HEADER.size} of them a header, {initial} random ones to start with",
        *_beside(file),
        table([["", "bits per pixel", "bytes"], *cells], {1, 2}, {}),
    ]
    return file, "\n".join(lines)


def _packed(
    kind: bytes, trained: Trained, asked: Options, found: Found, labels: Tensor | None, checksum: int, words: bytes
) -> Packed:
    from vaelab.inference import packed
    from vaelab.runs.priors import fingerprint

    return packed.Packed(
        kind,
        fingerprint(trained.model),
        packed.NO_PRIOR if asked.fitted is None else fingerprint(trained.model.require_prior()),
        len(found.names),
        [] if labels is None else labels.tolist(),
        found.names if asked.names else [],
        checksum,
        words,
    )


def _needed(trained: Trained, prior: str | None, labels: Tensor | None) -> Tensor | None:
    """Returns the labels if decoding needs them. Raises UserError if it does and there are none."""
    told = prior is not None and getattr(trained.model.prior, "classes", None) is not None
    if told and labels is None:
        raise UserError(
            f"label: prior={prior} is told the class of an image: give label=, or a folder for each class\n"
            f"vaelab prior run={trained.folder} prior={prior} prior.labels=false fits one that is not, in its place"
        )
    if trained.model.conditional and not trained.model.by_class:
        raise UserError("run: its model is told vectors, and a file of vaelab compress holds classes: train it without")
    return labels if told or trained.model.conditional else None


def _counted(trained: Trained, file: Packed) -> str:
    return f"{file.count:,} image{'s' * (file.count != 1)} by {trained.folder} ({trained.checkpoint} checkpoint)"


def _beside(file: Packed) -> list[str]:
    """Says what labels and names take, if there are any."""
    what = " and ".join(word for word, there in (("labels", file.labels), ("names", file.names)) if there)
    return [f"{what}: {file.sizes[1]:,} bytes"] if what else []


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
