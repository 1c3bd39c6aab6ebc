"""Bits-back coding of binary images by a VAE (Townsend, Bird & Barber 2019): nothing is lost, for about -ELBO each.

A stack of bits (asymmetric numeral systems, by the library constriction) is both source and sink. To code an image, z
is decoded from it by q(z|x), which takes -log2 q(z|x) bits off, and x is coded by p(x|z) and z by p(z) on top. Decoding
undoes this from the last image to the first, and gives the bits back.

The stack codes z, a real number, by its cell of a grid. Deviations: cells are equally wide, where the paper's have the
same prior probability, which costs nothing as long as they are narrow beside the posterior; and the bits that z is
decoded from are masked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vaelab.core.errors import UserError
from vaelab.inference import entropy
from vaelab.inference.batches import evaluating, one_thread
from vaelab.nn.posteriors import Posterior
from vaelab.nn.priors import StandardNormal

if TYPE_CHECKING:
    from vaelab.models import Model

WIDTH = 2.0**-9
"""Width of a cell of z. It costs about (WIDTH / sigma)^2 / 24 nats per dimension: 0.002 where sigma is 0.01."""
LAST = 2**13
"""Number of the outermost cells: they lie at -16 and 16. All cells together get 2^-10 of the prior for granted."""
REACH = 8.0
"""Standard deviations of q(z|x) within which z is drawn. Every cell there has a probability of at least 2^-24."""
NARROWEST = 0.01
"""Least standard deviation of q(z|x), in cells."""
BLOCK = 16
"""Number of images that the networks see together. Files are only read with the same one: else sums round otherwise."""
SEED = 0
"""Seed of all random bits, by numpy's PCG64: those that the first z are decoded from, and the masks."""


class Coded(NamedTuple):
    """A stack of coded images. words: the stack. initial: bytes of it that are random. bits: -ELBO of all, at the z."""

    words: bytes
    initial: int
    bits: float


def require(model: Model, binary: bool) -> None:
    """Raises UserError for a model that cannot code with bits back. binary: whether its pixels are binarised."""
    name, likelihood = type(model).__name__, model.likelihood
    if model.blank().factorised is None:
        raise UserError(
            f"run: {name} gives no diagonal Gaussian for an image, and its latents can be coded by nothing else\n"
            "take a run of model=vae, or of model=vqvae"
        )
    if not isinstance(prior := model.require_prior(), StandardNormal):
        raise UserError(f"prior: the latents of {name} are coded by N(0, I), and not by {prior.words}: leave it out")
    if not likelihood.discrete(binary):
        raise UserError(
            f"run: its likelihood={likelihood.name} is {likelihood.density(binary)}; coding takes a probability\n"
            "take a run of likelihood=bernoulli dataset.binarize=threshold, or of model=vqvae"
        )


def encode(model: Model, pixels: Tensor, labels: Tensor | None) -> Coded:
    """Codes images. pixels: [N, C, H, W] uint8, 0 or 1. labels: [N] of a conditional model, or None."""
    bernoulli, size = entropy.constriction().model.Bernoulli(perfect=False), math.prod(model.layout.shape)
    start = np.ones(2 + min(len(pixels), BLOCK) * size, np.uint32)  # more than is needed, and random once it is masked
    coder, initial, bits = entropy.constriction().stack.AnsCoder(start), 0, 0.0
    with evaluating(model), one_thread():
        for rows in tqdm(_blocks(len(pixels)), desc="coding", unit="block", delay=2, leave=False, disable=None):
            x, given = pixels[rows], _on(model, labels, rows)
            posterior = model.encode(_seen(x, model), given)
            coder = _masked(coder, rows.start, len(x) * size)
            z = np.array([coder.decode(cell) for cell in _cells(posterior)], np.int32)
            if not initial:  # what the first block left is not needed: the last two words are the coder's state
                left = coder.get_compressed()
                initial, coder = start.nbytes - left[:-2].nbytes, entropy.constriction().stack.AnsCoder(left[-2:])
            latents = _latents(z, model)
            raw = model.decode(latents, given)
            coder.encode_reverse(x.flatten().numpy().astype(np.int32), bernoulli, _probabilities(model, raw))
            coder.encode_reverse(z, _prior())
            log_ratio = model.require_prior().log_prob(latents) - posterior.log_prob(latents)
            bits -= float((log_ratio + model.likelihood.log_prob(raw, x.to(raw))).double().sum()) / math.log(2)
    return Coded(coder.get_compressed().astype("<u4").tobytes(), initial, bits)


def decode(model: Model, words: bytes, count: int, labels: Tensor | None) -> Tensor:
    """Decodes what `encode` made of `count` images: [N, C, H, W] uint8, 0 or 1.

    Raises ValueError or KeyError where the words cannot be meant.
    """
    coder = entropy.constriction().stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    bernoulli, size = entropy.constriction().model.Bernoulli(perfect=False), math.prod(model.layout.shape)
    pixels = torch.empty(count, *model.shape, dtype=torch.uint8)
    with evaluating(model), one_thread():
        for rows in tqdm(_blocks(count)[::-1], desc="decoding", unit="block", delay=2, leave=False, disable=None):
            x, given = pixels[rows], _on(model, labels, rows)
            z = coder.decode(_prior(), len(x) * size)
            found = coder.decode(bernoulli, _probabilities(model, model.decode(_latents(z, model), given)))
            x.copy_(torch.from_numpy(found).view_as(x))
            cells = _cells(model.encode(_seen(x, model), given))
            for cell, value in zip(reversed(cells), reversed(z.tolist()), strict=True):
                coder.encode_reverse(value, cell)
            coder = _masked(coder, rows.start, len(x) * size)
    return pixels


def _masked(coder: Any, start: int, count: int) -> Any:
    """Flips bits of the stack's upper `count` words at random, or back again: those that the next z are decoded from.

    Where the posteriors together are not the prior, or images not what the model expects, coded z and x leave bits that
    are not even (the paper calls them unclean), and the z decoded from these would not be draws from q(z|x).
    """
    words = coder.get_compressed()
    upper = words[-1 - count : -1]  # the last one must not become 0
    upper ^= np.random.default_rng((SEED, start)).integers(0, 2**32, len(upper), dtype=np.uint32)
    return entropy.constriction().stack.AnsCoder(words)


def _seen(pixels: Tensor, model: Model) -> Tensor:
    """Copies the pixels of a block for the model: in one order in memory, on which a convolution's rounding depends."""
    return torch.empty(pixels.shape, device=model.device).copy_(pixels)


def _on(model: Model, labels: Tensor | None, rows: slice) -> Tensor | None:
    return None if labels is None else labels[rows].to(model.device)


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _prior() -> Any:
    """Returns the distribution of a cell by N(0, 1)."""
    return entropy.constriction().model.QuantizedGaussian(-LAST, LAST, 0.0, 1 / WIDTH)


def _cells(posterior: Posterior) -> list[Any]:
    """Returns the distribution of the cell of each z by q(z|x), image after image.

    Each has its own ends: the least probability that a cell gets would else put a z in thousands anywhere.
    """
    gaussian, factors = entropy.constriction().model.QuantizedGaussian, posterior.factorised
    assert factors is not None
    means, logvars = (_finite(values).double().cpu().flatten() for values in factors)
    means = means / WIDTH
    sigmas = ((0.5 * logvars).exp() / WIDTH).clamp_min(NARROWEST)
    first = (means - REACH * sigmas).floor().clamp(-LAST, LAST - 1).int()
    last = (means + REACH * sigmas).ceil().clamp(1 - LAST, LAST).int()
    each = zip(first.tolist(), last.tolist(), means.tolist(), sigmas.tolist(), strict=True)
    return [gaussian(*parameters) for parameters in each]


def _latents(cells: np.ndarray[Any, Any], model: Model) -> Tensor:
    """Returns the z in the middle of their cells, [n, d]."""
    return torch.from_numpy(cells * WIDTH).float().view(-1, *model.layout.shape).to(model.device)


def _probabilities(model: Model, raw: Tensor) -> np.ndarray[Any, Any]:
    """Returns the probability that a pixel is 1, of all pixels of a block."""
    return model.likelihood.mean(_finite(raw).double()).flatten().cpu().numpy()


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise UserError("checkpoint: codes or images of this model are NaN or infinite: take the other, or train again")
    return values
