"""Observation models of pixels that are independent given z, each with one raw parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.types import PositiveFloat
from vaelab.nn.likelihoods.base import Likelihood


class _LogBernoulli(torch.autograd.Function):
    """Computes l x - max(l, 0) + log sigmoid(|l|) of each pixel, and its gradient x - sigmoid(l), in few passes.

    torch computes it with log1p, for which a CPU may take ten times as long as for log. Here
    the logarithm's argument lies in [1/2, 1], so it is wrong by at most 6e-8 nats.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.addcmul(logit.abs().sigmoid_().log_().sub_(logit.clamp_min(0)), logit, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # type: ignore[override]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        logit, x = ctx.saved_tensors
        of_x = logit * gradient if ctx.needs_input_grad[1] else None
        return (x - logit.sigmoid()).mul_(gradient), of_x


def log_bernoulli(logit: Tensor, x: Tensor) -> Tensor:
    """Computes x log s + (1 - x) log(1 - s) with s = sigmoid(logit), of each pixel, nats; any shape, float32."""
    logit, x = logit.float(), x.float()
    if logit.device.type == "cpu":
        result: Any = _LogBernoulli.apply(logit, x)
        return result
    return -F.binary_cross_entropy_with_logits(logit, x, reduction="none")


class Bernoulli(Likelihood):
    """Independent binary pixels, from logits.

    On grey pixels the same formula (binary cross-entropy) is in wide use but is not the logarithm
    of a density or probability: it has no normalising constant (Loaiza-Ganem & Cunningham 2019).
    """

    name = "bernoulli"
    unit_range = True

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        return log_bernoulli(raw, x)

    def mean(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def sample(self, raw: Tensor) -> Tensor:
        return torch.bernoulli(raw.sigmoid())

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        return mean.clamp(1e-3, 1 - 1e-3).logit()

    def density(self, binary: bool) -> str:
        return "a probability of binary images" if binary else "not a density: cross-entropy on grey pixels"

    def discrete(self, binary: bool) -> bool:
        return binary


class Gaussian(Likelihood):
    """Independent normal pixels with one fixed standard deviation `sigma`, with the full constant."""

    name = "gaussian"
    log_sigma: Tensor

    def __init__(self, sigma: PositiveFloat):
        super().__init__()
        self.register_buffer("log_sigma", torch.tensor(float(sigma)).log())

    @property
    def sigma(self) -> Tensor:
        """The standard deviation, a scalar tensor."""
        return self.log_sigma.exp()

    @property
    def fixed_scale(self) -> float | None:
        return self.sigma.item()

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        squares = (x.float() - raw.float()).square()
        log_sigma = self.sigma.log()
        return -0.5 * squares * (-2 * log_sigma).exp() - (log_sigma + 0.5 * math.log(2 * math.pi))

    def sample(self, raw: Tensor) -> Tensor:
        return raw + self.sigma * torch.randn_like(raw)


class GaussianLearned(Gaussian):
    """Normal pixels with one learned standard deviation: the sigma-VAE (Rybkin et al. 2021).

    The parameter is log(sigma) / GAIN, so that Adam, whose steps have the size of the learning rate
    whatever the gradient, moves log(sigma) GAIN times faster than a weight; at 1 the noise level
    would lag the decoder by thousands of steps.
    """

    name = "gaussian_learned"
    GAIN = 10.0

    def __init__(self, sigma: PositiveFloat):
        Likelihood.__init__(self)
        self.scaled_log_sigma = nn.Parameter(torch.tensor(float(sigma)).log() / self.GAIN)

    @property
    def sigma(self) -> Tensor:
        return (self.GAIN * self.scaled_log_sigma).exp()

    @property
    def fixed_scale(self) -> float | None:
        return None

    def start_from(self, spread: float) -> None:
        self.scaled_log_sigma.data.fill_(math.log(max(spread, 1e-3)) / self.GAIN)


class ContinuousBernoulli(Likelihood):
    """A normalised density on [0, 1] with the Bernoulli's shape (Loaiza-Ganem & Cunningham 2019).

    Its density for a logit l is p(x) = l e^(l x) / (e^l - 1), eq. 4 rewritten. log((e^l - 1) / l) is computed as
    l/2 + log(sinh(l/2) / (l/2)), by its series near 0.
    """

    name = "continuous_bernoulli"
    unit_range = True
    SERIES_BELOW = 0.1

    @classmethod
    def _log_normaliser(cls, logit: Tensor) -> Tensor:
        half = logit.abs() / 2
        large = half.clamp_min(cls.SERIES_BELOW)
        exact = large + torch.log(1 - torch.exp(-2 * large)) - torch.log(2 * large)
        series = half.square() / 6 - half.pow(4) / 180
        return logit / 2 + torch.where(half < cls.SERIES_BELOW, series, exact)

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        raw = raw.float()
        return raw * x - self._log_normaliser(raw)

    def mean(self, raw: Tensor) -> Tensor:
        logit = raw.float()
        safe = torch.where(logit.abs() < self.SERIES_BELOW, torch.ones_like(logit), logit)
        # 1 / (1 - e^-|l|) - 1 / |l| for a positive logit (no overflow), mirrored for a negative one
        size = safe.abs()
        above = -1 / torch.expm1(-size) - 1 / size
        exact = torch.where(safe > 0, above, 1 - above)
        return torch.where(logit.abs() < self.SERIES_BELOW, 0.5 + logit / 12 - logit.pow(3) / 720, exact)

    def sample(self, raw: Tensor) -> Tensor:
        logit = raw.float()
        u = torch.rand_like(logit)
        size = logit.abs().clamp_min(1e-4)
        # inverse distribution function for a negative logit (no overflow), mirrored for a positive one
        draw = torch.log1p(u * torch.expm1(-size)) / -size
        return torch.where(logit > 0, 1 - draw, draw)

    def raw_from_mean(self, mean: Tensor) -> Tensor:
        target = mean.clamp(0.01, 0.99)
        low, high = torch.full_like(target, -200.0), torch.full_like(target, 200.0)
        for _ in range(50):  # bisection: the mean has no inverse in closed form
            middle = (low + high) / 2
            below = self.mean(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class Laplace(Likelihood):
    """Independent Laplace pixels with one fixed `scale` b: an L1 loss with its constant."""

    name = "laplace"
    scale: Tensor

    def __init__(self, scale: PositiveFloat):
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def fixed_scale(self) -> float | None:
        return self.scale.item()

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        return -(x.float() - raw.float()).abs() / self.scale - (2 * self.scale).log()

    def sample(self, raw: Tensor) -> Tensor:
        raw = raw.float()
        u = torch.rand_like(raw).sub_(0.5).clamp_(-0.4999999, 0.4999999)
        return raw - self.scale * u.sign() * torch.log1p(-2 * u.abs())
