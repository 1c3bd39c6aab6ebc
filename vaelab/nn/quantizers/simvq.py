"""Fixed codes under one linear layer (Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models
with One Linear Layer").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelab.core.distributed import Share
from vaelab.core.types import PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.base import Codebook
from vaelab.nn.quantizers.search import nearest_code


class SimVQ(Codebook):
    """Codes W c_k with fixed c_k from N(0, I/D) and a square matrix W that the codebook loss moves.

    Every choice moves W and with it all codes, so that none is left behind. num_embeddings: K. embedding_dim: D. W has
    no bias, and starts as torch's linear layers do.
    """

    fixed: Tensor

    def __init__(self, num_embeddings: PositiveInt, embedding_dim: PositiveInt, rotation: bool = False):
        super().__init__(num_embeddings, embedding_dim, rotation)
        self.register_buffer("fixed", torch.randn(num_embeddings, embedding_dim) * embedding_dim**-0.5)
        self.linear = nn.Linear(embedding_dim, embedding_dim, bias=False)

    @property
    def vectors(self) -> Tensor:
        with torch.autocast(self.fixed.device.type, enabled=False):
            return self.linear(self.fixed)

    @property
    def remedy(self) -> Remedy:
        return Remedy("more model.commitment_cost, a lower optimizer.lr", "model.num_embeddings")

    def choose(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.vectors.detach())

    def codebook_loss(self, z: Tensor, codes: Tensor, share: Share | None) -> Tensor:
        return (z.detach() - codes).square().flatten(1).sum(1)
