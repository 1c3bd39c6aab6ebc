"""Encoders and decoders: the modules that a network makes of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.types import Shape
from vaelab.nn.layers import LatentLinear, Residual


class Encoder(nn.Module):
    """Encodes an image to a vector.

    body: takes [B, C (+ context channels), H, W], or flat [B, C*H*W (+ context)] if `flat`.
    """

    def __init__(self, body: nn.Module, flat: bool):
        super().__init__()
        self.body, self.flat = body, flat

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Encodes x, [B, C, H, W], to [B, outputs]. context: what else is known of each image, [B, E]."""
        if self.flat:
            x = x.flatten(1)
        if context is not None:
            context = context.to(x.dtype)
            planes = context if self.flat else context[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], 1)
        return self.body(x)


class Decoder(nn.Module):
    """Decodes a vector or a feature map to raw likelihood parameters, [B, C, H, W].

    body: layers, of which the last has one bias per pixel or per channel.
    """

    def __init__(self, body: nn.Sequential, shape: Shape):
        super().__init__()
        self.body, self.shape = body, shape

    def forward(self, z: Tensor) -> Tensor:
        """Decodes z, [B, inputs] or [B, channels, h, w], to [B, C, H, W]."""
        return self.body(z).view(-1, *self.shape)

    @torch.no_grad()
    def start_from(self, mean: Tensor, raw_from_mean: Callable[[Tensor], Tensor]) -> None:
        """Sets the output bias so that a zero input to the last layer decodes to the image `mean`, or to its colour.

        mean: [C, H, W]. raw_from_mean: that of the likelihood.
        """
        bias: Any = self.body[-1].bias
        if bias.numel() == math.prod(self.shape):
            bias.copy_(raw_from_mean(mean).flatten())
        else:
            bias.copy_(raw_from_mean(mean.mean((1, 2), keepdim=True).expand_as(mean))[:, 0, 0])


class SkipDecoder(Decoder):
    """Decoder that is given its latents at each of its layers (Dieng, Kim, Rush & Blei 2019, section 3).

    To what each layer after the first makes of the layer before it, a linear function of the latents is added: what
    the concatenation of the two would come to. The channels of a map are added at every position alike, those of
    latents that are a map at the nearest one (deviation: the paper has latents that are vectors).

    inputs: entries of the latents, or channels of their map.
    """

    def __init__(self, body: nn.Sequential, shape: Shape, inputs: int):
        super().__init__(body, shape)
        layers = [(str(place), layer) for place, layer in enumerate(body) if _outputs(layer)]
        self.skips = nn.ModuleDict({place: LatentLinear(inputs, _outputs(layer), False) for place, layer in layers[1:]})

    def forward(self, z: Tensor) -> Tensor:
        features = z
        for place, layer in enumerate(self.body):
            features = layer(features)
            if str(place) in self.skips:
                features = features + self._added(self.skips[str(place)], z, features)
        return features.view(-1, *self.shape)

    @staticmethod
    def _added(skip: nn.Module, z: Tensor, features: Tensor) -> Tensor:
        if z.ndim == 4:
            return F.interpolate(skip(z.movedim(1, -1)).movedim(-1, 1), features.shape[2:])
        return skip(z)[(...,) + (None,) * (features.ndim - 2)]


def _outputs(layer: nn.Module) -> int:
    """Counts the entries or channels that a layer gives; 0 of one without weights, or that only rescales."""
    last = layer.body[-1] if isinstance(layer, Residual) else layer
    return getattr(last, "out_features", getattr(last, "out_channels", 0))


def decoder_of(body: nn.Sequential, shape: Shape, inputs: int, skip: bool) -> Decoder:
    """Makes a decoder of layers. inputs, skip: as `SkipDecoder` takes them, and whether to make one."""
    return SkipDecoder(body, shape, inputs) if skip else Decoder(body, shape)
