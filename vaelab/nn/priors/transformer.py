"""A causal transformer as a prior over codes (Vaswani et al. 2017; over codes, Esser, Rombach & Ommer 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.core.errors import UserError
from vaelab.core.types import Decay, PositiveFloat, PositiveInt
from vaelab.nn.priors.autoregressive import Autoregressive, Stepper

START = 0.02
"""Standard deviation of weights and vectors at the start, as in GPT-2."""


class Block(nn.Module):
    """Attention to what came before, then a perceptron, each after a norm and added to its input (GPT-2)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attending, self.joining = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, [B, heads, P, width / heads] each, of [B, P, width]."""
        split = self.attending(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def end(self, x: Tensor, found: Tensor) -> Tensor:
        """What follows attention. found: [B, heads, P, width / heads]."""
        x = x + self.dropout(self.joining(found.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.perceptron(self.norms[1](x)))

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.parts(x)
        return self.end(x, F.scaled_dot_product_attention(queries, keys, values, is_causal=True))


class Transformer(Autoregressive):
    """Causal transformer over codes in raster order, level after level: each position sees all before it.

    A position's input is the code before it, or a learned start, with a learned vector of the position and one of the
    class. Each level has vectors and a head of its own. The heads start at 0, where all codes are alike.

    width: of its vectors, which `heads` divides. heads: of attention. layers: of blocks. dropout: its probability.
    The rest as in `Autoregressive`. Raises UserError for a width that the heads do not divide.
    """

    blocks: Sequence[Block]
    levels: Tensor

    def __init__(
        self,
        codes: PositiveInt,
        maps: list[tuple[int, int]],
        num_classes: int | None,
        width: PositiveInt,
        heads: PositiveInt,
        layers: PositiveInt,
        dropout: Decay,
        labels: bool,
        epochs: PositiveInt,
        batch_size: PositiveInt,
        lr: PositiveFloat,
        patience: PositiveInt,
    ):
        super().__init__(codes, maps, num_classes, labels, epochs, batch_size, lr, patience)
        if width % heads:
            raise UserError(f"prior.width={width}: must be a multiple of prior.heads={heads}")
        self.words = "a transformer"
        self.embedding = nn.Embedding(len(self.maps) * codes + 1, width)  # the last one is the start
        self.place_of = nn.Embedding(self.positions, width)
        self.told = None if self.classes is None else nn.Embedding(self.classes, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))  # type: ignore[assignment]
        self.norm, self.heads = nn.LayerNorm(width), nn.ModuleList(nn.Linear(width, codes) for _ in self.maps)
        levels = torch.repeat_interleave(torch.arange(len(self.maps)), torch.tensor(self.counts))
        self.register_buffer("levels", levels, persistent=False)  # the level of each position
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=START)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for weight in self.heads.parameters():
            nn.init.zeros_(weight)

    def numbered(self, z: Tensor, places: slice) -> Tensor:
        """Numbers the codes at some places, [B, p], through all levels' vectors."""
        return z + self.codes * self.levels[places]

    def inputs(self, before: Tensor, places: slice, labels: Tensor | None) -> Tensor:
        """The input of positions, [B, p, width]. before: the number of the code before each, [B, p], or the start's."""
        x = self.embedding(before) + self.place_of.weight[places]
        return self.dropout(x if self.told is None or labels is None else x + self.told(labels)[:, None])

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        before = F.pad(self.numbered(z, slice(None))[:, :-1], (1, 0), value=self.embedding.num_embeddings - 1)
        x = self.inputs(before, slice(None), labels)
        for block in self.blocks:
            x = block(x)
        parts = self.norm(x).split(self.counts, 1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], 1)

    def stepper(self, count: int, labels: Tensor | None) -> Stepper:
        return Cached(self, count, labels)


class Cached(Stepper):
    """Keeps the keys and values of the positions before, so that a step computes one position."""

    prior: Transformer

    def __init__(self, prior: Transformer, count: int, labels: Tensor | None):
        super().__init__(prior, count, labels)
        weight, heads = prior.place_of.weight, prior.blocks[0].heads
        size = (2, count, heads, prior.positions, weight.shape[1] // heads)
        self.known = [weight.new_zeros(size) for _ in prior.blocks]
        self.level = [level for level, size in enumerate(prior.counts) for _ in range(size)]

    def next(self, indices: Tensor | None) -> Tensor:
        self.position += 1
        here, until = slice(self.position, self.position + 1), self.position + 1
        before = torch.full_like(self.z[:, :1], self.prior.embedding.num_embeddings - 1)
        if indices is not None:
            before = self.prior.numbered(indices[:, None], slice(self.position - 1, self.position))
        x = self.prior.inputs(before, here, self.labels)
        for block, known in zip(self.prior.blocks, self.known, strict=True):
            queries, keys, values = block.parts(x)
            known[0, :, :, here], known[1, :, :, here] = keys, values
            x = block.end(x, F.scaled_dot_product_attention(queries, known[0, :, :, :until], known[1, :, :, :until]))
        return self.prior.heads[self.level[self.position]](self.prior.norm(x))[:, 0]
