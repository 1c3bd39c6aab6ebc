"""Conditions: what a model is told of an image beside its pixels, as a vector for encoder and decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import Fraction, PositiveInt


class Unconditional(nn.Module):
    """Base class of the conditions, which tells a model nothing beside the pixels.

    num_classes: number of classes of the data's labels, which are not looked at.
    """

    size = 0
    """Number E of entries of an image's vector; 0 where nothing is told."""
    drop = 0.0
    """Share of training images of which nothing is told."""
    null: int | None = None
    """The label that stands for an image of which nothing is told; None where a model does not know how that is."""

    def __init__(self, num_classes: int | None):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, labels: Tensor | None) -> Tensor | None:
        """Returns the vector of each image, [B, E], or None. labels: [B], or None where the data has none."""
        return None

    @property
    def table(self) -> Tensor | None:
        """The vector of each class, [K, E], or None."""
        return None

    def in_turn(self, count: int) -> Tensor | None:
        """Chooses labels for `count` new images when none are asked for: [count] int64, or None."""
        return None

    def dropped(self, labels: Tensor | None) -> Tensor | None:
        """Puts the null in the place of a share `drop` of the labels of a training batch, drawn at random."""
        if labels is None or self.null is None:
            return labels
        return labels.masked_fill(torch.rand(len(labels), device=labels.device) < self.drop, self.null)


class Label(Unconditional):
    """Tells a model the class of an image as a learned vector (Sohn, Lee & Yan 2015).

    Its entries start as N(0, 1) / sqrt(dim), so its norm is about 1 while |z| under the prior is about
    sqrt(latent_dim): the label informs the decoder without dwarfing z.

    dim: number of entries. drop: the share of training images that have the null's vector in the place of their
    class's, so that the model also draws images of which no class is told (Ho & Salimans 2022, algorithm 1).
    Raises UserError for data without labels.
    """

    def __init__(self, num_classes: int | None, dim: PositiveInt, drop: Fraction = 0.0):
        super().__init__(num_classes)
        if num_classes is None:
            raise UserError(
                "condition=label needs labels, and this data set has none: leave it out, or take a labelled dataset"
            )
        self.size, self.drop, self.null = dim, drop, num_classes if drop else None
        self.embedding = nn.Embedding(num_classes + bool(drop), dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a conditional model needs the images' labels")
        return self.embedding(labels)

    @property
    def table(self) -> Tensor:
        return self.embedding.weight[: self.num_classes]

    def in_turn(self, count: int) -> Tensor:
        """Takes every class in turn: [count] int64."""
        return torch.arange(count, device=self.embedding.weight.device) % len(self.table)


Condition = Unconditional


def beside(x: Tensor, context: Tensor | None) -> Tensor:
    """Appends the context of each image to vectors, feature maps or images, as further entries or channels.

    x: [B, d] or [B, C, H, W]; context: [B, E], or None for nothing to add. Returns [B, d + E] or
    [B, C + E, H, W].
    """
    if context is None:
        return x
    context = context.to(x.dtype)
    if x.ndim > 2:
        context = context[(...,) + (None,) * (x.ndim - 2)].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, context], 1)
