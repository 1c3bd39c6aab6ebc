"""Conditions: what a model is told of an image beside its pixels, as a vector for encoder and decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt


class Unconditional(nn.Module):
    """Base class of the conditions, which tells a model nothing beside the pixels.

    num_classes: number of classes of the data's labels, which are not looked at.
    """

    size = 0
    """Number E of entries of an image's vector; 0 where nothing is told."""

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


class Label(Unconditional):
    """Tells a model the class of an image as a learned vector (Sohn, Lee & Yan 2015).

    Its entries start as N(0, 1) / sqrt(dim), so its norm is about 1 while |z| under the prior is about
    sqrt(latent_dim): the label informs the decoder without dwarfing z.

    dim: number of entries. Raises UserError for data without labels.
    """

    def __init__(self, num_classes: int | None, dim: PositiveInt):
        super().__init__(num_classes)
        if num_classes is None:
            raise UserError(
                "condition=label needs labels, and this data set has none: leave it out, or take a labelled dataset"
            )
        self.size = dim
        self.embedding = nn.Embedding(num_classes, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("a conditional model needs the images' labels")
        return self.embedding(labels)

    @property
    def table(self) -> Tensor:
        return self.embedding.weight

    def in_turn(self, count: int) -> Tensor:
        """Takes every class in turn: [count] int64."""
        return torch.arange(count, device=self.embedding.weight.device) % self.embedding.num_embeddings


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
