"""Codebooks that give each position several indices: in turn over what is left, or one per group of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vaelab.core.distributed import Share
from vaelab.core.errors import UserError
from vaelab.core.types import Fraction, PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.base import Chosen, Codebook, Quantized
from vaelab.nn.quantizers.fsq import GridError

Several = Annotated[int, Field(ge=2)]


class Codebooks(Codebook):
    """Base class of Q codebooks that stand for one: the indices of a map are [B, Q, h, w].

    num_embeddings: K of each. embedding_dim: D of the feature map. size: that of each codebook's vectors. of: makes a
    codebook, given K and its size. levels: their names. shared: whether all are one and the same.
    """

    books: Sequence[Codebook]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        size: int,
        of: Callable[..., Codebook],
        levels: list[str],
        shared: bool,
        rotation: bool,
    ):
        super().__init__(num_embeddings, embedding_dim, rotation)
        self.levels = tuple(levels)
        try:
            books = [of(num_embeddings=num_embeddings, embedding_dim=size) for _ in range(1 if shared else len(levels))]
        except GridError as error:
            reason, times = error.reason.replace("codebook.", "codebook.of."), 1
            if error.name == "embedding_dim" and size != embedding_dim:
                times = embedding_dim // size
                reason += f", and there are {times} groups"
            raise GridError(error.name, error.value * times, reason, error.wanted * times) from error
        except UserError as error:
            raise UserError(f"codebook.of: {str(error).replace('codebook.', 'codebook.of.')}") from error
        if any(len(book.levels) > 1 for book in books):
            raise UserError("codebook.of: codebooks of several levels cannot be nested: take ema, gradient or simvq")
        if books[0].rotation:
            raise UserError("codebook.of.rotation=true: set codebook.rotation=true in its place")
        self.books, self.learned = nn.ModuleList(books), books[0].learned  # type: ignore[assignment]

    @property
    def remedy(self) -> Remedy:
        own = self.books[0].remedy
        return Remedy(own.livelier.replace("codebook.", "codebook.of."), own.fewer)

    @property
    def unplaced(self) -> bool:
        return any(book.unplaced for book in self.books)

    def parts(self) -> list[Codebook]:
        return [book for book, _ in zip(cycle(self.books), self.levels, strict=False)]

    def learn(self, chosen: Sequence[Chosen]) -> None:
        if len(self.books) == 1:
            self.books[0].learn([self._by_image(one) for one in chosen])
            return
        for number, book in enumerate(self.books):
            book.learn([_part(one, number, len(self.books)) for one in chosen])

    def _by_image(self, one: Chosen) -> Chosen:
        """Puts the rows of an image's levels side by side: restarts count them through all processes' images."""
        size = (len(self.levels), one.images, -1)
        rows, indices = (x.unflatten(0, size).transpose(0, 1).flatten(0, 2) for x in (one.rows, one.indices))
        return one._replace(rows=rows, indices=indices)


class ResidualVQ(Codebooks):
    """Codebooks in turn, each of which quantises what those before it left over; the code is the sum of all.

    Residual vector quantisation (Juang & Gray 1982; in an autoencoder, Zeghidour et al. 2021, "SoundStream"), with
    K^depth codes by depth K vectors. The losses are summed over the stages. The gradient is copied, or turned, past
    the whole sum.

    num_embeddings: K of each. embedding_dim: D. of: the codebook of a stage. depth: number of stages. shared: whether
    all stages choose from the same vectors. dropout: quantizer dropout (section III-C there): the probability that a
    training image is decoded from its first n stages alone, n drawn from 1 to depth. Deviation: the stages that it is
    not decoded from go on to learn from it. Raises UserError for a codebook that moves what it quantises, of which
    there is no residual.
    """

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        of: Callable[..., Codebook],
        depth: Several,
        shared: bool,
        dropout: Fraction,
        rotation: bool = False,
    ):
        levels = [f"stage{number}" for number in range(1, depth + 1)]
        kind = getattr(of, "func", of)
        if getattr(kind, "project", Codebook.project) is not Codebook.project:
            reason = f"{kind.__name__} moves a vector before it chooses, so nothing is left for another"
            raise UserError(f"codebook.of: {reason}: take ema, gradient or simvq")
        super().__init__(num_embeddings, embedding_dim, embedding_dim, of, levels, shared, rotation)
        self.dropout = dropout

    def indices(self, z: Tensor) -> Tensor:
        found = []
        for book in self.parts():
            found.append(book.indices(z))
            z = z - book.lookup(found[-1])
        return torch.stack(found, 1)

    def lookup(self, indices: Tensor, levels: int | None = None) -> Tensor:
        """Sums the codes of all stages, or of the first `levels`: [B, Q, h, w] -> [B, D, h, w]."""
        chosen = zip(self.parts(), indices.unbind(1)[:levels], strict=False)
        return torch.stack([book.lookup(index) for book, index in chosen]).sum(0)

    def excess(self, z: Tensor, indices: Tensor) -> Tensor:
        found = []
        for book, index in zip(self.parts(), indices.unbind(1), strict=True):
            found.append(book.excess(z, index))
            z = z - book.lookup(index)
        return torch.stack(found, 1)

    def noise(self, count: int) -> Tensor | None:
        if not (self.training and self.dropout):
            return None
        return torch.rand(count, device=next(self.buffers()).device)

    def quantize(self, z: Tensor, share: Share | None, noise: Tensor | None) -> Quantized:
        found: list[Quantized] = []
        for book in self.parts():
            found.append(book.quantize(z, share, None))
            z = z - found[-1].vectors.detach()
        codes = torch.stack([one.vectors for one in found])
        if noise is not None:
            codes = codes * self._kept(noise)[..., None, None, None]
        return joined(found, codes.sum(0))

    def _kept(self, noise: Tensor) -> Tensor:
        """Says which stages are decoded of each image, [Q, B] of 0 and 1. noise: [B] in [0, 1)."""
        depth = len(self.levels)
        last = torch.where(noise < self.dropout, (noise / self.dropout * depth).floor(), float(depth))
        return (torch.arange(depth, device=noise.device)[:, None] <= last).float()

    def place(self, z: Tensor, share: Share | None) -> None:
        for book in self.books:
            book.place(z, share)
            z = z - book.lookup(book.search(z))


class GroupedVQ(Codebooks):
    """Codebooks side by side, each for a group of the feature map's channels: product quantisation.

    Jégou, Douze & Schmid 2011; in an autoencoder, Baevski et al. 2020 ("vq-wav2vec") and Yang et al. 2023
    ("HiFi-Codec"). K^groups codes by groups K vectors, and the losses are summed over the groups.

    num_embeddings: K of each. embedding_dim: D, a multiple of `groups`. of: the codebook of a group. groups: their
    number. shared: whether all groups choose from the same vectors. Raises UserError for another D.
    """

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        of: Callable[..., Codebook],
        groups: Several,
        shared: bool,
        rotation: bool = False,
    ):
        if embedding_dim % groups:
            raise UserError(f"model.embedding_dim={embedding_dim}: must be a multiple of codebook.groups={groups}")
        levels = [f"group{number}" for number in range(1, groups + 1)]
        super().__init__(num_embeddings, embedding_dim, embedding_dim // groups, of, levels, shared, rotation)

    def _split(self, z: Tensor) -> list[tuple[Codebook, Tensor]]:
        return list(zip(self.parts(), z.chunk(len(self.levels), 1), strict=True))

    def project(self, z: Tensor) -> Tensor:
        return torch.cat([book.project(part) for book, part in self._split(z)], 1)

    def indices(self, z: Tensor) -> Tensor:
        return torch.stack([book.indices(part) for book, part in self._split(z)], 1)

    def lookup(self, indices: Tensor, levels: int | None = None) -> Tensor:
        """Joins the codes of all groups; zero behind the first `levels`: [B, Q, h, w] -> [B, D, h, w]."""
        found = [book.lookup(index) for book, index in zip(self.parts(), indices.unbind(1), strict=True)]
        shown = len(found) if levels is None else levels
        return torch.cat([*found[:shown], *(torch.zeros_like(part) for part in found[shown:])], 1)

    def excess(self, z: Tensor, indices: Tensor) -> Tensor:
        parts = zip(self._split(z), indices.unbind(1), strict=True)
        return torch.stack([book.excess(part, index) for (book, part), index in parts], 1)

    def quantize(self, z: Tensor, share: Share | None, noise: Tensor | None) -> Quantized:
        found = [book.quantize(part, share, None) for book, part in self._split(z)]
        return joined(found, torch.cat([one.vectors for one in found], 1))

    def carry(self, z: Tensor, codes: Tensor) -> Tensor:
        """Turns each group by itself."""
        apart = [x.unflatten(1, (len(self.levels), -1)).flatten(0, 1) for x in (z, codes)]
        return super().carry(*apart).view_as(z)

    def place(self, z: Tensor, share: Share | None) -> None:
        for book, part in self._split(z)[: len(self.books)]:
            book.place(part, share)


def _part(one: Chosen, number: int, count: int) -> Chosen:
    """Takes the rows of one of `count` levels."""
    return one._replace(rows=one.rows.chunk(count)[number], indices=one.indices.chunk(count)[number])


def joined(found: list[Quantized], vectors: Tensor) -> Quantized:
    """Joins what several codebooks found in maps of one size. vectors: what is decoded."""
    return Quantized(
        vectors=vectors,
        indices=torch.stack([one.indices for one in found], 1),
        rows=torch.cat([one.rows for one in found]),
        chosen=torch.cat([one.chosen for one in found]),
        codebook_loss=torch.stack([one.codebook_loss for one in found]).sum(0),
        commitment=torch.stack([one.commitment for one in found]).sum(0),
    )
