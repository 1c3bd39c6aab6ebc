"""Encoder and decoder pairs.

A network is a description (sizes, activation) that a model asks for its parts: `encoder` and
`decoder` between an image and a vector, `map_encoder` and `map_decoder` between an image and a
feature map (VQ-VAE). Decoders give raw parameters of the likelihood, with no squashing at the end.
Encoder and decoder mirror each other. Weights start as PyTorch starts them; a fresh decoder's
output bias starts at the training set's mean image (`Decoder.start_from`).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable

from torch import nn

from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeInt, PositiveInt, Shape
from vaelab.nn.coders import Decoder, Encoder, decoder_of
from vaelab.nn.layers import LatentLinear, Norm, Residual, SelfAttention, normalisation

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@runtime_checkable
class Network(Protocol):
    """Protocol of a network: the parts that a model may ask it for. Channels of `shape` come first: (C, H, W)."""

    def encoder(self, shape: Shape, outputs: int, context: int = 0) -> Encoder: ...

    def decoder(self, inputs: int, shape: Shape) -> Decoder: ...

    def map_size(self, shape: Shape) -> tuple[int, int]: ...

    def map_encoder(self, shape: Shape, channels: int) -> nn.Module: ...

    def map_decoder(self, channels: int, shape: Shape) -> Decoder: ...


class NoFeatureMap:
    """Base class of networks whose bottleneck is a vector: refuses to make feature maps."""

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"network={type(self).__name__.lower()} has no feature map to quantise: use network=conv or resnet"
        )

    def map_size(self, shape: Shape) -> tuple[int, int]:
        self._refuse()

    def map_encoder(self, shape: Shape, channels: int) -> nn.Module:
        self._refuse()

    def map_decoder(self, channels: int, shape: Shape) -> Decoder:
        self._refuse()


class MLP(NoFeatureMap):
    """Network of fully connected layers on flattened images.

    hidden_dims: sizes from the image inwards; the decoder uses them in reverse. Empty makes encoder
    and decoder linear. norm: the normalisation before each activation. skip: whether each layer of the
    decoder is given the latents.
    """

    def __init__(self, hidden_dims: list[PositiveInt], activation: Activation, norm: Norm, skip: bool = False):
        self.norm: Norm = norm
        self.hidden_dims, self.skip = list(hidden_dims), skip
        self.activation = _ACTIVATIONS[activation]

    def _layers(self, sizes: list[int], latent: Literal[0, -1]) -> nn.Sequential:
        """Stacks linear layers from each size to the next; `latent` is where among them the latents lie."""
        layers: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(pairwise(sizes)):
            at_latents = place == (0 if latent == 0 else len(sizes) - 2)
            layers.append((LatentLinear if at_latents else nn.Linear)(inputs, outputs))
            if place < len(sizes) - 2:
                layers += [*normalisation(self.norm, outputs, nn.BatchNorm1d), self.activation()]
        return nn.Sequential(*layers)

    def encoder(self, shape: Shape, outputs: int, context: int = 0) -> Encoder:
        return Encoder(self._layers([math.prod(shape) + context, *self.hidden_dims, outputs], latent=-1), flat=True)

    def decoder(self, inputs: int, shape: Shape) -> Decoder:
        body = self._layers([inputs, *reversed(self.hidden_dims), math.prod(shape)], latent=0)
        return decoder_of(body, shape, inputs, self.skip)


class Conv:
    """Network of stride-2 convolutions (kernel 4, padding 1), each halving the image, for any size.

    hidden_dims: channels after each halving. norm: the normalisation before each activation.
    residual_blocks: residual blocks after the last halving, or after each (0: a plain convolutional
    network; more: a ResNet), as residual_at says. attention: whether a block of self-attention follows
    those at the smallest size. skip: whether each layer of the decoder is given the latents.
    """

    FORM: tuple[Any, Any, Any] = 4, 2, 1
    """Kernel, stride and padding of a halving."""
    HIGH = 3
    """Height of the kernels that halve nothing."""

    def __init__(
        self,
        hidden_dims: list[PositiveInt],
        activation: Activation,
        norm: Norm,
        residual_blocks: NonNegativeInt,
        residual_at: Literal["last", "each"] = "last",
        attention: bool = False,
        skip: bool = False,
    ):
        if not hidden_dims:
            raise UserError("network.hidden_dims=[]: a convolutional network needs at least one stride-2 block")
        self.norm: Norm = norm
        self.hidden_dims, self.skip = list(hidden_dims), skip
        self.residual_blocks, self.residual_at, self.attention = residual_blocks, residual_at, attention
        self.activation = _ACTIVATIONS[activation]

    def _sizes(self, shape: Shape) -> list[tuple[int, int]]:
        """Computes (height, width) before the first halving and after each. Raises UserError if there are too many."""
        sizes = [(shape[1], shape[2])]
        for _ in self.hidden_dims:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        if min(sizes[-1]) < 1:
            most = int(math.log2(min(shape[1:])))
            if most == 0:
                raise UserError(
                    f"network: convolutions of images cannot take {shape[1]}x{shape[2]}: use network=mlp, or conv1d "
                    "for sequences"
                )
            raise UserError(
                f"network.hidden_dims={self.hidden_dims} halves the image {len(self.hidden_dims)} times, "
                f"but {shape[1]}x{shape[2]} allows {most}: give at most {most} sizes"
            )
        return sizes

    def _down(self, shape: Shape, context: int = 0) -> list[nn.Module]:
        self._sizes(shape)
        layers: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise([shape[0] + context, *self.hidden_dims])):
            layers += [nn.Conv2d(inputs, outputs, *self.FORM), *normalisation(self.norm, outputs, nn.BatchNorm2d)]
            layers += self._at_a_size(outputs, smallest=stage == len(self.hidden_dims) - 1)
        return layers

    def _at_a_size(self, channels: int, smallest: bool) -> list[nn.Module]:
        """Makes what changes no size: the blocks, which begin with the activation, and the activation after them."""
        count = self.residual_blocks if smallest or self.residual_at == "each" else 0
        blocks = [Residual(channels, self.activation, self.HIGH) for _ in range(count)]
        attention = [SelfAttention(channels)] if smallest and self.attention else []
        return [*blocks, *attention, self.activation()]

    def _up(self, shape: Shape) -> list[nn.Module]:
        sizes = self._sizes(shape)
        channels = [*reversed(self.hidden_dims), shape[0]]
        layers: list[nn.Module] = self._at_a_size(channels[0], smallest=True)
        for stage, (inputs, outputs) in enumerate(pairwise(channels)):
            target = sizes[-2 - stage]
            # gives back the row or column that an odd size lost
            high, wide = (one % 2 if half < one else 0 for one, half in zip(target, sizes[-1 - stage], strict=True))
            layers.append(nn.ConvTranspose2d(inputs, outputs, *self.FORM, output_padding=(high, wide)))
            if stage < len(self.hidden_dims) - 1:
                layers += normalisation(self.norm, outputs, nn.BatchNorm2d) + self._at_a_size(outputs, smallest=False)
        return layers

    def encoder(self, shape: Shape, outputs: int, context: int = 0) -> Encoder:
        height, width = self._sizes(shape)[-1]
        head = [nn.Flatten(), LatentLinear(self.hidden_dims[-1] * height * width, outputs)]
        return Encoder(nn.Sequential(*self._down(shape, context), *head), flat=False)

    def decoder(self, inputs: int, shape: Shape) -> Decoder:
        height, width = self._sizes(shape)[-1]
        size = (self.hidden_dims[-1], height, width)
        body = nn.Sequential(LatentLinear(inputs, math.prod(size)), nn.Unflatten(1, size), *self._up(shape))
        return decoder_of(body, shape, inputs, self.skip)

    def map_size(self, shape: Shape) -> tuple[int, int]:
        """Computes (h, w) of the feature map."""
        return self._sizes(shape)[-1]

    def map_encoder(self, shape: Shape, channels: int) -> nn.Module:
        """Makes the encoder to a feature map: [B, C, H, W] -> [B, channels, h, w]."""
        return nn.Sequential(*self._down(shape), nn.Conv2d(self.hidden_dims[-1], channels, 1))

    def map_decoder(self, channels: int, shape: Shape) -> Decoder:
        """Makes the decoder from a feature map: [B, channels, h, w] -> [B, C, H, W]."""
        first = nn.Conv2d(channels, self.hidden_dims[-1], (self.HIGH, 3), padding=(self.HIGH // 2, 1))
        return decoder_of(nn.Sequential(first, *self._up(shape)), shape, channels, self.skip)


class Conv1d(Conv):
    """Network of stride-2 convolutions along a sequence (kernel 4, padding 1), each halving its length.

    A sequence of C channels is held as an image of height 1, [C, 1, L]. The options are those of `Conv`.
    """

    FORM = (1, 4), (1, 2), (0, 1)
    HIGH = 1

    def _sizes(self, shape: Shape) -> list[tuple[int, int]]:
        if shape[1] != 1:
            raise UserError(f"network=conv1d takes sequences, of height 1, not {shape[1]}x{shape[2]}: use network=conv")
        sizes = [(1, shape[2] >> halvings) for halvings in range(len(self.hidden_dims) + 1)]
        if sizes[-1][1] < 1:
            most = int(math.log2(shape[2]))
            raise UserError(
                f"network.hidden_dims={self.hidden_dims} halves the sequence {len(self.hidden_dims)} times, "
                f"but a length of {shape[2]} allows {most}: give at most {most} sizes"
            )
        return sizes


class Burgess(NoFeatureMap):
    """The network of "Understanding disentangling in beta-VAE" (Burgess et al. 2018, appendix A.1).

    It takes 64x64 images: four convolutions of 32 channels (kernel 4, stride 2), two layers of 256, ReLU.
    """

    CHANNELS, HIDDEN = 32, 256

    def _check(self, shape: Shape) -> None:
        if shape[1:] != (64, 64):
            raise UserError(f"network=burgess takes 64x64 images, not {shape[1]}x{shape[2]}: use network=conv")

    def encoder(self, shape: Shape, outputs: int, context: int = 0) -> Encoder:
        self._check(shape)
        channels = [shape[0] + context] + 4 * [self.CHANNELS]
        layers: list[nn.Module] = []
        for inputs, channel in pairwise(channels):
            layers += [nn.Conv2d(inputs, channel, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(16 * self.CHANNELS, self.HIDDEN), nn.ReLU()]
        layers += [nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU(), LatentLinear(self.HIDDEN, outputs)]
        return Encoder(nn.Sequential(*layers), flat=False)

    def decoder(self, inputs: int, shape: Shape) -> Decoder:
        self._check(shape)
        layers: list[nn.Module] = [LatentLinear(inputs, self.HIDDEN), nn.ReLU()]
        layers += [nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU()]
        layers += [nn.Linear(self.HIDDEN, 16 * self.CHANNELS), nn.ReLU(), nn.Unflatten(1, (self.CHANNELS, 4, 4))]
        for _ in range(3):
            layers += [nn.ConvTranspose2d(self.CHANNELS, self.CHANNELS, 4, 2, 1), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(self.CHANNELS, shape[0], 4, 2, 1))
        return Decoder(nn.Sequential(*layers), shape)
