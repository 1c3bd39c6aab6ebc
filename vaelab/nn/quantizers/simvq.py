"""Fixed codes under one linear layer (Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models
with One Linear Layer").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelab.core.distributed import Share, all_sum
from vaelab.core.types import PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.base import Codebook, rows_of
from vaelab.nn.quantizers.search import nearest_code


class SimVQ(Codebook):
    """Codes W c_k with fixed c_k and a square matrix W without bias, which the codebook loss moves.

    Every choice moves W and with it all codes, so that none is left behind. Deviation: the c_k are drawn from the
    Gaussian that the first training batch's vectors have, where the paper takes N(0, I/D), and W starts as the
    identity: the codes begin where the vectors are. num_embeddings: K. embedding_dim: D.
    """

    fixed: Tensor

    def __init__(self, num_embeddings: PositiveInt, embedding_dim: PositiveInt, rotation: bool = False):
        super().__init__(num_embeddings, embedding_dim, rotation)
        self.register_buffer("fixed", torch.randn(num_embeddings, embedding_dim) * embedding_dim**-0.5)
        self.linear = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.initialised = False

    def get_extra_state(self) -> dict[str, bool]:
        return {"initialised": self.initialised}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.initialised = state["initialised"]

    @property
    def unplaced(self) -> bool:
        return not self.initialised

    @torch.no_grad()
    def place(self, z: Tensor, share: Share | None) -> None:
        rows = rows_of(self.project(z.float())).double()
        count = all_sum(rows.new_tensor(len(rows)))
        mean = all_sum(rows.sum(0)) / count
        covariance = all_sum((rows - mean).T @ (rows - mean)) / count
        values, axes = torch.linalg.eigh(covariance)
        standard = self.embedding_dim**0.5 * self.fixed.double()
        self.fixed.copy_(mean + standard * values.clamp_min(0).sqrt() @ axes.T)
        nn.init.eye_(self.linear.weight)
        self.initialised = True

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
