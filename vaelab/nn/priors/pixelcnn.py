"""The gated PixelCNN as a prior over maps of codes (van den Oord et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.core.types import Decay, PositiveFloat, PositiveInt
from vaelab.nn.priors.autoregressive import Autoregressive, Stepper


def _gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other, eq. 2: [B, 2C, ...] -> [B, C, ...]."""
    first, second = x.chunk(2, 1)
    return first.tanh() * second.sigmoid()


class Layer(nn.Module):
    """A layer of two stacks, figure 2: the vertical one sees the rows above, the horizontal one what is left of it.

    first: whether the position itself is hidden from it; later layers may look at their own position, of which the
    first has hidden the code. The kernels end at what may be seen, in the place of masks.
    """

    def __init__(self, channels: int, kernel_size: int, classes: int | None, dropout: float, first: bool):
        super().__init__()
        self.reach, self.first = kernel_size // 2, first
        self.extent = self.reach if first else self.reach + 1
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.extent, kernel_size))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.extent))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.told = None if classes is None else nn.Embedding(classes, 4 * channels)

    def told_of(self, labels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """What a class adds to each stack before its gate, eq. 4: [B, 2C, 1, 1] each; 0 without classes."""
        if self.told is None or labels is None:
            return 0.0, 0.0
        first, second = self.told(labels)[..., None, None].chunk(2, 1)
        return first, second

    def end_above(self, before: Tensor, v: Tensor) -> Tensor:
        """The vertical stack after its gate, with the residual connection. before: [B, 2C, ...]; v: [B, C, ...]."""
        made = _gate(before)
        return made if self.first else v + made  # v and h of the first layer are the code itself

    def end_left(self, before: Tensor, h: Tensor) -> Tensor:
        """The same of the horizontal stack."""
        made = self.out(self.dropout(_gate(before)))
        return made if self.first else h + made

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both stacks, [B, C, h, w] each."""
        (height, width), reach = v.shape[2:], self.reach
        above, left = self.told_of(labels)
        from_above = self.vertical(F.pad(v, (reach, reach, reach, 0)))[:, :, :height] + above
        from_left = self.horizontal(F.pad(h, (reach, 0)))[..., :width] + left
        return self.end_above(from_above, v), self.end_left(from_left + self.across(from_above), h)


class PixelCNN(Autoregressive):
    """Gated PixelCNN over maps of codes: van den Oord et al. 2016, section 2, in which no position has a blind spot.

    A position sees layers * (kernel_size // 2) rows up and columns to either side. The head starts at 0, where all
    codes are alike. Deviations: the vertical stack has residual connections, too; dropout in the horizontal one.

    channels: C of both stacks. layers: of them. kernel_size: of the vertical stack. dropout: its probability.
    The rest as in `Autoregressive`.
    """

    layers: Sequence[Layer]

    def __init__(
        self,
        codes: PositiveInt,
        shape: tuple[int, ...],
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
        super().__init__(codes, shape, num_classes, labels, epochs, batch_size, lr, patience)
        self.words = "a PixelCNN"
        self.embedding = nn.Embedding(codes, channels)
        stack = [Layer(channels, kernel_size, self.classes, dropout, first=number == 0) for number in range(layers)]
        self.layers = nn.ModuleList(stack)  # type: ignore[assignment]
        last = nn.Conv2d(channels, codes, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not last:  # torch's own start is so small that gates fade
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        v = h = self.embedding(z.view(len(z), *self.shape)).movedim(-1, 1)
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return self.head(h).flatten(2).transpose(1, 2)

    def stepper(self, count: int, labels: Tensor | None) -> Stepper:
        return Rows(self, count, labels)


class Rows(Stepper):
    """Computes the vertical stack once per row, the horizontal one once per position, and keeps both."""

    prior: PixelCNN

    def __init__(self, prior: PixelCNN, count: int, labels: Tensor | None):
        super().__init__(prior, count, labels)
        (height, width), weight, layers = prior.shape, prior.embedding.weight, prior.layers
        reach, channels = layers[0].reach, weight.shape[1]
        self.width, self.reach = width, reach
        # what each layer gets, with the padding: [B, C, reach + h, w + 2 reach], and of this row [B, C, 1, reach + w]
        self.v = [weight.new_zeros(count, channels, reach + height, width + 2 * reach) for _ in layers]
        self.h = [weight.new_zeros(count, channels, 1, reach + width) for _ in layers]
        self.told = [layer.told_of(labels) for layer in layers]
        self.from_above: list[Tensor] = []

    def next(self, indices: Tensor | None) -> Tensor:
        if indices is not None:
            row, column = divmod(self.position, self.width)
            code = self.prior.embedding(indices)
            self.v[0][:, :, self.reach + row, self.reach + column] = code
            self.h[0][:, :, 0, self.reach + column] = code
        self.position += 1
        row, column = divmod(self.position, self.width)
        if column == 0:
            self._begin(row)
        return self._at(column)

    def _begin(self, row: int) -> None:
        """Computes the vertical stack of a row, of which no code is known yet."""
        self.from_above, here = [], slice(self.reach, self.reach + self.width)
        for number, layer in enumerate(self.prior.layers):
            seen = self.v[number][:, :, row : row + layer.extent]
            from_above = layer.vertical(seen) + self.told[number][0]
            self.from_above.append(layer.across(from_above) + self.told[number][1])
            self.h[number].zero_()
            if number + 1 < len(self.v):
                own = seen[:, :, -1:, here]  # of the first layer the row above, which has no residual connection
                self.v[number + 1][:, :, self.reach + row, here] = layer.end_above(from_above, own)[:, :, 0]

    def _at(self, column: int) -> Tensor:
        """Computes the horizontal stack and the logits, [B, K], of a column of this row."""
        h = self.h[0]
        for number, layer in enumerate(self.prior.layers):
            seen = self.h[number][..., column : column + layer.extent]
            before = layer.horizontal(seen) + self.from_above[number][..., column : column + 1]
            h = layer.end_left(before, seen[..., -1:])
            if number + 1 < len(self.h):
                self.h[number + 1][..., self.reach + column] = h[..., 0]
        return self.prior.head(h)[:, :, 0, 0]
