"""Paths through a latent space: along single axes, and between codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.inference.coding import Range, decode, posterior
from vaelab.nn.posteriors import Usage

if TYPE_CHECKING:
    from vaelab.models import Model

PARALLEL = 1e-6
"""Sine of the angle below which two codes span no plane to turn in."""


# --- along axes -------------------------------------------------------------------------------


@torch.no_grad()
def usage(model: Model, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Usage]:
    """Ranks the axes of the code from the most to the least used, [d] int64, with how much each is, in that order.

    The measure is the posterior's: the mean KL of each dimension in nats where there is one, or the variance
    of the codes.
    """
    measured = posterior(model, x, labels).usage(model.prior)
    values, axes = measured.values.sort(descending=True, stable=True)
    return axes.cpu(), measured._replace(values=values.cpu())


def traverse(
    model: Model,
    start: Tensor,
    dims: list[int],
    values: Tensor,
    labels: Tensor | None,
    pixel_range: Range,
    scale: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Decodes a code in which one dimension at a time takes each value: [R, S, C, H, W], a row per dimension.

    start: [1, d]. values: [S]; dimension j becomes centre_j + value * scale_j, both [d], or the value itself
    where they are None, as suits the prior N(0, 1). labels: [1] or None.
    """
    placed = start.cpu().repeat(len(dims), len(values), 1)
    for row, j in zip(placed, dims, strict=True):
        row[:, j] = values * (1 if scale is None else scale[j]) + (0 if centre is None else centre[j])
    return decode(model, placed.flatten(0, 1), labels, pixel_range).unflatten(0, placed.shape[:2])


# --- between codes ----------------------------------------------------------------------------


def line(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Takes equally spaced points of the segment from `a` to `b`, both included. a, b: [d]. Returns [steps, d]."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps, dtype=a.dtype)[:, None])


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Takes points of the arc from `a` to `b`, both included, at equal angles. a, b: [d]. Returns [steps, d].

    Shoemake 1985, section 3.3; proposed for latent spaces by White 2016, section 2.1, because a line between
    draws of N(0, I) in many dimensions passes nearer to the origin than draws ever lie. Deviation from White,
    who applies the formula to the codes as they are: directions are turned, and the norm goes linearly from |a|
    to |b|. Where the two span no plane (parallel, opposite, or one of them 0), it is `line`.
    """
    first, second = a.double(), b.double()
    lengths = first.norm(), second.norm()
    if not all(lengths):
        return line(a, b, steps)
    first, second = first / lengths[0], second / lengths[1]
    angle = 2 * math.atan2((first - second).norm(), (first + second).norm())  # exact for small angles, too
    if math.sin(angle) < PARALLEL:
        return line(a, b, steps)
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    direction = (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / math.sin(angle)
    return (torch.lerp(*lengths, t) * direction).to(a.dtype)


def between_four(corners: Tensor, steps: int) -> Tensor:
    """Interpolates four codes bilinearly: [steps, steps, d]. corners: [4, d], top left and right, then bottom."""
    top, bottom = line(corners[0], corners[1], steps), line(corners[2], corners[3], steps)
    t = torch.linspace(0, 1, steps, dtype=corners.dtype)[:, None, None]
    return torch.lerp(top, bottom, t)


def interpolate(
    model: Model, a: Tensor, b: Tensor, steps: int, spherical: bool, labels: Tensor | None, pixel_range: Range
) -> Tensor:
    """Decodes points of `line` or, if spherical, `slerp` between codes a and b, [d] each: [steps, C, H, W].

    labels: [1], which holds throughout, or [steps]; or None.
    """
    path = (slerp if spherical else line)(a.cpu(), b.cpu(), steps)
    return decode(model, path, labels, pixel_range)
