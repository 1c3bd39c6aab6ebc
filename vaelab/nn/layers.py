"""Layers that networks are made of."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["none", "batch", "group", "layer"]
"""Normalisations before an activation; `group` has up to 8 groups of at least 4 channels, `layer` is one group."""


class LatentLinear(nn.Linear):
    """A linear layer next to the latents: from an encoder's last features, or into a decoder's first.

    It is computed in float32 under any autocast. These layers are small, and in 16 bits a mean, a
    log-variance or a draw of z would be rounded to two or three digits before anything is made of it.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def normalisation(norm: Norm, channels: int, batch: type[nn.Module]) -> list[nn.Module]:
    """Makes the layers that normalise features, [B, channels] or [B, channels, h, w]: one, or none.

    batch: the class of a batch norm for features of this shape.
    """
    if norm == "none":
        return []
    if norm == "batch":
        return [batch(channels)]
    groups = [count for count in range(2, 9) if channels % count == 0 and channels // count >= 4]
    return [nn.GroupNorm(max(groups, default=1) if norm == "group" else 1, channels)]


class Residual(nn.Module):
    """Residual block of VQ-VAE, x + conv1x1(act(conv3x3(act(x)))) (van den Oord et al. 2017, section 4.1).

    high: the height of the first kernel; 1 for sequences.
    """

    def __init__(self, channels: int, activation: type[nn.Module], high: int = 3):
        super().__init__()
        first = nn.Conv2d(channels, channels, (high, 3), padding=(high // 2, 1))
        self.body = nn.Sequential(activation(), first, activation(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SelfAttention(nn.Module):
    """Block of self-attention over positions with one head, x + project(attend(norm(x))) (Vaswani et al. 2017).

    Every position sees every other one; its cost grows with the square of their number.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.asks = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        asked = self.asks(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # one head, which ONNX wants to see
        query, key, value = asked.chunk(3, -1)  # [B, 1, h w, C] each
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.project(seen.transpose(2, 3).reshape(x.shape))
