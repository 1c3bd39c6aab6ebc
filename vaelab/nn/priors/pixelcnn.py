"""The gated PixelCNN as a prior over maps of codes (van den Oord et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.core.types import Decay, PositiveFloat, PositiveInt
from vaelab.nn.layers import Residual
from vaelab.nn.priors.autoregressive import Autoregressive, Stepper


def _gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other, eq. 2: [B, 2C, ...] -> [B, C, ...]."""
    first, second = x.chunk(2, 1)
    return first.tanh() * second.sigmoid()


class Layer(nn.Module):
    """A layer of two stacks, figure 2: the vertical one sees the rows above, the horizontal one what is left of it.

    first: whether the position itself is hidden from it; later layers may look at their own position, of which the
    first has hidden the code. below: whether there are levels above this one. The kernels end at what may be seen, in
    the place of masks.
    """

    def __init__(self, channels: int, kernel_size: int, classes: int | None, dropout: float, first: bool, below: bool):
        super().__init__()
        self.reach, self.first = kernel_size // 2, first
        self.extent = self.reach if first else self.reach + 1
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.extent, kernel_size))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.extent))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.told = None if classes is None else nn.Embedding(classes, 4 * channels)
        self.given = nn.Conv2d(channels, 4 * channels, 1) if below else None

    def told_of(self, labels: Tensor | None, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is added to each stack before its gate, eq. 4 and what follows it: [B or 1, 2C, h or 1, w or 1] each.

        labels: [B], of a prior that is told the class. above: [B, C, h, w], what the levels above say of each position.
        """
        told = self.out.weight.new_zeros(1, 4 * self.out.out_channels, 1, 1)
        if self.told is not None and labels is not None:
            told = told + self.told(labels)[..., None, None]
        if self.given is not None and above is not None:
            told = told + self.given(above)
        first, second = told.chunk(2, 1)
        return first, second

    def end_above(self, before: Tensor, v: Tensor) -> Tensor:
        """The vertical stack after its gate, with the residual connection. before: [B, 2C, ...]; v: [B, C, ...]."""
        made = _gate(before)
        return made if self.first else v + made  # v and h of the first layer are the code itself

    def end_left(self, before: Tensor, h: Tensor) -> Tensor:
        """The same of the horizontal stack."""
        made = self.out(self.dropout(_gate(before)))
        return made if self.first else h + made

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both stacks, [B, C, h, w] each. labels, context: see `told_of`."""
        (height, width), reach = v.shape[2:], self.reach
        above, left = self.told_of(labels, context)
        from_above = self.vertical(F.pad(v, (reach, reach, reach, 0)))[:, :, :height] + above
        from_left = self.horizontal(F.pad(h, (reach, 0)))[..., :width] + left
        return self.end_above(from_above, v), self.end_left(from_left + self.across(from_above), h)


class LevelCNN(nn.Module):
    """The network of one level: p(code | those before it in its map, all of the levels above it).

    The levels above are seen whole: a vector for each of their codes, at this level's size (eq. 5 of the paper, where
    a location-dependent h is mapped on the image), then two residual blocks.

    codes: K. size: (h, w) of the level. above: number of levels above it. The rest as in `PixelCNN`.
    """

    layers: Sequence[Layer]

    def __init__(
        self, codes: int, size: tuple[int, int], above: int, classes: int | None, channels: int, layers: int,
        kernel_size: int, dropout: float,
    ):  # fmt: skip
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(codes, channels)
        self.above = nn.ModuleList(nn.Embedding(codes, channels) for _ in range(above))
        self.seeing = nn.Sequential(*(Residual(channels, nn.ReLU) for _ in range(2 if above else 0)))
        stack = [
            Layer(channels, kernel_size, classes, dropout, first=number == 0, below=above > 0)
            for number in range(layers)
        ]
        self.layers = nn.ModuleList(stack)  # type: ignore[assignment]
        last = nn.Conv2d(channels, codes, 1)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torch's own start is so small that gates fade
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def context(self, above: Sequence[Tensor]) -> Tensor | None:
        """What the levels above say of each position, [B, C, h, w]; None at the first. above: codes, [B, h, w]."""
        if not self.above:
            return None
        maps = [embedding(codes).movedim(-1, 1) for embedding, codes in zip(self.above, above, strict=True)]
        return self.seeing(torch.stack([F.interpolate(one, self.size, mode="nearest-exact") for one in maps]).sum(0))

    def forward(self, z: Tensor, labels: Tensor | None, context: Tensor | None) -> Tensor:
        """The logits of each position, [B, h w, K]. z: [B, h, w]."""
        v = h = self.embedding(z).movedim(-1, 1)
        for layer in self.layers:
            v, h = layer(v, h, labels, context)
        return self.head(h).flatten(2).transpose(1, 2)


class PixelCNN(Autoregressive):
    """Gated PixelCNN over maps of codes: van den Oord et al. 2016, section 2, in which no position has a blind spot.

    A position sees layers * (kernel_size // 2) rows up and columns to either side, and all of the levels above its
    own, each level by a network of its own. The head starts at 0, where all codes are alike. Deviations: the vertical
    stack has residual connections, too; dropout in the horizontal one.

    channels: C of both stacks. layers: of them. kernel_size: of the vertical stack. dropout: its probability.
    The rest as in `Autoregressive`.
    """

    levels: Sequence[LevelCNN]

    def __init__(
        self,
        codes: PositiveInt,
        maps: list[tuple[int, int]],
        num_classes: int | None,
        channels: PositiveInt,
        layers: PositiveInt,
        kernel_size: Literal[3, 5, 7],
        dropout: Decay,
        labels: bool,
        epochs: PositiveInt,
        batch_size: PositiveInt,
        lr: PositiveFloat,
        patience: PositiveInt,
    ):
        super().__init__(codes, maps, num_classes, labels, epochs, batch_size, lr, patience)
        self.words = "a PixelCNN"
        made = [
            LevelCNN(codes, size, number, self.classes, channels, layers, kernel_size, dropout)
            for number, size in enumerate(self.maps)
        ]
        self.levels = nn.ModuleList(made)  # type: ignore[assignment]

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        maps = [part.unflatten(1, size) for part, size in zip(z.split(self.counts, 1), self.maps, strict=True)]
        found = [
            level(own, labels, level.context(maps[:number]))
            for number, (level, own) in enumerate(zip(self.levels, maps, strict=True))
        ]
        return torch.cat(found, 1)

    def stepper(self, count: int, labels: Tensor | None) -> Stepper:
        return Rows(self, count, labels)


class Rows(Stepper):
    """Computes the vertical stack once per row, the horizontal one once per position, and keeps both."""

    prior: PixelCNN

    def __init__(self, prior: PixelCNN, count: int, labels: Tensor | None):
        super().__init__(prior, count, labels)
        self.begun = -1  # number of the level that it is at
        self.start = 0  # the level's first position
        self.end = 0  # the first position behind it

    def next(self, indices: Tensor | None) -> Tensor:
        if indices is not None:
            self.z[:, self.position] = indices
        self.position += 1
        if self.position == self.end:
            self._begin_level()
        elif indices is not None:
            row, column = divmod(self.position - 1 - self.start, self.width)
            code = self.level.embedding(indices)
            self.v[0][:, :, self.reach + row, self.reach + column] = code
            self.h[0][:, :, 0, self.reach + column] = code
        row, column = divmod(self.position - self.start, self.width)
        if column == 0:
            self._begin_row(row)
        return self._at(column)

    def _begin_level(self) -> None:
        """Takes up the next level, given the codes of those above it."""
        prior, count = self.prior, len(self.z)
        self.begun += 1
        self.start, self.end = self.end, self.end + prior.counts[self.begun]
        self.level, (height, self.width) = prior.levels[self.begun], prior.maps[self.begun]
        weight, layers = self.level.embedding.weight, self.level.layers
        self.reach, channels = layers[0].reach, weight.shape[1]
        # what each layer gets, with the padding: [B, C, reach + h, w + 2 reach], and of this row [B, C, 1, reach + w]
        size = self.reach + height, self.width + 2 * self.reach
        self.v = [weight.new_zeros(count, channels, *size) for _ in layers]
        self.h = [weight.new_zeros(count, channels, 1, self.reach + self.width) for _ in layers]
        before = zip(self.z.split(prior.counts, 1), prior.maps[: self.begun], strict=False)
        context = self.level.context([part.unflatten(1, size) for part, size in before])
        told = [layer.told_of(self.labels, context) for layer in layers]
        self.told = [tuple(x.expand(-1, -1, height, -1) for x in both) for both in told]

    def _begin_row(self, row: int) -> None:
        """Computes the vertical stack of a row, of which no code is known yet."""
        self.from_above: list[Tensor] = []
        here = slice(self.reach, self.reach + self.width)
        for number, layer in enumerate(self.level.layers):
            seen = self.v[number][:, :, row : row + layer.extent]
            above, left = (told[:, :, row : row + 1] for told in self.told[number])
            from_above = layer.vertical(seen) + above
            self.from_above.append(layer.across(from_above) + left)
            self.h[number].zero_()
            if number + 1 < len(self.v):
                own = seen[:, :, -1:, here]  # of the first layer the row above, which has no residual connection
                self.v[number + 1][:, :, self.reach + row, here] = layer.end_above(from_above, own)[:, :, 0]

    def _at(self, column: int) -> Tensor:
        """Computes the horizontal stack and the logits, [B, K], of a column of this row."""
        h = self.h[0]
        for number, layer in enumerate(self.level.layers):
            seen = self.h[number][..., column : column + layer.extent]
            before = layer.horizontal(seen) + self.from_above[number][..., column : column + 1]
            h = layer.end_left(before, seen[..., -1:])
            if number + 1 < len(self.h):
                self.h[number + 1][..., self.reach + column] = h[..., 0]
        return self.level.head(h)[:, :, 0, 0]
