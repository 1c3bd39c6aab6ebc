"""A model's networks as ONNX files, each compared with torch before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError

if TYPE_CHECKING:
    from vaelab.models import Model

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-5
"""Largest difference from torch that is allowed, as a part of the output's largest value where that is above 1."""
BATCHES = (1, 3, 17)
"""Batch sizes at which a file is compared with torch: one, and others than the one that was traced."""
OPSET = 18


class Part(NamedTuple):
    """A module to be exported, with the names of its inputs and outputs."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def require() -> None:
    """Raises UserError if a package that the export needs is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f'onnx=true: {", ".join(missing)} is not installed: pip install "vaelab[onnx]"')


def write(
    model: Model, folder: Path, pixel_range: tuple[float, float], metadata: dict[str, str]
) -> dict[str, float | None]:
    """Writes each of the model's `parts` to a file, such as encoder.onnx, for batches of any size.

    model: on the CPU, in eval mode. metadata: written into all files. Returns each output's
    largest difference from torch, None for indices, which are equal. Raises UserError if torch cannot
    export the model, or a file computes something else.
    """
    differences: dict[str, float | None] = {}
    for part in parts(model):
        path = folder / f"{part.name}.onnx"
        _export(part, example(model, part, 2, pixel_range), path, metadata)
        differences |= compare(model, part, path, pixel_range)
    return differences


def parts(model: Model) -> list[Part]:
    """Makes encoder, decoder and classifier to export; their inputs and outputs are those of docs/export.md."""
    labels = ("labels",) if model.conditional else ()
    given = tuple(model.blank().outputs)
    encoder, decoder = Encoder(model).eval(), Decoder(model).eval()
    taken = model.layout.arrays[0]
    found = [
        Part("encoder", encoder, ("images", *labels), given),
        Part("decoder", decoder, (taken, *labels), ("images",)),
    ]
    if model.semi_supervised:
        found.append(Part("classifier", Classifier(model).eval(), ("images",), ("log_probs",)))
    return found


class Encoder(nn.Module):
    """Module from images in the model's range, with labels if it is conditional, to the tensors of their posteriors."""

    def __init__(self, model: Model):
        super().__init__()
        self.model: Model = model

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        outputs: list[Tensor] = [*self.model.encode(images, labels).outputs.values()]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]


class Decoder(nn.Module):
    """Module from codes, with labels if the model is conditional, to mean images in its range."""

    def __init__(self, model: Model):
        super().__init__()
        self.model: Model = model

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model.likelihood.mean(self.model.decode(codes, labels))


class Classifier(nn.Module):
    """Module from images in the model's range to log q(y|x) of each class."""

    def __init__(self, model: Model):
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.classify(images)


def example(model: Model, part: Part, count: int, pixel_range: tuple[float, float]) -> tuple[Tensor, ...]:
    """Makes inputs of a part, always the same: noise for images, draws from the prior for codes, labels in turn."""
    generator = torch.Generator().manual_seed(count)
    low, high = pixel_range
    first = torch.rand(count, *model.shape, generator=generator) * (high - low) + low
    if part.name == "decoder":
        layout = model.layout
        first = torch.randn(count, *layout.shape, generator=generator)
        if layout.codes is not None:
            first = torch.randint(layout.codes, (count, *layout.shape), generator=generator)
    labels = model.condition.in_turn(count) if "labels" in part.inputs else None
    return (first,) if labels is None else (first, labels)


def _export(part: Part, inputs: tuple[Tensor, ...], path: Path, metadata: dict[str, str]) -> None:
    batch = torch.export.Dim("batch")
    try:
        with _silence():
            program: Any = torch.onnx.export(
                part.module,
                inputs,
                input_names=part.inputs,
                output_names=part.outputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            program.model.metadata_props.update(metadata | {"part": part.name})
            program.save(path, external_data=False)
    except torch.onnx.OnnxExporterError as error:
        why = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"onnx=true: torch cannot export the {part.name} ({why})\nleave it out: onnx=false") from error


def compare(model: Model, part: Part, path: Path, pixel_range: tuple[float, float]) -> dict[str, float | None]:
    """Computes each output's largest difference between onnxruntime and torch, None for equal indices.

    Raises UserError if one is above TOLERANCE. Indices may differ where the codes are equally near.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences: dict[str, float | None] = {}
    for count in BATCHES:
        inputs = example(model, part, count, pixel_range)
        results = session.run(None, {name: x.numpy() for name, x in zip(part.inputs, inputs, strict=True)})
        with torch.inference_mode():
            expected = part.module(*inputs)
        for name, theirs, ours in zip(
            part.outputs, results, expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            got = torch.from_numpy(theirs)
            same, gap = _agree(model, inputs, got, ours) if name == "indices" else _close(got, ours)
            if not same:
                raise UserError(
                    f"onnx=true: `{name}` of {path.name} differs from torch by {gap:.1e} at {count} images, "
                    f"more than {TOLERANCE:.0e}\nnothing is kept of the export; leave it out: onnx=false"
                )
            key = f"{part.name}.{name}"
            differences[key] = None if name == "indices" else max(gap, differences.get(key) or 0.0)
    return differences


def _close(got: Tensor, expected: Tensor) -> tuple[bool, float]:
    """Tells whether two outputs are the same up to rounding, which NaN is not, and their largest difference."""
    if got.shape != expected.shape:
        return False, float("nan")
    gap = (got.double() - expected.double()).abs().max().item()
    return gap <= TOLERANCE * max(1.0, expected.abs().max().item()), gap


def _agree(model: Model, inputs: tuple[Tensor, ...], got: Tensor, expected: Tensor) -> tuple[bool, float]:
    """Tells whether indices are the same but for codes equally near, and how much farther these are at most."""
    if got.shape != expected.shape:
        return False, float("nan")
    whole: Any = model
    with torch.inference_mode():
        gap = whole.excess(got, *inputs).max().item()
        size = whole.features(*inputs).double().square().sum(1).max().item()
    return gap <= TOLERANCE * max(1.0, size), gap


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Holds back what torch and onnxscript print while they export."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
