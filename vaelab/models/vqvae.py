"""The VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vaelab.core.types import NonNegativeFloat, PositiveInt, Shape
from vaelab.models.base import Model
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.networks import Network
from vaelab.nn.quantizers import GradientCodebook, code_counts, perplexity


class VQVAE(Model):
    """Minimises -log p(x | z_q(x)) + |sg(z_e) - e|^2 + commitment_cost |z_e - sg(e)|^2 (eq. 3).

    All three are sums over pixels, or over code dimensions and positions. The prior over the codes
    is uniform while training, so the KL is the constant P log K for P positions and is left out.

    num_embeddings: number K of codes. embedding_dim: their size D. commitment_cost: beta in the
    paper. codebook: how the codes are learned, given K and D (`vaelab.nn.quantizers`).
    """

    monitor = "reconstruction"
    best = "min"
    latents = "discrete"
    scalars = {"commitment_cost": 0.25}
    commitment_cost: Tensor

    def __init__(
        self,
        shape: Shape,
        num_classes: PositiveInt | None,
        network: Network,
        likelihood: Likelihood,
        codebook: Callable[..., GradientCodebook],
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        commitment_cost: NonNegativeFloat,
    ):
        super().__init__(shape, num_classes, likelihood)
        self.commitment_cost.fill_(commitment_cost)
        self.encoder = network.map_encoder(self.shape, embedding_dim)
        self.codebook = codebook(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.decoder = network.map_decoder(embedding_dim, self.shape)
        self.map_size = network.map_size(self.shape)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Code indices, [B, h, w] int64."""
        return self.codebook.search(self.encoder(x))

    def decode(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw likelihood parameters from code indices [B, h, w]: [B, C, H, W]."""
        return self.decoder(self.codebook.lookup(indices))

    def terms(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        quantized = self.codebook(self.encoder(x), self.share)
        raw = self.decoder(quantized.vectors)
        return {
            "reconstruction": -self.likelihood.log_prob(raw, x),
            "vq": quantized.codebook_loss + self.commitment_cost * quantized.commitment,
            "commitment": quantized.commitment,
            "codes": quantized.indices,
        }

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["reconstruction"].mean() + terms["vq"].mean()

    def vectors(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"code_counts": code_counts(terms["codes"], self.codebook.num_embeddings)}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        """Perplexity and usage of the codebook over everything counted, not the mean of batches' figures."""
        counts = vectors["code_counts"]
        return {"perplexity": perplexity(counts).item(), "codebook_usage": (counts > 0).double().mean().item()}

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode(self.encode(x)))

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """Mean images of codes drawn from the uniform prior: independent positions, so rarely like the data."""
        size = (count, *self.map_size)
        indices = torch.randint(self.codebook.num_embeddings, size, device=self.device)
        return self.likelihood.mean(self.decode(indices))
