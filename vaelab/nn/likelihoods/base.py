"""The contract of an observation model p(x|z): what a decoder's raw output says about an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.core.types import Shape


class Likelihood(nn.Module):
    """Base class of the observation models. Images are [B, C, H, W], raw parameters as `raw_shape` has them.

    name: as in conf/likelihood. unit_range: whether it needs pixels in [0, 1]. missing: whether a value that is NaN is
    one that nobody observed; off, so that a training step on whole images looks for none.
    """

    name: str
    unit_range = False
    missing = False
    counted: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counted", None, persistent=False)

    def count_only(self, values: Tensor) -> None:
        """Has `log_prob` count some values alone, [C, H, W] bool: what a model is told, it does not have to predict.

        The others may be NaN.
        """
        self.counted = values

    def dimensions(self, shape: Shape) -> int:
        """Returns how many values of an example of `shape` are counted."""
        return math.prod(shape) if self.counted is None else int(self.counted.sum())

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Computes log p(x|z), [B], nats: summed over pixels and channels, those missing or not counted left out.

        Missing at random, what was observed has the marginal probability of the others, which are independent given z:
        their product (Mattei & Frellsen 2019, eq. 4).
        """
        if self.counted is not None:  # a NaN would come back with the gradients
            x = x.masked_fill(~self.counted, 0.0)
        values = self.log_density(raw, x.nan_to_num() if self.missing else x)
        if self.missing:
            values = values.masked_fill(x.isnan(), 0.0)
        if self.counted is not None:
            values = values.masked_fill(~self.counted, 0.0)
        return sum_pixels(values)

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        """Computes the log-density of each pixel or channel, [B, C, H, W], nats. x: [B, C, H, W], none missing."""
        raise NotImplementedError

    def raw_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the raw parameters of an image of `shape`: one of each value, unless overridden."""
        return shape

    def mean(self, raw: Tensor) -> Tensor:
        """Returns the mean image E[x|z], [B, C, H, W]."""
        return raw

    def sample(self, raw: Tensor) -> Tensor:
        """Draws x ~ p(x|z), [B, C, H, W]."""
        raise NotImplementedError

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        """Returns raw parameters whose mean is the image `mean`: where a fresh decoder's output bias starts."""
        return mean

    def start_from(self, spread: float) -> None:
        """Fits the scale of a fresh likelihood, if it learns one, to `spread`: the pixels' standard deviation."""

    @property
    def fixed_scale(self) -> float | None:
        """The width of the noise, in the data's range, where the config fixes it."""
        return None

    def density(self, binary: bool) -> str:
        """Says in words what `log_prob` is on such data, for the run's summary.

        binary: whether pixels are binarised.
        """
        return "a density on pixels"

    def discrete(self, binary: bool) -> bool:
        """Whether each pixel is 1 with the probability `mean`, else 0, by `log_prob`. binary: as for `density`."""
        return False

    def check(self, pixel_range: tuple[float, float]) -> None:
        """Raises UserError if images in `pixel_range` are outside the support."""
        if self.unit_range and pixel_range != (0.0, 1.0):
            raise UserError(
                f"likelihood={self.name} takes pixels in [0, 1], but dataset.pixel_range={list(pixel_range)}: "
                "use dataset.pixel_range=[0,1] or likelihood=gaussian"
            )


def sum_pixels(x: Tensor) -> Tensor:
    """Sums everything but the batch: [B, ...] -> [B], in float32."""
    return x.flatten(1).sum(1, dtype=torch.float32)
