"""The network whose features the Fréchet Inception distance is measured in (Heusel et al. 2017), from a user's file.

Nothing is downloaded. The file is that of the package pytorch-fid, `pt_inception-2015-12-05-6726825d.pth`, or any other
state of the same network: the TensorFlow graph of 2015, which differs from torchvision's Inception v3 by its 1,008
classes and by how the last pooling of its blocks treats the border.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.errors import UserError
from vaelab.evaluation import weights

SIZE, CLASSES, FEATURES = 299, 1008, 2048
"""Height and width of its images; its classes; its features."""
AVERAGED = "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"
"""Blocks whose pooling averages what is there, without the zeros of the border."""
LARGEST = "Mixed_7c"
"""The block whose pooling takes the largest instead, as the graph of 2015 does."""


class Inception(nn.Module):
    """The Inception network of the FID, in eval mode. Raises UserError for a file that is not its state.

    path: a file of torch.save with the network's state_dict; it is read without executing anything.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        from torchvision.models.inception import Inception3

        state = weights.read(path, "inception")
        with torch.device("meta"):
            network = Inception3(num_classes=CLASSES, aux_logits=False, init_weights=False)
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"inception={path}: these are not the weights of the network of the FID\n"
                "it is pt_inception-2015-12-05-6726825d.pth of the package pytorch-fid"
            ) from error
        network.fc = nn.Identity()  # type: ignore[assignment]
        for name in AVERAGED:
            _pool(network.get_submodule(name), partial(F.avg_pool2d, count_include_pad=False))
        _pool(network.get_submodule(LARGEST), F.max_pool2d)
        self.network = network.eval().requires_grad_(False)
        self.fingerprint = weights.fingerprint(path)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Computes features, [B, 2048]; images: [B, C, H, W] in [0, 1], grey or RGB, of any size.

        They are rounded to 8 bits, as if read from files, and resized to 299 pixels without antialiasing, as
        pytorch-fid does.
        """
        images = (images.clamp(0, 1) * 255).round() / 255
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.network(2 * F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False) - 1)


def _pool(block: Any, pool: Callable[..., Tensor]) -> None:
    """Has a block pool its input otherwise before the last of its branches, whose outputs it joins."""
    branches = block._forward

    def forward(x: Tensor) -> Tensor:
        *first, _ = branches(x)
        return torch.cat([*first, block.branch_pool(pool(x, kernel_size=3, stride=1, padding=1))], 1)

    block.forward = forward
