"""The unit sphere in R^d: its area, and the angle of a von Mises-Fisher draw, by one quadrature for all it is asked.

The density of z on the sphere is proportional to exp(kappa m.z), with a mean direction m and a concentration kappa
(Davidson et al. 2018, section 3.1). Only the angle theta between z and m has a law that depends on kappa: its density
is proportional to exp(kappa cos theta) sin(theta)^(d - 2) on [0, pi]. The normalising constant, the moments, the KL
and the quantiles are integrals of this one smooth bump. A grid of a hundred points, as wide as the bump is, has them
for every kappa and d, where the Bessel functions of the closed forms overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CELLS = 32
"""Cells that the range of the angle is divided into."""
REACH = 9
"""Standard deviations to both sides of the mode that the range has, where that is less than [0, pi]."""
STEPS = 4
"""Steps to a quantile, within a cell."""
NODE = math.sqrt(0.6)
"""Place of the outer nodes of Gauss's rule of three points on [-1, 1]; their weights are 5/9, the middle one's 8/9."""


def log_area(dimensions: int) -> float:
    """Computes the logarithm of the area of the unit sphere in R^d, which is 2 pi^(d/2) / Gamma(d/2)."""
    return math.log(2) + 0.5 * dimensions * math.log(math.pi) - math.lgamma(0.5 * dimensions)


class Angle:
    """The law of the angle between the mean direction of a von Mises-Fisher distribution and a draw of it.

    What it computes has its gradient in kappa, the first one, in closed form.

    concentration: kappa > 0, [..., 1], float64 where the device has it. dimensions: d, at least 2.
    """

    def __init__(self, concentration: Tensor, dimensions: int):
        self._given, self.kappa, self.power = concentration, concentration.detach(), dimensions - 2
        self.edges = self._grid()
        cosines, exponent = self._exponent(_nodes(self.edges[..., :-1], self.edges[..., 1:]), self.kappa[..., None])
        self._peak = exponent.amax((-2, -1))[..., None]
        density, width = (exponent - self._peak[..., None]).exp(), self.edges.diff(dim=-1)
        self.masses, self.gaps = _gauss(density, width), _gauss(density * cosines, width)
        self.total = self.masses.sum(-1, keepdim=True)
        self.mean_gap = self.gaps.sum(-1, keepdim=True) / self.total
        spread = density * (cosines - self.mean_gap[..., None]).square()
        self.variance = _gauss(spread, width).sum(-1, keepdim=True) / self.total

    def _grid(self) -> Tensor:
        """Places the edges of the cells around the mode: [..., CELLS + 1]."""
        # of the normal that has the mode's curvature, or half of it; at 1 the range is all of [0, pi]
        variance = (2 / (self.power + (self.power**2 + 4 * self.kappa.square()).sqrt())).clamp_max(1)
        mode, reach = torch.atan2((self.power * variance).sqrt(), self.kappa * variance), REACH * variance.sqrt()
        low, high = (mode - reach).clamp_min(0), (mode + reach).clamp_max(math.pi)
        return low + (high - low) * torch.linspace(0, 1, CELLS + 1, dtype=low.dtype, device=low.device)

    def _exponent(self, theta: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """Computes 1 - cos theta, and the log-density up to a constant: (d - 2) log sin theta - kappa (1 - cos theta).

        Both lose nothing where theta is small.
        """
        gap = 2 * (0.5 * theta).sin().square()
        return gap, torch.xlogy(0.5 * self.power, gap * (2 - gap)) - kappa * gap

    def _with_slope(self, value: Tensor, slope: Tensor) -> Tensor:
        """Gives a value its derivative in kappa."""
        return value + slope * (self._given - self.kappa)

    @property
    def log_mass(self) -> Tensor:
        """The logarithm of the integral of exp(kappa (cos theta - 1)) sin(theta)^(d - 2), [..., 1]."""
        return self._with_slope(self.total.log() + self._peak, -self.mean_gap)

    @property
    def kl(self) -> Tensor:
        """KL to the uniform distribution on the sphere, [..., 1], nats: its derivative is kappa Var[cos theta]."""
        uniform = log_area(self.power + 2) - log_area(self.power + 1)
        kl = uniform - self.kappa * self.mean_gap - self.total.log() - self._peak
        return self._with_slope(kl, self.kappa * self.variance)

    def quantile(self, u: Tensor) -> Tensor:
        """Computes the angle below which a draw lies with probability u, [..., 1] both.

        Its derivative is that of the implicit function F(theta; kappa) = u, -(dF / dkappa) / (dF / dtheta).
        """
        cell = (self.masses.cumsum(-1)[..., :-1] < u * self.total).sum(-1, keepdim=True)
        left, right = _picked(self.edges[..., :-1], cell), _picked(self.edges[..., 1:], cell)
        below, gaps = (_picked(values.cumsum(-1) - values, cell) for values in (self.masses, self.gaps))
        wanted = u * self.total - below
        theta = self._start(left, right, (wanted / _picked(self.masses, cell)).clamp(0, 1))
        least = torch.finfo(theta.dtype).tiny
        for _ in range(STEPS):  # Newton's on log F as a function of log theta, which is a line where theta is small
            reached = (below + self._up_to(theta, left)[0]).clamp_min(least)
            power = reached / (theta * self._density(theta)).clamp_min(least)
            theta = (theta * ((below + wanted) / reached) ** power).clamp(left, right)
        mass, gap = self._up_to(theta, left)
        moved = self.mean_gap * (below + mass) - (gaps + gap)
        return self._with_slope(theta, -moved / self._density(theta).clamp_min(least))

    def _start(self, left: Tensor, right: Tensor, part: Tensor) -> Tensor:
        """Guesses where a part of a cell's mass is reached, as if the density were linear there."""
        first, last = self._density(left), self._density(right)
        root = (first.square() * (1 - part) + last.square() * part).sqrt()
        return torch.lerp(left, right, part * (first + last) / (first + root).clamp_min(torch.finfo(part.dtype).tiny))

    def _density(self, theta: Tensor) -> Tensor:
        """Computes the density at theta, in units of that of the highest node."""
        return (self._exponent(theta, self.kappa)[1] - self._peak).exp()

    def _up_to(self, theta: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Integrates the density, and 1 - cos theta under it, from the left edge of a cell to theta."""
        gap, exponent = self._exponent(_nodes(left, theta), self.kappa[..., None])
        density = (exponent - self._peak[..., None]).exp()
        return _gauss(density, theta - left), _gauss(density * gap, theta - left)


def _nodes(left: Tensor, right: Tensor) -> Tensor:
    """Returns the nodes of Gauss's rule between two points: [..., n] both -> [..., n, 3]."""
    middle, half = 0.5 * (left + right), 0.5 * (right - left)
    return torch.stack([middle - NODE * half, middle, middle + NODE * half], -1)


def _gauss(values: Tensor, width: Tensor) -> Tensor:
    """Integrates a function by Gauss's rule of its values at three nodes, [..., n, 3], over `width`, [..., n]."""
    first, middle, last = values.unbind(-1)
    return width * (5 * (first + last) + 8 * middle) / 18


def _picked(cells: Tensor, cell: Tensor) -> Tensor:
    """Takes the value of a cell for each draw. cells: [..., n]; cell: [..., 1], of more draws."""
    return cells.expand(*cell.shape[:-1], -1).gather(-1, cell)
