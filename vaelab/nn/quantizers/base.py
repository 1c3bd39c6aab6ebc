"""The contract of a codebook: what it chooses, the gradient through the choice, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.distributed import Share
from vaelab.core.words import ANY_CODEBOOK, Remedy
from vaelab.nn.quantizers.estimators import rotated, straight_through


class Quantized(NamedTuple):
    """A quantised feature map.

    vectors: [B, D, h, w], the codes, with a gradient for z. indices: [B, h, w] int64, or [B, Q, h, w] of Q levels.
    rows: [B h w, D], what was quantised (after `project`), without gradient. chosen: [B h w], the indices once more.
    Both are of one level after the other where there are several.
    codebook_loss: |sg(z) - e|^2, [B], which moves the codes (zero where they move by averages).
    commitment: |z - sg(e)|^2, [B], which moves the encoder. Both are summed over D and positions.
    """

    vectors: Tensor
    indices: Tensor
    rows: Tensor
    chosen: Tensor
    codebook_loss: Tensor
    commitment: Tensor


def code_counts(indices: Tensor, num_embeddings: int) -> Tensor:
    """Counts how often each code was chosen, [K] float32; indices of any shape."""
    ones = torch.ones(indices.numel(), device=indices.device)
    return torch.zeros(num_embeddings, device=indices.device).index_add(0, indices.flatten(), ones)


def perplexity(counts: Tensor) -> Tensor:
    """Computes exp(entropy) of the code frequencies, a scalar: K if all K codes are used alike, 1 if only one is.

    counts: [K], not all zero, summed over the whole set that the metric is about; a mean of batches' perplexities
    is another, smaller number. Of several levels, [L, K], it is exp(mean entropy of an index).
    """
    rows = counts.sum(-1, keepdim=True)
    return ((rows / rows.sum()).squeeze(-1) * torch.special.entr(counts / rows).sum(-1)).sum().exp()


def by_book(counts: Tensor, books: Sequence[nn.Module]) -> Tensor:
    """Sums the counts of the levels that choose from one and the same codebook: [L, K] to [number of codebooks, K].

    books: the codebook of each level.
    """
    return torch.stack([counts[[book is own for own in books]].sum(0) for book in dict.fromkeys(books)])


class Chosen(NamedTuple):
    """Codes that a training batch chose, for a codebook that learns from them.

    rows: the encoder's output, [B h w, D], without gradient. indices: [B h w] int64; both of one level after the
    other. share: this process's part of the global batch, None where it has all of it. images: how many they are of.
    """

    rows: Tensor
    indices: Tensor
    share: Share | None
    images: int = 1


class Codebook(nn.Module):
    """Base class of the codebooks: K codes of D numbers, of which each position of a feature map chooses one.

    num_embeddings: K. embedding_dim: D, the channels of the feature map. rotation: whether the gradient through the
    choice is turned as the vector is, and not copied (`vaelab.nn.quantizers.estimators`). levels: a name for each
    index that a position has, which is one but in `vaelab.nn.quantizers.several`. learned: whether codes are learned
    from the vectors that choose them.
    """

    levels: tuple[str, ...] = ("codes",)
    learned = True

    def __init__(self, num_embeddings: int, embedding_dim: int, rotation: bool = False):
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.rotation = num_embeddings, embedding_dim, rotation

    @property
    def vectors(self) -> Tensor:
        """All codes, [K, D]."""
        raise NotImplementedError

    @property
    def remedy(self) -> Remedy:
        """What to do where few codes are in use."""
        return ANY_CODEBOOK

    def parts(self) -> list[Codebook]:
        """Lists the codebook of each level; several times the same where levels share one."""
        return [self]

    def project(self, z: Tensor) -> Tensor:
        """Moves the encoder's output to where the codes are, [B, D, h, w]: the nearest code is chosen there."""
        return z

    def choose(self, rows: Tensor) -> Tensor:
        """Chooses a code for each vector: [N, D] float32 -> indices, [N] int64."""
        raise NotImplementedError

    def search(self, z: Tensor) -> Tensor:
        """Chooses a code for each position of a feature map: [B, D, h, w] -> indices, [B, h, w] int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self.indices(self.project(z.float()))

    def indices(self, z: Tensor) -> Tensor:
        """Chooses a code for each position of a map that `project` has moved: [B, D, h, w] -> [B, h, w] int64."""
        return self.choose(rows_of(z)).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor, levels: int | None = None) -> Tensor:
        """Looks up the codes at `indices`: [B, h, w] -> [B, D, h, w]. levels: how many of several count; None: all."""
        return F.embedding(indices, self.vectors).movedim(-1, 1)

    def excess(self, z: Tensor, indices: Tensor) -> Tensor:
        """Computes how much farther codes are from z than the nearest, in squared distance, of the indices' shape."""
        wanted = self.project(z.float()).double()
        far = [(self.lookup(chosen).double() - wanted).square().sum(1) for chosen in (indices, self.search(z))]
        return far[0] - far[1]

    def noise(self, count: int) -> Tensor | None:
        """Draws what `forward` needs to choose by chance, for `count` images; None for nothing."""
        return None

    def forward(self, z: Tensor, share: Share | None = None, noise: Tensor | None = None) -> Quantized:
        """Quantises the encoder's output z, [B, D, h, w], in float32 under any autocast. Changes no state.

        share: this process's part of the global batch that z is of, None where it has all of it. noise: as `noise`
        draws it.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = self.project(z.float())
            found = self.quantize(z, share, noise)
            return found._replace(vectors=self.carry(z, found.vectors))

    def quantize(self, z: Tensor, share: Share | None, noise: Tensor | None) -> Quantized:
        """Quantises what `project` has moved, [B, D, h, w]; `vectors` are the codes alone, not yet tied to z."""
        indices = self.indices(z)
        codes = self.lookup(indices)
        return Quantized(
            vectors=codes,
            indices=indices,
            rows=rows_of(z),
            chosen=indices.flatten(),
            codebook_loss=self.codebook_loss(z, codes, share),
            commitment=self.commitment(z, codes),
        )

    def carry(self, z: Tensor, codes: Tensor) -> Tensor:
        """Gives z the value of its codes, and the codes' gradient to z; all [B, D, h, w]."""
        return (rotated if self.rotation else straight_through)(z, codes)

    def codebook_loss(self, z: Tensor, codes: Tensor, share: Share | None) -> Tensor:
        """Computes |sg(z) - e|^2 summed over D and positions, [B]; it moves codes that are parameters. 0 by default."""
        return z.new_zeros(len(z))

    def commitment(self, z: Tensor, codes: Tensor) -> Tensor:
        """Computes |z - sg(e)|^2 summed over D and positions, [B]: it keeps the encoder near the codes."""
        return (z - codes.detach()).square().flatten(1).sum(1)

    @property
    def unplaced(self) -> bool:
        """Whether the codes still wait for a first training batch to be placed on."""
        return False

    def place(self, z: Tensor, share: Share | None) -> None:
        """Places fresh codes on the encoder's output for the first training batch, [B, D, h, w]."""

    def learn(self, chosen: Sequence[Chosen]) -> None:
        """Moves codes that learn without a gradient, once per optimiser step. chosen: that of each of its batches."""


def rows_of(z: Tensor) -> Tensor:
    """Lists the vectors of a feature map: [B, D, h, w] -> [B h w, D], float32, without gradient."""
    return z.detach().movedim(1, -1).flatten(0, -2).float()
