"""A user's examples as a trained model sees them, and what the model makes of them in the user's units."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.datasets.own.arrays import ArraySplit
from vaelab.datasets.splits import unit
from vaelab.runs.trained import Trained

LAYOUTS = ("nchw", "nhwc", "nhw", "ncl", "nlc", "nd")
"""Orders of axes that are tried, beside that of the training data."""


def as_model_sees(trained: Trained, x: Any) -> Tensor:
    """Converts examples to what the model takes, [N, C, H, W] in its range.

    x: images of 8 or 16 bits or in [0, 1], or arrays in the units of the training data. Binarised pixels are black or
    white by 1/2. Raises UserError if they are of another shape.
    """
    values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    config, model = trained.dataset, trained.model
    for layout in (config.get("layout"), *LAYOUTS):
        if layout is None or len(layout) != values.ndim or values.dtype.kind not in "buif" or not len(values):
            continue
        split = ArraySplit(values, layout, config.get("value_range"))
        if split.shape == model.shape:
            images = unit(split.batch(torch.arange(len(split))).images)
            images = (images > 0.5).float() if config["binarize"] != "none" else images
            low, high = trained.pixel_range
            return images.mul_(high - low).add_(low)
    shape = ", ".join(map(str, model.shape))
    raise UserError(f"x: {values.dtype} {list(values.shape)}, and the model takes numbers, [N, {shape}]")


def in_own_units(trained: Trained, images: Tensor) -> Tensor:
    """Gives unit images, [N, C, H, W], the units and axes of the training data: vectors [N, D], sequences [N, C, L]."""
    if value_range := trained.dataset.get("value_range"):
        low, high = value_range
        images = images * (high - low) + low
    channels, height, _ = trained.model.shape
    return images.flatten(1) if channels == height == 1 else images.squeeze(2) if height == 1 else images


def labels_of(trained: Trained, labels: Any, count: int) -> Tensor | None:
    """Returns the classes of `count` examples, [count] int64, or None for a model that is told none.

    labels: numbers or names, one for each or one for all. Raises UserError where they are missing or too many.
    """
    model, name = trained.model, type(trained.model).__name__
    if labels is None:
        if model.conditional:
            raise UserError(f"labels: {name} has to know the class of each example")
        return None
    if not model.by_class:
        raise UserError(f"labels: {name} takes none: leave them out")
    values = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    given = values.tolist() if values.ndim else [values.item()] * count
    if len(given) != count:
        raise UserError(f"labels: {len(given)} for {count} examples: give one for each")
    return torch.tensor([trained.classes.require(label) for label in given])
