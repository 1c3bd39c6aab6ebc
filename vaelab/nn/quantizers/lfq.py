"""Lookup-free quantisation (Yu et al. 2023, "Language Model Beats Diffusion")."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vaelab.core.distributed import Share, global_mean
from vaelab.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.fsq import Grid

Bits = Annotated[int, Field(ge=1, le=20)]
JOINT = 16
"""Most bits whose joint frequencies the entropy term looks at: it holds a number for each of their combinations."""


class LFQ(Grid):
    """Takes the sign of each channel as a bit of the code: K = 2^bits codes of -1 and 1 (section 3.1 of the paper).

    The entropy term E[H(p(c|z))] - H(E[p(c|z)]) (eq. 5) takes the place of a codebook loss: each vector shall be
    sure of its code, and all vectors together shall use all codes. p(c|z) is proportional to
    exp(-inverse_temperature |z - c|^2), a product over the bits. The means are over all positions of the global
    batch; the term is summed over an image's positions, as the other terms are.

    The encoder's output is moved into [-1, 1] by tanh, which the paper's is not: the gradient that is copied past
    the sign drives it far beyond -1 and 1 otherwise, where the entropy has no slope. So there is no commitment, either.

    entropy_weight: weight of the entropy term in the objective. num_embeddings: K, and embedding_dim: D, follow from
    `bits`.
    """

    def __init__(
        self,
        num_embeddings: PositiveInt,
        embedding_dim: PositiveInt,
        bits: Bits,
        entropy_weight: NonNegativeFloat,
        inverse_temperature: PositiveFloat,
        rotation: bool = False,
    ):
        super().__init__(num_embeddings, embedding_dim, [2] * bits, rotation, f"codebook.bits={bits}")
        self.entropy_weight, self.inverse_temperature = entropy_weight, inverse_temperature

    @property
    def remedy(self) -> Remedy:
        return Remedy("more codebook.entropy_weight, a lower optimizer.lr", "codebook.bits")

    def project(self, z: Tensor) -> Tensor:
        return z.tanh()

    def digits(self, rows: Tensor) -> Tensor:
        return (rows > 0).long()

    def codebook_loss(self, z: Tensor, codes: Tensor, share: Share | None) -> Tensor:
        """Computes the weighted entropy term, [B]; unlike other codebooks' losses it moves the encoder."""
        logits = 4 * self.inverse_temperature * z.movedim(1, -1).flatten(1, -2)  # |z + 1|^2 - |z - 1|^2 = 4 z
        sure = entropy_of_bits(logits).sum((1, 2))
        spread = entropy_of_mean(logits.flatten(0, 1), share)
        return self.entropy_weight * (sure - logits.shape[1] * spread)


def entropy_of_bits(logits: Tensor) -> Tensor:
    """Computes the entropy of bits that are 1 with probability sigmoid(logits), of the same shape, nats."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def entropy_of_mean(logits: Tensor, share: Share | None) -> Tensor:
    """Computes the entropy of the mean of products of bits, a scalar, nats. logits: those of each bit, [N, bits].

    The mean is over all processes' rows. It is exact up to JOINT bits; of more, the entropies of groups of bits are
    summed, which is an upper bound: bits that depend on each other across groups go unnoticed.
    """
    groups = logits.tensor_split(-(-logits.shape[1] // JOINT), dim=1)
    means = torch.cat([mean_joint(group) for group in groups])
    means = global_mean(means, share)
    # 0 log 0 is 0, and so is its gradient here
    return -(means * means.clamp_min(torch.finfo(means.dtype).tiny).log()).sum()


def mean_joint(logits: Tensor) -> Tensor:
    """Computes the mean probability of each combination of bits: [N, b] -> [2^b], the first bit most significant.

    A product of the two halves' probabilities, [2^(b/2), N] and [N, 2^(b/2)]: never N 2^b numbers.
    """
    left, right = (_joint(half) for half in logits.tensor_split(2, dim=1))
    return (left.t() @ right).flatten() / len(logits)


def _joint(logits: Tensor) -> Tensor:
    """Computes the probability of each combination of bits, [N, b] -> [N, 2^b]."""
    joint = logits.new_ones(len(logits), 1)
    for bit in torch.stack([-logits, logits], 2).sigmoid().unbind(1):
        joint = (joint[:, :, None] * bit[:, None]).flatten(1)
    return joint
