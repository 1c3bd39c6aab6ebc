"""Search for the nearest of many codes, fast and in little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SEARCH_ELEMENTS = 2**19
"""Distances that the nearest-code search holds at a time, whatever N and K: 2 MiB, for a CPU's cache."""
SEARCH_ELEMENTS_GPU = 2**26
"""Distances that the nearest-code search holds at a time on a GPU: 256 MiB, so that few kernels are launched."""
SEARCH_BLOCK = 64
"""Codes whose least distance is found first on a CPU, where `amin` runs in vector instructions and `argmin`
does not."""


def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """Finds the index of the nearest code by Euclidean distance, [N] int64; the first one of several.

    z: [N, D]; codes: [K, D]. |z - e|^2 is searched as |e|^2 - 2 z.e, one matrix product with the
    norms folded in, in chunks of rows through one buffer: the memory does not grow with N * K. The codes' mean is
    subtracted from both first: far from the origin, |e|^2 would drown what tells two codes apart.
    """
    if torch.compiler.is_exporting():
        return _nearest(z, codes)
    found: Any = _Nearest.apply(z, codes)
    return found


class _Nearest(torch.autograd.Function):
    """Searches one codebook after the other where torch.vmap wants several searched at once."""

    @staticmethod
    def forward(z: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]
        return _nearest(z, codes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # type: ignore[override]
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], z: Tensor, codes: Tensor) -> tuple[Tensor, int]:
        each = [
            [x] * info.batch_size if dim is None else x.unbind(dim) for x, dim in zip((z, codes), in_dims, strict=True)
        ]
        return torch.stack([_nearest(*pair) for pair in zip(*each, strict=True)]), 0


@torch.no_grad()
def _nearest(z: Tensor, codes: Tensor) -> Tensor:
    centre = codes.mean(0)
    codes = codes - centre
    minus_twice, norms = -2 * codes.t(), codes.square().sum(1)
    if torch.compiler.is_exporting():  # a loop would keep the example batch's number of chunks
        return torch.addmm(norms, z - centre, minus_twice).argmin(1)
    elements = SEARCH_ELEMENTS if z.device.type == "cpu" else SEARCH_ELEMENTS_GPU
    rows = min(len(z), max(1, elements // len(codes)))
    distances = z.new_empty(rows, len(codes))
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    for part, nearest in zip(z.split(rows), indices.split(rows), strict=True):
        _argmin(torch.addmm(norms, part - centre, minus_twice, out=distances[: len(part)]), out=nearest)
    return indices


def _argmin(distances: Tensor, out: Tensor) -> None:
    """Runs torch.argmin over the codes, [N, K] to [N]: on a CPU by way of the least of each block of codes."""
    rows, size = distances.shape
    if distances.device.type != "cpu" or size % SEARCH_BLOCK or size < 4 * SEARCH_BLOCK:
        torch.argmin(distances, 1, out=out)
        return
    blocks = distances.view(rows, -1, SEARCH_BLOCK)
    block = blocks.amin(2).argmin(1)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, SEARCH_BLOCK)).squeeze(1).argmin(1)
    torch.add(inside, block, alpha=SEARCH_BLOCK, out=out)
