"""The VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.distributed import Share
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Codes
from vaelab.nn.priors import UniformCodes
from vaelab.nn.quantizers import Chosen, Codebook, Quantized, by_book, code_counts, perplexity


class VQVAE(Model):
    """Minimises -log p(x | z_q(x)) + |sg(z_e) - e|^2 + commitment_cost |z_e - sg(e)|^2 (eq. 3).

    All three are sums over pixels, or over code dimensions and positions. The prior over the codes
    is uniform while training, so the KL is the constant P log K for P positions and is left out.

    num_embeddings: number K of codes. embedding_dim: their size D. commitment_cost: beta in the
    paper. codebook: the codes and how they are learned, given K and D (`vaelab.nn.quantizers`).
    """

    monitor = "reconstruction"
    best = "min"
    scalars = {"commitment_cost": 0.25}
    commitment_cost: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        codebook: Callable[..., Codebook],
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        commitment_cost: NonNegativeFloat,
        condition: Build[Condition] = None,
    ):
        super().__init__(shape, num_classes, likelihood, condition)
        self.commitment_cost.fill_(commitment_cost)
        context, map_size = self.condition.size, network.map_size(self.shape)
        self.encoder = network.map_encoder((self.shape[0] + context, *self.shape[1:]), embedding_dim)
        self.codebook = codebook(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.decoder = network.map_decoder(embedding_dim + context, self.likelihood.raw_shape(self.shape))
        levels = tuple(Level(name, map_size, num_embeddings) for name in self.codebook.levels)
        self.layout = Layout(levels, ("indices",))
        self.prior = UniformCodes(num_embeddings, self.layout.shape)

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes what is quantised, [B, D, h, w]. x: [B, C, H, W] in the data's range; labels: [B] or None."""
        return self.encoder(beside(self.seen(x), self.condition(labels)))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Codes:
        indices = self.codebook.search(self.features(x, labels))
        return Codes(indices.flatten(1) if len(self.layout.levels) > 1 else indices)

    def embed(self, z: Tensor, levels: int | None = None) -> Tensor:
        """Looks up what the decoder is given for indices, [B, *layout.shape] -> [B, D, h, w].

        levels: how many of the layout's levels count, from the first on; None for all.
        """
        return self.codebook.lookup(self._maps(z), levels)

    def _maps(self, z: Tensor) -> Tensor:
        maps = self.layout.split(z)
        return torch.stack(maps, 1) if len(maps) > 1 else maps[0]

    def excess(self, z: Tensor, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes how much farther codes are from what is quantised than the nearest: 0 for those of `encode`.

        z: indices, [B, *layout.shape], each held against the nearest code given those of the levels above. x, labels:
        as for `encode`. Returns squared distances, [B, P].
        """
        return self.codebook.excess(self.features(x, labels), self._maps(z)).flatten(1)

    def decode(self, z: Tensor, labels: Tensor | None = None, levels: int | None = None) -> Tensor:
        """Decodes code indices, [B, *layout.shape], to raw likelihood parameters, [B, C, H, W]. levels: see `embed`."""
        return self._decode_vectors(self.embed(z, levels), labels)

    def _decode_vectors(self, vectors: Tensor, labels: Tensor | None) -> Tensor:
        return self.decoder(beside(vectors, self.condition(labels)))

    def noise(self, count: int) -> Tensor | None:
        return self.codebook.noise(count)

    def quantized(self, batch: Batch, noise: Tensor | None) -> Quantized:
        """Encodes and quantises a batch. noise: as `noise` draws it."""
        return self.codebook(self.features(batch.images, batch.labels), batch.share, noise)

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        found = self.quantized(batch, noise)
        raw = self._decode_vectors(found.vectors, batch.labels)
        return {
            "reconstruction": -self.likelihood.log_prob(raw, batch.images),
            "vq": found.codebook_loss + self.commitment_cost * found.commitment,
            "commitment": found.commitment,
            "codes": found.chosen,
            "quantized": found.rows,
        }

    def objective(self, terms: Terms) -> Tensor:
        return terms["reconstruction"].mean() + terms["vq"].mean()

    def vectors(self, terms: Terms) -> dict[str, Tensor]:
        """Counts how often each code was chosen, by level if there are several: {name: [K]}."""
        parts, size = self.by_level(terms["codes"]), self.codebook.num_embeddings
        return {f"code_counts{name}": code_counts(part, size) for name, part in parts.items()}

    def by_level(self, x: Tensor) -> dict[str, Tensor]:
        """Splits what lies one level after the other, over the whole batch. Maps `_name`, or "" for a single one."""
        levels, sizes = self.layout.levels, self.layout.sizes
        if len(levels) == 1:
            return {"": x}
        images = len(x) // sum(sizes)
        parts = x.split([images * size for size in sizes])
        return {f"_{level.name}": part for level, part in zip(levels, parts, strict=True)}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        """Computes perplexity and usage of the codes from all counts, not as means over batches.

        Over several levels, perplexity is exp(mean entropy of an index) and usage that of all codes of all codebooks.
        """
        counts = {name.removeprefix("code_counts"): x for name, x in vectors.items() if name.startswith("code_counts")}
        every = torch.stack([*counts.values()])
        found = {"perplexity": perplexity(every).item(), "codebook_usage": usage(by_book(every, self.books))}
        for level, own in counts.items() if len(counts) > 1 else ():
            found |= {f"perplexity{level}": perplexity(own).item(), f"codebook_usage{level}": usage(own)}
        return found

    def place(self, batch: Batch) -> None:
        """Places fresh codes on what the encoder makes of the first training batch."""
        if not self.unplaced:
            return
        state = [buffer.clone() for buffer in self.encoder.buffers()]  # a batch norm sees the batch once
        with torch.no_grad():
            self.place_on(self.features(batch.images, batch.labels), batch.share)
            for buffer, before in zip(self.encoder.buffers(), state, strict=True):
                buffer.copy_(before)

    @property
    def books(self) -> Sequence[Codebook]:
        return self.codebook.parts()

    @property
    def unplaced(self) -> bool:
        """Whether codes still wait for a first training batch to be placed on."""
        return self.codebook.unplaced

    def place_on(self, features: Tensor, share: Share | None) -> None:
        """Places the codes on the encoder's output, [B, D, h, w]."""
        self.codebook.place(features, share)

    def observe(self, batch: Batch, terms: Terms) -> Chosen:
        return Chosen(terms["quantized"], terms["codes"], batch.share, len(batch.images))

    def learn(self, observed: Sequence[Chosen]) -> None:
        self.codebook.learn(observed)


def usage(counts: Tensor) -> float:
    """Computes the fraction of codes that were chosen. counts: of each, of any shape."""
    return (counts > 0).double().mean().item()
