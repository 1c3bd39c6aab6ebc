"""A batch of images, with what is known of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaelab.core.distributed import Share


class Labelled(NamedTuple):
    """Parts of the training images whose label is known: of the places of an epoch, and of the data; 0 to 1 both."""

    places: float
    images: float


class Batch(NamedTuple):
    """A batch of images, with what is known of each.

    images: [B, C, H, W], uint8, uint16 or floats from a split, float32 in the data's range at the model.
    labels: class indices, [B] int64, -1 where a label is not known; or vectors of numbers, [B, A] float32; or None.
    factors: ground-truth factors of variation as indices, [B, F] int64, or None.
    share: this process's part of the global batch, or None where one process has all of it.
    weight: factor of the loss in an optimiser step of several batches, so that each image of the step counts as much.
    labelled: how many images have a label, where some are without one by `dataset.labelled`, else None.
    """

    images: Tensor
    labels: Tensor | None = None
    factors: Tensor | None = None
    share: Share | None = None
    weight: float = 1.0
    labelled: Labelled | None = None

    @property
    def classes(self) -> Tensor | None:
        """The labels where they are classes, [B] int64; None where there are none, or they are vectors."""
        return self.labels if self.labels is not None and self.labels.ndim == 1 else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Moves the tensors of the batch to `device`; returns a new batch."""
        moved = (None if t is None else t.to(device, non_blocking=non_blocking) for t in self[:3])
        return Batch(*moved, *self[3:])  # type: ignore[arg-type]
