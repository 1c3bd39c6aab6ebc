"""Planar flows whose numbers the encoder gives for each image (Rezende & Mohamed 2015)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.types import PositiveInt
from vaelab.nn.posteriors.flow import FlowHead

SHIFT = math.log(math.e - 1)
"""What softplus is 1 at."""
ROUNDS = 32
"""Halvings of the interval in which a layer's inverse lies: float32 has no finer one."""
LEAST_NORM = 1e-12
"""Added to |w|^2, so that a layer with w = 0 is a shift."""


class Layers(NamedTuple):
    """The layers of the flow, f(z) = z + u tanh(w . z + b): u, w: [B, K, d]; b: [B, K]; steepest: 1 + w . u, [B, K]."""

    u: Tensor
    w: Tensor
    b: Tensor
    steepest: Tensor

    def slope(self, k: int, tanh: Tensor) -> Tensor:
        """Computes |det df/dz| = 1 + w . u (1 - tanh^2) of layer k, positive to the last digit, [..., B]."""
        squared = tanh.square()
        return squared + self.steepest[:, k] * (1 - squared)


class Planar(FlowHead):
    """Makes a posterior of a diagonal Gaussian and a planar flow of an encoder's output: section 4.1, eq. 10-13.

    Each of the K layers bends the latents along one direction, u of the image, by where they lie along another, w.
    Where w . u < -1 it could not be inverted, and u is moved along w (appendix A.1): w . u becomes m(w . u) > -1.
    Deviations: u is multiplied by a number of each layer's own that is learned, and 0 where training starts, so that it
    starts from a diagonal Gaussian (without, the ELBO of 20,000 binary digits is 4.6 nats lower after five epochs). And
    m(x) = -1 + softplus(x + ln(e - 1)), with m(0) = 0, is in the place of -1 + softplus(x): with that a layer whose u
    is 0 would not leave z alone, and jump where w is near 0.

    latent_dim: number d of latent dimensions. layers: K, of 2d + 1 numbers each that the encoder gives.
    """

    def __init__(self, latent_dim: PositiveInt, layers: PositiveInt):
        super().__init__(latent_dim, layers * (2 * latent_dim + 1))
        self.layers = layers
        self.gain = nn.Parameter(torch.zeros(layers, 1))

    def of(self, context: Tensor) -> Layers:
        """Makes invertible layers of what the encoder gives, [B, K (2d + 1)]."""
        d = self.latent_dim
        u, w, b = context.unflatten(-1, (self.layers, 2 * d + 1)).tensor_split((d, 2 * d), -1)
        u = self.gain * u
        product = (u * w).sum(-1)
        steepest = F.softplus(product + SHIFT)
        along = (steepest - 1 - product) / (w.square().sum(-1) + LEAST_NORM)
        return Layers(u + along[..., None] * w, w, b.squeeze(-1), steepest)

    def carry(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        layers, log_det = self.of(context), z.new_zeros(z.shape[:-1])
        for k in range(self.layers):
            tanh = ((z * layers.w[:, k]).sum(-1) + layers.b[:, k]).tanh()
            log_det = log_det + layers.slope(k, tanh).log()
            z = z + layers.u[:, k] * tanh[..., None]
        return z, log_det

    def back(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Finds w . z + b of each layer's input, and with it the input, from w . f(z) + b: one number of one number."""
        layers, log_det = self.of(context), z.new_zeros(z.shape[:-1])
        for k in reversed(range(self.layers)):
            tanh = _solve((z * layers.w[:, k]).sum(-1) + layers.b[:, k], layers.steepest[:, k]).tanh()
            log_det = log_det - layers.slope(k, tanh).log()
            z = z - layers.u[:, k] * tanh[..., None]
        return z, log_det


def _solve(after: Tensor, steepest: Tensor) -> Tensor:
    """Solves a + (steepest - 1) tanh(a) = after for a by halving, [..., B]; steepest > 0: it rises everywhere.

    Gradients are those of the implicit function.
    """
    with torch.no_grad():
        reach = (steepest - 1).abs().expand(after.shape)
        low, high = after - reach, after + reach
        for _ in range(ROUNDS):
            middle = 0.5 * (low + high)
            too_low = middle + (steepest - 1) * middle.tanh() < after
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        found = 0.5 * (low + high)
        squared = found.tanh().square()
        slope = squared + steepest * (1 - squared)
    off = found + (steepest - 1) * found.tanh() - after
    return found - (off - off.detach()) / slope
