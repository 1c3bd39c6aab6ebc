"""What figures are drawn from: a model, its data, and what the model makes of some images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaelab.core.pixels import to_unit
from vaelab.core.randomness import seeded
from vaelab.evaluation.metrics.codes import code_histogram
from vaelab.inference import coding, paths

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model
    from vaelab.nn.posteriors import Posterior, Usage

FEW = 32
"""Images that a grid shows."""
MANY = 2000
"""Most images of histograms and scatter plots; fewer, if they would have more than NUMBERS numbers."""
NUMBERS = 2**26
"""Most numbers that the images of histograms and scatter plots have in all."""
ROWS = 20
"""Most rows of a figure: latent dimensions, or classes."""
SEED = 0
"""Seed of all draws: they are the same every time, so that figures can be compared."""


@dataclass(eq=False)
class Scene:
    """A model to draw, its data, set up, and a few and many of its validation images.

    Without validation images, training images are taken. count: how many a few are.
    """

    model: Model
    data: ImageData
    count: int

    @cached_property
    def few(self) -> Any:
        return self.data.sample_batch(self.count, self.model.device)

    @cached_property
    def many(self) -> Any:
        return self.data.sample_batch(many(self.data.shape), self.model.device)

    @cached_property
    def known(self) -> Any:
        """Many training images, taken evenly from the whole split."""
        index = torch.linspace(0, len(self.data.train) - 1, min(many(self.data.shape), len(self.data.train))).long()
        return self.data.as_model_sees(self.data.train.batch(index).to(self.model.device))

    @property
    def pictures(self) -> bool:
        """Whether an example is a picture: no row of a table, and no sequence."""
        return self.data.fields is None and self.data.shape[1] > 1

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Many training rows of a table and as many drawn ones, [N, D] each, as the model sees them; None without."""
        if self.data.fields is None or self.model.prior is None:
            return None
        labels = self.known.labels if self.model.told else None
        with seeded(SEED, self.model.device), torch.no_grad():
            z = torch.cat([*coding.draws(self.model, len(self.known.images), SEED, labels=labels)])
            drawn = [self.model.likelihood.sample(raw).cpu() for raw in coding.raw(self.model, z, labels)]
        return self.known.images[:, 0, 0].cpu(), torch.cat(drawn)[:, 0, 0]

    @cached_property
    def posterior(self) -> Posterior:
        """The posterior of many images, on the model's device."""
        return coding.posterior(self.model, self.many.images, self.many.labels)

    @cached_property
    def codes(self) -> Tensor:
        """The codes of many images, [N, d], or code indices, [N, h, w], on the processor."""
        with torch.no_grad():
            return self.posterior.code.cpu()

    @cached_property
    def counts(self) -> Tensor:
        """How often many training images choose each code of each level, [L, K], of a model with discrete codes."""
        codes, layout = coding.codes(self.model, self.known.images, self.known.labels), self.model.layout
        size = layout.require_codes(type(self.model).__name__)
        return torch.stack([code_histogram(level, size) for level in layout.split(codes)])

    @cached_property
    def made(self) -> Tensor:
        """Reconstructions of many images, in [0, 1]."""
        return coding.decode(self.model, self.codes, self.many.labels, self.data.pixel_range)

    @cached_property
    def usage(self) -> tuple[Tensor, Usage]:
        """The axes of the code from the most to the least used, and how much each is used."""
        return paths.usage(self.model, self.many.images, self.many.labels)

    def unit(self, x: Tensor) -> Tensor:
        """Moves images as the model sees them to [0, 1], on the processor; what is missing is black."""
        return to_unit(x, self.data.pixel_range).nan_to_num().cpu()

    @property
    def classes(self) -> list[str]:
        """Names of the classes as figures take them: a $ would begin a formula."""
        return [name.replace("$", r"\$") for name in self.data.class_names or []]

    @property
    def one(self) -> Tensor | None:
        """The label of the first image, [1], or None."""
        return None if self.few.labels is None else self.few.labels[:1]


def many(shape: tuple[int, ...]) -> int:
    """Returns how many images of a shape are drawn from, so that they need no more than 256 MB as floats."""
    return max(FEW, min(MANY, NUMBERS // math.prod(shape)))
