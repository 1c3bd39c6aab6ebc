"""Measures how a VQ-VAE uses its codebook, and what its codes cost in bits, from the indices alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaelab.nn.quantizers import by_book, code_counts, perplexity


class Rate(NamedTuple):
    """Bits per image for its P = h * w codes, under three models of their frequencies.

    uniform: P log2 K, the prior of training. empirical: P times the entropy of the code frequencies over all
    positions. positional: the entropies of the frequencies at each position, summed.
    """

    uniform: float
    empirical: float
    positional: float


class CodebookUse(NamedTuple):
    """Use of a codebook, or of several. codes: K of all. dead: number never chosen. usage: fraction chosen.

    perplexity: exp(entropy of an index).
    """

    codes: int
    dead: int
    usage: float
    perplexity: float


def code_histogram(indices: Tensor, num_embeddings: int) -> Tensor:
    """Counts how often each code was chosen, [K] int64.

    indices: of a whole split, [N, h, w] integers in [0, K); num_embeddings: K. Raises ValueError for another shape or
    type, no images, or indices out of range.
    """
    return _table(indices, num_embeddings).sum(0)


def codebook_use(histogram: Tensor, books: Sequence[nn.Module] | None = None) -> CodebookUse:
    """Computes usage, dead codes and perplexity from counts.

    histogram: [K], or [L, K] of L levels, none all zero. books: the codebook of each level, where some may share one.
    """
    if histogram.ndim not in (1, 2) or not histogram.any(-1).all():
        raise ValueError(f"histogram: needs counts of K codes, [K], not all zero, not {list(histogram.shape)}")
    counts = by_book(histogram, books) if books else histogram
    codes, dead = counts.numel(), int((counts == 0).sum())
    return CodebookUse(codes, dead, 1 - dead / codes, perplexity(histogram.cpu().double()).item())


def rate_bits(indices: Tensor, num_embeddings: int) -> Rate:
    """Computes what the codes of an image cost, in bits, without a learned prior over them.

    indices: [N, h, w] integers in [0, K); num_embeddings: K. uniform is what the model promises (van den Oord et al.
    2017, section 3.3: a uniform prior while training). empirical and positional are lengths of ideal codes made for
    these very images, without the cost of telling the frequencies: plug-in entropies, too small by about (codes in use
    - 1) / (2 N ln 2) bits per position for `positional` and P times less for `empirical` (Miller 1955). Codes at
    neighbouring positions depend on each other, so a learned prior can cost less than any of these.

    Raises ValueError as `code_histogram` does.
    """
    table = _table(indices, num_embeddings)
    positions = len(table)
    return Rate(
        uniform=positions * math.log2(num_embeddings),
        empirical=positions * _entropy_bits(table.sum(0)).item(),
        positional=_entropy_bits(table).sum().item(),
    )


def _entropy_bits(counts: Tensor) -> Tensor:
    """Computes the entropy of the frequencies in the last dimension: [..., K] -> [...], bits, float64."""
    p = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1) / math.log(2)


def _table(indices: Tensor, num_embeddings: int) -> Tensor:
    """Counts how often each code was chosen at each position, [P, K] int64 on the processor."""
    if indices.ndim != 3 or indices.numel() == 0 or indices.is_floating_point() or indices.dtype == torch.bool:
        given = f"{list(indices.shape)} of {indices.dtype}"
        raise ValueError(f"indices: needs integers of one image or more, [N, h, w], not {given}")
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest >= num_embeddings:
        raise ValueError(f"indices: {lowest} to {highest} are not all codes of a codebook of {num_embeddings}")
    flat = indices.flatten(1).long()
    positions = flat.shape[1]
    cells = flat + num_embeddings * torch.arange(positions, device=flat.device)
    return code_counts(cells, positions * num_embeddings).view(positions, -1).cpu().long()
