"""Estimators of the gradient through the choice of a code, which has none of its own.

Both give the codes as their output, and differ in the gradient that z gets. z: what was quantised, codes: what was
chosen for it, both [B, D, h, w] float32. No gradient reaches the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-6
"""Length of z or of its code below which there is no direction to turn from or to."""


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Copies the gradient from the code to z (van den Oord et al. 2017, section 3.2; Bengio et al. 2013)."""
    return z + (codes - z).detach()


def rotated(z: Tensor, codes: Tensor) -> Tensor:
    """Gives z the gradient of the rotation and rescaling that carry it to its code (Fifty et al. 2024, eq. 4).

    The output is (|e| / |z|) R z = e with R and the ratio held fixed, so that the gradient is turned and stretched as
    z was: its angle to e stays as its angle to z. With unit vectors u of z, v of e and w of u + v, R reflects along w,
    which carries u to -v, and then along v: the paper's I - 2 w w^T + 2 v u^T, and a rotation whatever the rounding
    of w. Where z and e are opposite there is no w, and R is the one reflection; where one of them has no
    direction, the gradient is copied.
    """
    source, target = z.detach(), codes.detach()
    lengths = source.norm(dim=1, keepdim=True), target.norm(dim=1, keepdim=True)
    turns = torch.minimum(*lengths) > SHORTEST
    u, v = (_over(x, length, turns) for x, length in zip((source, target), lengths, strict=True))
    middle = (u + v).norm(dim=1, keepdim=True)
    w = _over(u + v, middle, middle > SHORTEST)
    turned = z - 2 * w * (w * z).sum(1, keepdim=True)
    turned = turned - 2 * v * (v * turned).sum(1, keepdim=True)
    scaled = torch.where(turns, lengths[1] / lengths[0].clamp_min(SHORTEST), 1.0) * turned
    return scaled + (target - scaled).detach()  # which is the code but for rounding


def _over(x: Tensor, length: Tensor, where: Tensor) -> Tensor:
    """Divides x by its length where that is long enough, and returns zero elsewhere."""
    return torch.where(where, x / length.clamp_min(SHORTEST), 0.0)
