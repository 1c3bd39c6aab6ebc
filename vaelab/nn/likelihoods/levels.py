"""Observation models of pixels that take whole levels, such as the 256 of 8 bits: probabilities, and no densities."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vaelab.core.types import PositiveFloat, Shape
from vaelab.nn.likelihoods.base import Likelihood

Levels = Annotated[int, Field(ge=2, le=2**16)]


class _Levels(Likelihood):
    """Base class of the observation models of pixels that take `levels` values, evenly spaced from 0 to 1."""

    unit_range = True

    def __init__(self, levels: Levels):
        super().__init__()
        self.levels = levels

    def density(self, binary: bool) -> str:
        return f"a probability of {self.levels:,} levels"


class DiscretisedLogistic(_Levels):
    """Logistic pixels, rounded to levels, with one learned scale of all pixels (Salimans et al. 2017, eq. 2).

    The raw parameter is the location; what lies beyond 0 or 1 counts for them. Deviations: one component, and not a
    mixture; the scale is a parameter of the model, not an output of the decoder, and is moved GAIN times faster than a
    weight, as in GaussianLearned. The paper's difference of two distribution functions, which needs a floor, is here
    written without one: sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
    """

    name = "discretised_logistic"
    GAIN = 10.0

    def __init__(self, scale: PositiveFloat, levels: Levels):
        super().__init__(levels)
        self.scaled_log_scale = nn.Parameter(torch.tensor(float(scale)).log() / self.GAIN)

    @property
    def scale(self) -> Tensor:
        """The scale s of the logistic distribution, a scalar tensor; its standard deviation is pi s / sqrt(3)."""
        return (self.GAIN * self.scaled_log_scale).exp()

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        x, step, scale = x.float(), 1 / (self.levels - 1), self.scale
        centred = x - raw.float()
        below = F.logsigmoid((centred + step / 2) / scale)  # log P(X < upper edge)
        above = F.logsigmoid((step / 2 - centred) / scale)  # log P(X > lower edge)
        between = below + above + (-torch.expm1(-step / scale)).log()
        return torch.where(x < step / 2, below, torch.where(x > 1 - step / 2, above, between))

    def mean(self, raw: Tensor) -> Tensor:
        """Returns the mean image by an integral in place of the sum over levels: off by less than half a level."""
        raw, scale = raw.float(), self.scale
        return (scale * (F.softplus(raw / scale) - F.softplus((raw - 1) / scale))).clamp(0, 1)

    def sample(self, raw: Tensor) -> Tensor:
        u = torch.rand_like(raw.float()).clamp(1e-7, 1 - 1e-7)
        levels = self.levels - 1
        return ((raw.float() + self.scale * u.logit()).clamp(0, 1) * levels).round() / levels

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        scale, mean = self.scale.detach(), mean.clamp(0.005, 0.995)
        upper, lower = mean / scale, (1 - mean) / scale
        return mean + scale * ((-torch.expm1(-upper)).log() - (-torch.expm1(-lower)).log())

    def start_from(self, spread: float) -> None:
        self.scaled_log_scale.data.fill_(math.log(max(spread * math.sqrt(3) / math.pi, 1e-3)) / self.GAIN)


class BetaBinomial(_Levels):
    """Beta-binomial pixels: of n = levels - 1 draws, each is white with a probability that has a beta distribution.

    Raw parameters are two of each pixel, in the channels: the logit of the mean, then the logarithm of alpha + beta,
    kept between e^-6 and e^10. They are used in float64, for the logarithms of gamma functions nearly cancel.
    """

    name = "beta_binomial"
    LEAST, MOST, START = -6.0, 10.0, 2.0

    def raw_shape(self, shape: Shape) -> Shape:
        return (2 * shape[0], *shape[1:])

    def _alpha_beta(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha and beta of each pixel."""
        logit, concentration = raw.to(torch.float32 if raw.device.type == "mps" else torch.float64).chunk(2, -3)
        total = concentration.clamp(self.LEAST, self.MOST).exp()
        return (total * logit.sigmoid()).clamp_min(1e-6), (total * (-logit).sigmoid()).clamp_min(1e-6)

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        (alpha, beta), n = self._alpha_beta(raw), self.levels - 1
        k = (x * n).round().to(alpha)
        choices = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return (choices + _log_beta(k + alpha, n - k + beta) - _log_beta(alpha, beta)).float()

    def mean(self, raw: Tensor) -> Tensor:
        alpha, beta = self._alpha_beta(raw)
        return (alpha / (alpha + beta)).float()

    def sample(self, raw: Tensor) -> Tensor:
        p = torch.distributions.Beta(*self._alpha_beta(raw)).sample()
        n = self.levels - 1
        return torch.binomial(torch.full_like(p, n), p).float() / n

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        return torch.cat([mean.clamp(1e-3, 1 - 1e-3).logit(), torch.full_like(mean, self.START)], -3)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
