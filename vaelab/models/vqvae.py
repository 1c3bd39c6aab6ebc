"""The VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Build, Terms
from vaelab.models.module import Model
from vaelab.nn.conditions import Condition, beside
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.posteriors import Codes
from vaelab.nn.priors import UniformCodes
from vaelab.nn.quantizers import Chosen, Codebook, code_counts, perplexity


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
        self.decoder = network.map_decoder(embedding_dim + context, self.shape)
        self.layout = Layout((Level("codes", map_size, num_embeddings),), ("indices",))
        self.prior = UniformCodes(num_embeddings, map_size)

    def features(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes what is quantised, [B, D, h, w]. x: [B, C, H, W] in the data's range; labels: [B] or None."""
        return self.encoder(beside(x, self.condition(labels)))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Codes:
        return Codes(self.codebook.search(self.features(x, labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes code indices, [B, h, w], to raw likelihood parameters, [B, C, H, W]."""
        return self._decode_vectors(self.codebook.lookup(z), labels)

    def _decode_vectors(self, vectors: Tensor, labels: Tensor | None) -> Tensor:
        return self.decoder(beside(vectors, self.condition(labels)))

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        x, labels = batch.images, batch.labels
        quantized = self.codebook(self.features(x, labels), batch.share)
        return {
            "reconstruction": -self.likelihood.log_prob(self._decode_vectors(quantized.vectors, labels), x),
            "vq": quantized.codebook_loss + self.commitment_cost * quantized.commitment,
            "commitment": quantized.commitment,
            "codes": quantized.chosen,
            "quantized": quantized.rows,
        }

    def objective(self, terms: Terms) -> Tensor:
        return terms["reconstruction"].mean() + terms["vq"].mean()

    def vectors(self, terms: Terms) -> dict[str, Tensor]:
        return {"code_counts": code_counts(terms["codes"], self.codebook.num_embeddings)}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        """Computes perplexity and usage of the codebook from all counts, not as means over batches."""
        counts = vectors["code_counts"]
        return {"perplexity": perplexity(counts).item(), "codebook_usage": (counts > 0).double().mean().item()}

    def place(self, batch: Batch) -> None:
        """Places fresh codes on what the encoder makes of the first training batch."""
        if not self.codebook.unplaced:
            return
        state = [buffer.clone() for buffer in self.encoder.buffers()]  # a batch norm sees the batch once
        with torch.no_grad():
            self.codebook.place(self.features(batch.images, batch.labels), batch.share)
            for buffer, before in zip(self.encoder.buffers(), state, strict=True):
                buffer.copy_(before)

    def observe(self, batch: Batch, terms: Terms) -> Chosen:
        return Chosen(terms["quantized"], terms["codes"], batch.share)

    def learn(self, observed: Sequence[Chosen]) -> None:
        self.codebook.learn(observed)
