"""VQ-VAE-2, a hierarchy of maps of codes (Razavi, van den Oord & Vinyals 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.distributed import Share
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build
from vaelab.models.module import Model
from vaelab.models.vqvae import VQVAE
from vaelab.nn.conditions import Condition
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Codes
from vaelab.nn.priors import UniformCodes
from vaelab.nn.quantizers import Chosen, Codebook, Quantized


class VQVAE2(VQVAE):
    """Minimises the objective of the VQ-VAE with several maps of codes, each half as wide and high as that below it.

    The top is quantised first, and each map below from the encoder's features beside what is decoded of those above
    (algorithm 1). The decoder is given all of them, side by side at the size of the lowest. The losses are summed
    over the levels. Deviation: a level is decoded by one transposed convolution, where the paper has residual blocks.

    num_embeddings: K of every level. embedding_dim: D of every level. num_levels: L of them. The rest as in `VQVAE`.
    Raises UserError for images too small to be halved so often, and for a codebook of several levels.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        codebook: Callable[..., Codebook],
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        num_levels: Annotated[int, Field(ge=2)],
        commitment_cost: NonNegativeFloat,
        condition: Build[Condition] = None,
    ):
        Model.__init__(self, shape, num_classes, likelihood, condition)
        self.commitment_cost.fill_(commitment_cost)
        context, sizes = self.condition.size, _halved(network.map_size(self.shape), num_levels)
        made = [codebook(num_embeddings=num_embeddings, embedding_dim=embedding_dim) for _ in sizes]
        if any(len(book.levels) > 1 for book in made):
            raise UserError("codebook: each level of model=vqvae2 takes a codebook of one level, such as ema")
        self.codebooks: Sequence[Codebook] = nn.ModuleList(made)  # type: ignore[assignment]
        between = ["middle"] if num_levels == 3 else [f"middle{number}" for number in range(1, num_levels - 1)]
        levels = zip(["top", *between, "bottom"], reversed(sizes), strict=True)
        self.layout = Layout(tuple(Level(name, size, num_embeddings) for name, size in levels), ("indices",))
        self.prior = UniformCodes(num_embeddings, self.layout.shape)
        self.encoder = network.map_encoder((self.shape[0] + context, *self.shape[1:]), embedding_dim)
        self.downs = nn.ModuleList(_down(embedding_dim) for _ in range(num_levels - 1))
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        for above, (upper, lower) in enumerate(pairwise(reversed(sizes)), start=1):
            channels, odd = above * embedding_dim, (lower[0] - 2 * upper[0], lower[1] - 2 * upper[1])
            self.ups.append(nn.ConvTranspose2d(channels, channels, 4, 2, 1, output_padding=odd))
            self.merges.append(nn.Conv2d(channels + embedding_dim, embedding_dim, 1))
        self.decoder = network.map_decoder(num_levels * embedding_dim + context, self.likelihood.raw_shape(self.shape))

    @property
    def codebook(self) -> Codebook:  # type: ignore[override]
        """The codebook of the top."""
        return self.codebooks[0]

    @property
    def books(self) -> Sequence[Codebook]:
        return self.codebooks

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Codes:
        found: list[Tensor] = []

        def chosen(book: Codebook, z: Tensor) -> Tensor:
            found.append(book.search(z))
            return book.lookup(found[-1])

        self._descend(self.features(x, labels), chosen)
        return Codes(torch.cat([indices.flatten(1) for indices in found], 1))

    def embed(self, z: Tensor, levels: int | None = None) -> Tensor:
        """Looks up what the decoder is given for indices, [B, P] -> [B, L D, h, w]: all levels at the lowest's size.

        levels: how many count, from the top on; those below are zero. None for all.
        """
        vectors: Tensor | None = None
        for number, (book, indices) in enumerate(zip(self.codebooks, self.layout.split(z), strict=True)):
            own = book.lookup(indices)
            own = own if levels is None or number < levels else torch.zeros_like(own)
            vectors = own if vectors is None else torch.cat([own, self.ups[number - 1](vectors)], 1)
        assert vectors is not None
        return vectors

    def excess(self, z: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
        maps, found = iter(self.layout.split(z)), []

        def compared(book: Codebook, features: Tensor) -> Tensor:
            indices = next(maps)
            found.append(book.excess(features, indices).flatten(1))
            return book.lookup(indices)

        self._descend(self.features(x, labels), compared)
        return torch.cat(found, 1)

    def _descend(self, features: Tensor, quantise: Callable[[Codebook, Tensor], Tensor]) -> Tensor:
        """Quantises one level after the other. Returns what the decoder is given, [B, L D, h, w].

        features: [B, D, h, w]. quantise: makes the codes' vectors of a codebook and what it is given.
        """
        maps = [features]
        for down in self.downs:
            maps.append(down(maps[-1]))
        vectors = quantise(self.codebooks[0], maps.pop())
        for book, up, merge in zip(self.codebooks[1:], self.ups, self.merges, strict=True):
            above = up(vectors)
            own = quantise(book, merge(torch.cat([maps.pop(), above], 1)))
            vectors = torch.cat([own, above], 1)
        return vectors

    def quantized(self, batch: Batch, noise: Tensor | None) -> Quantized:
        found: list[Quantized] = []

        def measured(book: Codebook, z: Tensor) -> Tensor:
            found.append(book(z, batch.share))
            return found[-1].vectors

        vectors = self._descend(self.features(batch.images, batch.labels), measured)
        return Quantized(
            vectors=vectors,
            indices=torch.cat([one.indices.flatten(1) for one in found], 1),
            rows=torch.cat([one.rows for one in found]),
            chosen=torch.cat([one.chosen for one in found]),
            codebook_loss=torch.stack([one.codebook_loss for one in found]).sum(0),
            commitment=torch.stack([one.commitment for one in found]).sum(0),
        )

    @property
    def unplaced(self) -> bool:
        return any(book.unplaced for book in self.codebooks)

    def place_on(self, features: Tensor, share: Share | None) -> None:
        def placed(book: Codebook, z: Tensor) -> Tensor:
            book.place(z, share)
            return book.lookup(book.search(z))

        self._descend(features, placed)

    def learn(self, observed: Sequence[Chosen]) -> None:
        """Lets each level's codebook learn from its own rows."""
        rows = [self.by_level(one.rows).values() for one in observed]
        indices = [self.by_level(one.indices).values() for one in observed]
        for book, *found in zip(self.codebooks, *rows, *indices, strict=True):
            parts = zip(found[: len(observed)], found[len(observed) :], observed, strict=True)
            book.learn([one._replace(rows=own, indices=chosen) for own, chosen, one in parts])


def _down(channels: int) -> nn.Sequential:
    """Makes the encoder from a map to one of half its size."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(channels, channels, 4, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def _halved(size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Computes (h, w) of each level, the lowest first. Raises UserError if there is nothing left to halve."""
    sizes = [size]
    for _ in range(levels - 1):
        if min(sizes[-1]) < 2:
            height, width = size
            remedies = [f"at most {len(sizes)}"] * (len(sizes) > 1) + ["fewer network.hidden_dims"] * (len(sizes) < 3)
            raise UserError(
                f"model.num_levels={levels}: the feature map of {height}x{width} can be halved {len(sizes) - 1} times: "
                f"give {' or '.join(remedies)}"
            )
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes
