"""The learned perceptual distance of two images (Zhang, Isola, Efros, Shechtman & Wang 2018), from a user's file.

Nothing is downloaded. The file holds the weights of AlexNet or VGG16 as torchvision names them, and those of the linear
layers of the package lpips, version 0.1, `lin0.model.1.weight` to `lin4.model.1.weight`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.evaluation import weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of the channels of ImageNet, for images in [-1, 1]."""
LINEAR = "lin{}.model.1.weight"
"""Names of the linear layers' weights, [1, channels, 1, 1]."""


class Kind(NamedTuple):
    """A network. name: in torchvision. layers: of its features, those whose outputs are compared. least: pixels."""

    name: str
    layers: tuple[int, ...]
    least: int


KINDS = (Kind("alexnet", (1, 4, 7, 9, 11), 31), Kind("vgg16", (3, 8, 15, 22, 29), 16))


class LPIPS(nn.Module):
    """LPIPS in the features of AlexNet or VGG16, whichever the file holds. Raises UserError for a file of neither.

    path: a file of torch.save with tensors by name; it is read without executing anything.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        import torchvision

        state = weights.read(path, "lpips")
        self.kind = KINDS["features.28.weight" in state]
        with torch.device("meta"):
            network: nn.Sequential = getattr(torchvision.models, self.kind.name)(weights=None).features
        own = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
        try:
            network.load_state_dict(own, assign=True)
            linear = [state[LINEAR.format(place)].flatten() for place in range(len(self.kind.layers))]
            sizes = [network[layer - 1].out_channels for layer in self.kind.layers]
            if [len(values) for values in linear] != sizes:
                raise ValueError(f"its linear layers are not of {sizes} channels")
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"lpips={path}: these are not the weights of AlexNet or VGG16 with the linear layers of LPIPS\n"
                "docs/evaluation.md says how to make such a file"
            ) from error
        self.network = network[: self.kind.layers[-1] + 1].float().eval().requires_grad_(False)
        self.linear = nn.ParameterList([values.float() for values in linear]).requires_grad_(False)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.fingerprint = weights.fingerprint(path)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Computes the distance of each pair (eq. 1), [B]; images: [B, C, H, W] in [0, 1], grey or RGB.

        Values outside are cut off, and grey is three equal channels. Both sides have at least `kind.least` pixels.
        """
        x = torch.cat([first, second]).clamp(0, 1).expand(-1, 3, -1, -1)
        x, distance = (2 * x - 1 - self.shift) / self.scale, torch.zeros(len(first), device=first.device)
        for place, layer in enumerate(self.network):
            x = layer(x)
            if place in self.kind.layers:
                ours, theirs = F.normalize(x, dim=1, eps=1e-10).chunk(2)
                linear = self.linear[self.kind.layers.index(place)]
                distance += torch.einsum("bchw,c->bhw", (ours - theirs).square(), linear).mean((1, 2))
        return distance
