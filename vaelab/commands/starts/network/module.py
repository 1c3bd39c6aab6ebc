"""An encoder and a decoder of one's own: plain modules of torch.

The encoder gives as many numbers of each image as the model asks for, `outputs`: means and log-variances of a Gaussian
posterior, say. The decoder gives raw parameters of the likelihood: logits or unsquashed means, no sigmoid at its end.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class Encoder(nn.Module):
    """Encodes images, [B, C, H, W], to [B, outputs].

    shape: (C, H, W) of the images, told by the model, as outputs is. width: an option of one's own.
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1), nn.SiLU(), nn.Flatten(),
            nn.Linear(width * shape[1] * shape[2], outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Decoder(nn.Module):
    """Decodes latents, [B, inputs], to images, [B, C, H, W]. shape, inputs: told by the model."""

    def __init__(self, inputs: int, shape: tuple[int, int, int], width: int):
        super().__init__()
        self.shape = shape
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, math.prod(shape)))

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z).view(-1, *self.shape)
