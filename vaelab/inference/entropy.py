"""Entropy coding of code indices: about as many bits as a model of the codes gives them, by the library constriction.

A model of codes is a generator of steps. A step is a view of some codes, and the probabilities of each that follow
from the codes of the steps before it. The encoder finds the codes there, the decoder writes them there, so both see
the same probabilities: they are computed in the same blocks, whatever the batch size of those who made the codes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vaelab.core.errors import UserError
from vaelab.inference.batches import one_thread

if TYPE_CHECKING:
    from vaelab.models import Model
    from vaelab.nn.priors.autoregressive import Autoregressive

Codes = np.ndarray[Any, np.dtype[np.int32]]
Step = tuple[Codes, np.ndarray[Any, np.dtype[np.float64]]]
"""Codes [n], a view of all codes, and their probabilities: [K] for all of them, or [n, K]."""
BLOCK = 64
"""Number of images whose codes an autoregressive prior finds together. Files are only read with the same one."""


def steps(codes: Codes, model: Model, fitted: str | None, labels: torch.Tensor | None) -> Iterator[Step]:
    """Returns the steps in which codes, [N, P], are coded: by their frequencies, or by the model's fitted prior.

    fitted: its name, None for no prior. labels: [N] or None. Raises UserError for a prior that does not give one code
    after the other.
    """
    if fitted is None:
        return by_frequency(codes, model.layout.require_codes(type(model).__name__), model.layout.sizes)
    prior: Any = model.require_prior()
    if not hasattr(prior, "stepper"):
        raise UserError(f"prior={fitted}: it does not give one code after the other: leave it out")
    return by_prior(codes, prior, labels if prior.classes is not None else None)


def by_frequency(codes: Codes, size: int, levels: Sequence[int]) -> Iterator[Step]:
    """Takes the codes' frequencies in the images before (Krichevsky & Trofimov 1981): nothing is fitted or stored.

    codes: [N, P], with `size` = K values. levels: how many of the P positions each level has, with its own frequencies.
    """
    counts = np.full((len(levels), size), 0.5)
    for image in codes:
        for own, part in zip(counts, np.split(image, np.cumsum(levels)[:-1]), strict=True):
            yield part, own / own.sum()
            own += np.bincount(part, minlength=size)


@torch.no_grad()
def by_prior(codes: Codes, prior: Autoregressive, labels: torch.Tensor | None) -> Iterator[Step]:
    """Takes what an autoregressive prior says of each position given those before it in the image.

    codes: [N, P]. labels: [N] of a prior that is told the class, or None.
    """
    for start in range(0, len(codes), BLOCK):
        block, told = codes[start : start + BLOCK], None
        if labels is not None:
            told = labels[start : start + BLOCK].to(prior.place.device)
            told = torch.cat([told, told[-1:].expand(BLOCK - len(told))])  # always BLOCK: sizes round differently
        stepper, chosen = prior.stepper(BLOCK, told), None
        for position in range(codes.shape[1]):
            probabilities = stepper.next(chosen).double().softmax(1).cpu().numpy()
            yield block[:, position], probabilities[: len(block)]
            chosen = torch.zeros(BLOCK, dtype=torch.int64)
            chosen[: len(block)] = torch.from_numpy(block[:, position].astype(np.int64))
            chosen = chosen.to(prior.place.device)


@one_thread()
def encode(steps: Iterator[Step]) -> tuple[bytes, float]:
    """Encodes the codes of all steps. Returns the file's words, and the bits that their probabilities ask for."""
    model, encoder, bits = constriction().model, constriction().queue.RangeEncoder(), 0.0
    for codes, probabilities in steps:
        encoder.encode(np.ascontiguousarray(codes), *_model(model, probabilities))
        chosen = probabilities[codes] if probabilities.ndim == 1 else probabilities[np.arange(len(codes)), codes]
        bits -= float(np.log2(chosen).sum())
    return encoder.get_compressed().astype("<u4").tobytes(), bits


@one_thread()
def decode(words: bytes, steps: Iterator[Step]) -> None:
    """Decodes what `encode` made into the codes of all steps. Raises AssertionError where they cannot be meant."""
    model = constriction().model
    decoder = constriction().queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    for codes, probabilities in steps:
        size = (len(codes),) if probabilities.ndim == 1 else ()
        codes[:] = decoder.decode(*_model(model, probabilities), *size)


def _model(model: Any, probabilities: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    if probabilities.ndim == 1:
        return (model.Categorical(probabilities, perfect=False),)
    return model.Categorical(perfect=False), np.ascontiguousarray(probabilities)


def constriction() -> Any:
    """Returns the part of constriction for streams of symbols. Raises UserError if it is not installed."""
    try:
        constriction: Any = importlib.import_module("constriction")
    except ImportError:
        raise UserError('compressed files need another package: pip install "vaelab[codec]"') from None
    return constriction.stream
