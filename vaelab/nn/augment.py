"""Augmentation: random changes of training images that leave them what they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import Fraction, NonNegativeInt, Shape


class Augment:
    """Changes each image of a batch by draws of its own, from torch's global generators, on the images' device.

    A training step seeds these by its place in the run, so that a resumed run goes on with the same images.

    flip, flip_vertical: probabilities that left and right, or top and bottom, change places. crop: the least side of
    the part that is cut out at random and enlarged to the whole, as a fraction of the image's; 1 for no crop. shift:
    most pixels that an image is moved by, up or down and to either side; black comes in at its edge.
    """

    def __init__(self, flip: Fraction, flip_vertical: Fraction, crop: Fraction, shift: NonNegativeInt):
        if crop == 0:
            raise UserError("augment.crop=0: nothing of the image would be left: give the least side, such as 0.8")
        self.flips = {-1: flip, -2: flip_vertical}
        self.crop, self.shift = crop, shift

    def check(self, shape: Shape, pictures: bool) -> None:
        """Raises UserError for examples that are no pictures, or too small. pictures: whether pixels may be moved."""
        if not pictures or min(shape[1:]) < 2:
            raise UserError("augment: it moves pixels, and these data are no complete pictures: leave it out")
        if self.shift >= min(shape[1:]):
            raise UserError(f"augment.shift={self.shift}: images of {shape[1]}x{shape[2]} would leave the picture")

    def __call__(self, x: Tensor) -> Tensor:
        """Changes images, [B, C, H, W] in [0, 1]: flips, then crops, then shifts."""
        for axis, probability in self.flips.items():
            if probability:
                flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < probability
                x = torch.where(flipped, x.flip(axis), x)
        x = self._cropped(x) if self.crop < 1 else x
        return self._shifted(x) if self.shift else x

    def _cropped(self, x: Tensor) -> Tensor:
        """Enlarges a part of each image, whose side is uniform between `crop` and 1, to the whole, bilinearly."""
        side = self.crop + (1 - self.crop) * torch.rand(len(x), 1, device=x.device)
        centre = (1 - side) * (2 * torch.rand(len(x), 2, device=x.device) - 1)
        zero = torch.zeros_like(side)
        rows = torch.stack([torch.cat([side, zero, centre[:, :1]], 1), torch.cat([zero, side, centre[:, 1:]], 1)], 1)
        grid = F.affine_grid(rows, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(0, 1)

    def _shifted(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        padded = F.pad(x, 4 * (self.shift,)).movedim(1, -1)
        down, right = torch.randint(0, 2 * self.shift + 1, (2, count, 1), device=x.device)
        rows = down + torch.arange(height, device=x.device)
        columns = right + torch.arange(width, device=x.device)
        image = torch.arange(count, device=x.device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
