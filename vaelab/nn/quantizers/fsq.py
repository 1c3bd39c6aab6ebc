"""Finite scalar quantisation (Mentzer, Minnen, Agustsson & Tschannen 2023)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.core.words import Remedy
from vaelab.nn.quantizers.base import Codebook

Levels = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
MOST_CODES = 2**20
"""Number of codes of the largest grid: the grid is kept in memory."""


class GridError(UserError):
    """Raised for a number of codes, or of a code's numbers, that does not follow from a grid's levels.

    name: of the model's option. value: as given. reason: in words. wanted: what the value must be.
    """

    def __init__(self, name: str, value: int, reason: str, wanted: int):
        super().__init__(f"model.{name}={value}: {reason}: it must be {wanted}")
        self.name, self.value, self.reason, self.wanted = name, value, reason, wanted


class Grid(Codebook):
    """Base class of codebooks whose codes are all combinations of a few fixed values per channel: nothing is learned.

    levels: how many values each channel has, in equal steps from -1 to 1. num_embeddings: K, the product of the
    levels, and embedding_dim: D, their number. key: what the user set the levels by, in words. Raises UserError for
    another K or D.
    """

    learned = False
    grid: Tensor
    strides: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, levels: list[int], rotation: bool, key: str):
        size, channels = math.prod(levels), len(levels)
        for name, value, follows in (
            ("num_embeddings", num_embeddings, size),
            ("embedding_dim", embedding_dim, channels),
        ):
            if value != follows:
                reason = f"{key} makes {size} codes of {channels} numbers"
                raise GridError(name, value, reason, follows)
        if size > MOST_CODES:
            raise UserError(f"{key}: makes {size:,} codes, more than {MOST_CODES:,}")
        super().__init__(num_embeddings, embedding_dim, rotation)
        counts = torch.tensor(levels)
        self.register_buffer("strides", size // counts.cumprod(0), persistent=False)
        digits = torch.arange(size)[:, None] // self.strides % counts
        self.register_buffer("grid", 2 * digits / (counts - 1) - 1, persistent=False)

    @property
    def vectors(self) -> Tensor:
        return self.grid

    def choose(self, rows: Tensor) -> Tensor:
        return (self.digits(rows) * self.strides).sum(1)

    def commitment(self, z: Tensor, codes: Tensor) -> Tensor:
        """Returns zero, [B]: z cannot leave the grid."""
        return z.new_zeros(len(z))

    def digits(self, rows: Tensor) -> Tensor:
        """Chooses a value for each number: [N, D] -> its place among the channel's levels, [N, D] int64."""
        raise NotImplementedError


class FSQ(Grid):
    """Rounds each channel to one of a few fixed levels: the codes are the grid of their combinations.

    The encoder's output is moved into [-1, 1] by tanh, where channel i has `levels[i]` values in equal
    steps from -1 to 1. Nothing is learned, so there is neither a codebook loss nor a commitment. An even
    number of levels lies symmetric here, where the paper shifts it by half a step to have zero among them.
    """

    steps: Tensor

    def __init__(self, num_embeddings: PositiveInt, embedding_dim: PositiveInt, levels: Levels, rotation: bool = False):
        super().__init__(num_embeddings, embedding_dim, levels, rotation, f"codebook.levels={list(levels)}")
        self.register_buffer("steps", torch.tensor(levels).float() - 1, persistent=False)

    @property
    def remedy(self) -> Remedy:
        return Remedy("a lower optimizer.lr", "codebook.levels")

    def project(self, z: Tensor) -> Tensor:
        return z.tanh()

    def digits(self, rows: Tensor) -> Tensor:
        return (0.5 * (rows + 1) * self.steps).round().long()
