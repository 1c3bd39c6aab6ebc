"""Codebooks: finite sets of codes, the rule that chooses one, the gradient through it, and how codes are learned.

van den Oord, Vinyals & Kavukcuoglu, "Neural Discrete Representation Learning", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.distributed import Share, all_sum, random_rows
from vaelab.core.types import Fraction, PositiveFloat, PositiveInt

SEARCH_ELEMENTS = 2**19
"""Distances that the nearest-code search holds at a time, whatever N and K: 2 MiB, for a processor's cache."""
SEARCH_ELEMENTS_GPU = 2**26
"""The same on a GPU: 256 MiB, so that few kernels are launched."""


class Quantized(NamedTuple):
    """A quantised feature map.

    vectors: [B, D, h, w], the codes, with the straight-through gradient. indices: [B, h, w] int64.
    rows: [B h w, D], what was quantised, without gradient, and chosen: [B h w], the indices once more.
    codebook_loss: |sg(z) - e|^2, [B], which moves the codes (zero where they move by averages).
    commitment: |z - sg(e)|^2, [B], which moves the encoder. Both are summed over D and positions.
    """

    vectors: Tensor
    indices: Tensor
    rows: Tensor
    chosen: Tensor
    codebook_loss: Tensor
    commitment: Tensor


SEARCH_BLOCK = 64
"""Codes whose least distance is found first on a processor, where `amin` runs in vector instructions and `argmin`
does not."""


@torch.no_grad()
def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code by Euclidean distance, [N] int64; the first one of several.

    z: [N, D]; codes: [K, D]. |z - e|^2 is searched as |e|^2 - 2 z.e, one matrix product with the
    norms folded in, in chunks of rows through one buffer: the memory does not grow with N * K.
    """
    minus_twice, norms = -2 * codes.t(), codes.square().sum(1)
    if torch.compiler.is_exporting():  # the number of chunks would be that of the example's batch
        return torch.addmm(norms, z, minus_twice).argmin(1)
    elements = SEARCH_ELEMENTS if z.device.type == "cpu" else SEARCH_ELEMENTS_GPU
    rows = min(len(z), max(1, elements // len(codes)))
    distances = z.new_empty(rows, len(codes))
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    for part, found in zip(z.split(rows), indices.split(rows), strict=True):
        _argmin(torch.addmm(norms, part, minus_twice, out=distances[: len(part)]), out=found)
    return indices


def _argmin(distances: Tensor, out: Tensor) -> None:
    """torch.argmin over the codes, [N, K] to [N]: on a processor by way of the least of each block of codes."""
    rows, size = distances.shape
    if distances.device.type != "cpu" or size % SEARCH_BLOCK or size < 4 * SEARCH_BLOCK:
        torch.argmin(distances, 1, out=out)
        return
    blocks = distances.view(rows, -1, SEARCH_BLOCK)
    block = blocks.amin(2).argmin(1)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, SEARCH_BLOCK)).squeeze(1).argmin(1)
    torch.add(inside, block, alpha=SEARCH_BLOCK, out=out)


def code_counts(indices: Tensor, num_embeddings: int) -> Tensor:
    """How often each code was chosen, [K] float32; indices of any shape."""
    ones = torch.ones(indices.numel(), device=indices.device)
    return torch.zeros(num_embeddings, device=indices.device).index_add_(0, indices.flatten(), ones)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the code frequencies, a scalar: K if all K codes are used alike, 1 if only one is.

    counts: [K], not all zero, summed over the whole set that the figure is about; a mean of batches' perplexities
    is another, smaller number.
    """
    p = counts / counts.sum()
    return torch.special.entr(p).sum().exp()


class Chosen(NamedTuple):
    """What a training batch chose, for codes that learn from it.

    rows: the encoder's output, [B h w, D], without gradient. indices: [B h w] int64. share: this process's
    part of the global batch, None where it has all of it.
    """

    rows: Tensor
    indices: Tensor
    share: Share | None


class Codebook(nn.Module):
    """Base of the codebooks: K codes of D numbers, of which each position of a feature map chooses one.

    num_embeddings: K. embedding_dim: D, the channels of the feature map.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    @property
    def vectors(self) -> Tensor:
        """All codes, [K, D]."""
        raise NotImplementedError

    def project(self, z: Tensor) -> Tensor:
        """The encoder's output moved to where the codes are, [B, D, h, w]: the nearest code is chosen there."""
        return z

    def choose(self, rows: Tensor) -> Tensor:
        """Indices of the codes that vectors choose: [N, D] float32 -> [N] int64."""
        raise NotImplementedError

    def search(self, z: Tensor) -> Tensor:
        """Indices of the codes that a feature map chooses: [B, D, h, w] -> [B, h, w] int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self.choose(_rows(z)).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes at `indices`: [B, h, w] -> [B, D, h, w]."""
        return F.embedding(indices, self.vectors).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        """z: the encoder's output, [B, D, h, w]; computed in float32 under any autocast. Changes no state."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            rows = _rows(z)
            chosen = self.choose(rows)
            indices = chosen.view(z.shape[0], *z.shape[2:])
            codes = self.lookup(indices)
            return Quantized(
                vectors=z + (codes - z).detach(),
                indices=indices,
                rows=rows,
                chosen=chosen,
                codebook_loss=self.codebook_loss(z, codes),
                commitment=(z - codes.detach()).square().flatten(1).sum(1),
            )

    def codebook_loss(self, z: Tensor, codes: Tensor) -> Tensor:
        """|sg(z) - e|^2 summed over D and positions, [B]: what moves codes that are parameters. Zero by default."""
        return z.new_zeros(len(z))

    @property
    def unplaced(self) -> bool:
        """Whether the codes still wait for a first training batch to be placed on."""
        return False

    def place(self, z: Tensor, share: Share | None) -> None:
        """Places fresh codes on the encoder's output for the first training batch, [B, D, h, w]."""

    def learn(self, chosen: Sequence[Chosen]) -> None:
        """Moves codes that learn without a gradient, once per optimiser step. chosen: by its batches."""


def _rows(z: Tensor) -> Tensor:
    """The vectors of a feature map: [B, D, h, w] -> [B h w, D], float32, without gradient."""
    return z.detach().movedim(1, -1).flatten(0, -2).float()


class GradientCodebook(Codebook):
    """Codes as parameters, moved by |sg(z) - e|^2 (van den Oord et al. 2017, eq. 3).

    num_embeddings: K. embedding_dim: D. The codes start at encoder outputs of the first training
    batch. restart_after: a code that no vector of this many consecutive steps has chosen is moved onto
    a random encoder output; None never restarts.
    """

    codes: Tensor
    idle: Tensor

    def __init__(self, num_embeddings: PositiveInt, embedding_dim: PositiveInt, restart_after: PositiveInt | None):
        super().__init__(num_embeddings, embedding_dim)
        self.restart_after = restart_after
        self._make_codes(torch.empty(num_embeddings, embedding_dim).uniform_(-1 / num_embeddings, 1 / num_embeddings))
        self.register_buffer("idle", torch.zeros(num_embeddings))
        self.initialised = False

    def _make_codes(self, start: Tensor) -> None:
        self.codes = nn.Parameter(start)

    def get_extra_state(self) -> dict[str, bool]:
        return {"initialised": self.initialised}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.initialised = state["initialised"]

    @property
    def vectors(self) -> Tensor:
        return self.codes

    def choose(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.codes.detach())

    def codebook_loss(self, z: Tensor, codes: Tensor) -> Tensor:
        return (z.detach() - codes).square().flatten(1).sum(1)

    @property
    def unplaced(self) -> bool:
        return not self.initialised

    @torch.no_grad()
    def place(self, z: Tensor, share: Share | None) -> None:
        self._move(torch.ones_like(self.idle, dtype=torch.bool), _rows(z), share)
        self.initialised = True

    @torch.no_grad()
    def learn(self, chosen: Sequence[Chosen]) -> None:
        """Moves the codes if they learn by averages, and restarts those that were idle too long."""
        counts = code_counts(chosen[0].indices, self.num_embeddings)
        for batch in chosen[1:]:
            counts += code_counts(batch.indices, self.num_embeddings)
        counts = all_sum(counts)
        self._average(chosen, counts)
        self.idle.add_(1).mul_(counts == 0)
        if self.restart_after is not None:
            self._move(self.idle >= self.restart_after, chosen[-1].rows, chosen[-1].share)

    def _average(self, chosen: Sequence[Chosen], counts: Tensor) -> None:
        """Nothing: the optimiser moves the codes. counts: [K], how often each was chosen, over all processes."""

    def _move(self, which: Tensor, rows: Tensor, share: Share | None) -> None:
        """Moves the codes where `which`, [K] bool, onto random rows, [N, D], without a host sync.

        The rows are of all processes' batches, and every process takes the same.
        """
        fresh = random_rows(rows, self.num_embeddings, share)
        self.codes.data.copy_(torch.where(which[:, None], fresh, self.codes))
        self.idle.mul_(~which)


class EMACodebook(GradientCodebook):
    """Codes as moving averages of the vectors that choose them (van den Oord et al. 2017, appendix A.1).

    decay: of the averages (gamma in the paper). epsilon: Laplace smoothing of the cluster sizes,
    as in the authors' published code: n_i -> (n_i + epsilon) / (n + K epsilon) * n, with n their sum.
    """

    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        restart_after: PositiveInt | None,
        decay: Fraction,
        epsilon: PositiveFloat,
    ):
        super().__init__(num_embeddings, embedding_dim, restart_after)
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("cluster_size", torch.ones(num_embeddings))
        self.register_buffer("cluster_sum", self.codes.clone())

    def _make_codes(self, start: Tensor) -> None:
        self.register_buffer("codes", start)

    def codebook_loss(self, z: Tensor, codes: Tensor) -> Tensor:
        return z.new_zeros(len(z))

    def _average(self, chosen: Sequence[Chosen], counts: Tensor) -> None:
        sums = torch.zeros_like(self.codes)
        for batch in chosen:
            sums.index_add_(0, batch.indices, batch.rows)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.cluster_sum.lerp_(all_sum(sums), 1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.codes.copy_(self.cluster_sum / smoothed[:, None])

    def _move(self, which: Tensor, rows: Tensor, share: Share | None) -> None:
        super()._move(which, rows, share)
        self.cluster_size.copy_(torch.where(which, torch.ones_like(self.cluster_size), self.cluster_size))
        self.cluster_sum.copy_(torch.where(which[:, None], self.codes, self.cluster_sum))
