"""Turns a decoder into a list of plain layers and one array of weights, for a page to compute with.

The page (explorer.js) holds the other half: how each kind of layer is computed. A decoder with a layer
that is not known here, or too big for a page, is not carried, and its pictures are made beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelab.nn.coders import Decoder
from vaelab.nn.conditions import beside
from vaelab.nn.layers import LatentLinear, Residual
from vaelab.nn.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood

if TYPE_CHECKING:
    from vaelab.models import Model

MOST_WEIGHTS = 1_500_000
"""Most weights of a decoder that a page carries: 8 MB of base64, which a mail still takes and a phone still reads."""
MOST_PRODUCTS = 150_000_000
"""Most multiplications per picture: a browser makes about two in a nanosecond on a desktop, and beyond a tenth of
a second a slider no longer seems to move the picture."""
ROUNDING = 1e-4
"""Fraction of the largest value by which two ways of computing one decoder may differ in float32."""

Size = tuple[int, ...]
Layer = dict[str, Any]


class Portable(NamedTuple):
    """A decoder that a page can compute.

    layers: operations in order; a place in `weights` is a number of floats from its start, or None for no bias.
    weights: [N] float32. codes, labels: place and size of the vectors that a code's index [K, D], or a label [K, E],
    stands for; None if there are none. mean: how raw parameters become a mean image.
    products: multiplications per picture.
    """

    layers: list[Layer]
    weights: Tensor
    codes: Layer | None
    labels: Layer | None
    mean: str
    products: int


class _NotPortableError(Exception):
    """Raised for a layer that the page cannot compute."""


UNKNOWN, BIG = "of a kind that the page cannot compute", "too big for a page"
"""What a decoder is that is not carried."""


def decoder(model: Model) -> Portable | str:
    """Returns the model's decoder for a page, or what it is that it is not carried: `UNKNOWN` or `BIG`."""
    try:
        carried = _Carrier(model)
    except _NotPortableError:
        return UNKNOWN
    if len(carried.weights) > MOST_WEIGHTS or carried.products > MOST_PRODUCTS:
        return BIG
    if not _is_plain(model):
        return UNKNOWN
    return Portable(carried.layers, carried.weights, carried.codes, carried.labels, carried.mean, carried.products)


_MEANS = {Likelihood.mean: "identity", Bernoulli.mean: "sigmoid", ContinuousBernoulli.mean: "continuous_bernoulli"}


class _Carrier:
    """Walks a decoder and gathers its layers, weights and cost."""

    def __init__(self, model: Any):
        self._parts: list[Tensor] = []
        self._end = self.products = 0
        if type(model.likelihood).mean not in _MEANS or type(model.decoder) is not Decoder:
            raise _NotPortableError
        self.mean = _MEANS[type(model.likelihood).mean]
        table = model.condition.table
        if table is None and model.conditional:  # on a vector of numbers
            raise _NotPortableError
        self.labels = None if table is None else self._table(table)
        self.codes, size = None, model.layout.shape
        if len(model.layout.levels) > 1 and model.layout.codes is not None:
            raise _NotPortableError
        if model.layout.codes is not None:
            self.codes = self._table(model.codebook.vectors)
            size = (self.codes["size"], *size)
        size = (size[0] + model.condition.size, *size[1:])
        self.layers, size = self._sequence(model.decoder.body, size)
        if math.prod(size) != math.prod(model.shape):
            raise _NotPortableError
        self.weights = torch.cat(self._parts)

    def _add(self, weights: Tensor | None) -> int | None:
        """Appends weights to the array. Returns the place at which they begin."""
        if weights is None:
            return None
        start, self._end = self._end, self._end + weights.numel()
        self._parts.append(weights.detach().flatten().float().cpu())
        return start

    def _table(self, vectors: Tensor) -> Layer:
        """Appends the vectors that indices stand for, [K, size]."""
        return {"start": self._add(vectors), "count": vectors.shape[0], "size": vectors.shape[1]}

    def _sequence(self, modules: nn.Sequential, size: Size) -> tuple[list[Layer], Size]:
        layers = []
        for module in modules:
            if type(module) not in _KINDS:
                raise _NotPortableError
            layer, size = _KINDS[type(module)](self, module, size)
            layers += [layer] if layer else []
        return layers, size

    # --- layers: each gives its description, None if it does nothing, and the size of what comes out ----------

    def _linear(self, module: nn.Linear, size: Size) -> tuple[Layer, Size]:
        if module.in_features != math.prod(size):  # the layer does not take the code alone
            raise _NotPortableError
        self.products += module.weight.numel()
        layer = {"kind": "linear", "inputs": module.in_features, "outputs": module.out_features}
        return layer | self._weights(module), (module.out_features,)

    def _weights(self, module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Layer:
        return {"weight": self._add(module.weight), "bias": self._add(module.bias)}

    def _activation(self, module: nn.Module, size: Size) -> tuple[Layer, Size]:
        if getattr(module, "approximate", "none") != "none":
            raise _NotPortableError
        slope = getattr(module, "negative_slope", getattr(module, "alpha", 0.0))  # the slope of LeakyReLU, or ELU
        return {"kind": type(module).__name__.lower(), "slope": slope}, size

    def _norm(self, module: nn.BatchNorm1d | nn.BatchNorm2d, size: Size) -> tuple[Layer, Size]:
        """Describes a batch norm, which in eval mode is a scale and a shift of each channel."""
        if module.running_mean is None or module.running_var is None:
            raise _NotPortableError
        scale = (module.running_var.double() + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.double()
        shift = -module.running_mean.double() * scale
        shift = shift if module.bias is None else shift + module.bias.double()
        return {"kind": "affine", "channels": size[0], "scale": self._add(scale), "shift": self._add(shift)}, size

    def _unflatten(self, module: nn.Unflatten, size: Size) -> tuple[None, Size]:
        return None, tuple(int(part) for part in module.unflattened_size)

    def _convolution(self, module: nn.Conv2d | nn.ConvTranspose2d, size: Size) -> tuple[Layer, Size]:
        """Describes a convolution of stride 1, or a transposed one of any stride: decoders are made of these."""
        up = isinstance(module, nn.ConvTranspose2d)
        square = len(set(module.kernel_size)) == len(set(module.stride)) == len(set(module.padding)) == 1
        plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        if not square or not plain or isinstance(module.padding, str) or not (up or module.stride[0] == 1):
            raise _NotPortableError
        kernel, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
        if up:
            extra = [int(part) for part in module.output_padding]
            out = [
                (side - 1) * stride - 2 * padding + kernel + more for side, more in zip(size[1:], extra, strict=True)
            ]
        else:
            out = [side + 2 * padding - kernel + 1 for side in size[1:]]
        self.products += module.weight.numel() * math.prod(size[1:] if up else out)
        layer = {"kind": "up" if up else "conv", "inputs": size[0], "outputs": module.out_channels}
        layer |= {"kernel": kernel, "stride": stride, "padding": padding, "from": list(size[1:]), "to": out}
        return layer | self._weights(module), (module.out_channels, *out)

    def _residual(self, module: Residual, size: Size) -> tuple[Layer, Size]:
        layers, size = self._sequence(module.body, size)
        return {"kind": "residual", "layers": layers}, size


_KINDS: dict[type[nn.Module], Callable[[_Carrier, Any, Size], tuple[Layer | None, Size]]] = {
    nn.Linear: _Carrier._linear,
    LatentLinear: _Carrier._linear,
    nn.BatchNorm1d: _Carrier._norm,
    nn.BatchNorm2d: _Carrier._norm,
    nn.Unflatten: _Carrier._unflatten,
    nn.Conv2d: _Carrier._convolution,
    nn.ConvTranspose2d: _Carrier._convolution,
    Residual: _Carrier._residual,
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh), _Carrier._activation),
}


@torch.no_grad()
def _is_plain(model: Any) -> bool:
    """Whether `model.decode` applies the decoder to the code, with the label's vector behind it, and no more.

    A new variant may decode in its own way, which would show nowhere in its layers.
    """
    labels, layout = model.condition.in_turn(1), model.layout
    if layout.codes is not None:
        code = torch.arange(math.prod(layout.shape), device=model.device) % layout.codes
        code = code.view(1, *layout.shape)
        vectors = model.embed(code)
    else:
        vectors = code = torch.linspace(-1, 1, layout.shape[0], device=model.device)[None]
    raw, wanted = model.decoder(beside(vectors, model.condition(labels))), model.decode(code, labels)
    return bool((raw - wanted).abs().max() <= ROUNDING * wanted.abs().max())
