"""Makes pictures from arrays: plain grids of images, and PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

MIN_TILE = 48
"""Least pixels of a picture's shorter side: smaller pictures are enlarged."""


def grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Puts pictures side by side on white.

    images: [N, C, H, W] in [0, 1], C 1 or 3; small ones are enlarged by whole factors. Returns
    [rows, columns, 3] uint8, on the CPU.
    """
    images = images.detach().float().cpu().clamp(0, 1)
    scale = max(1, -(-MIN_TILE // min(images.shape[2:])))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3).expand(-1, 3, -1, -1)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def pairs(images: Tensor, reconstructions: Tensor, columns: int) -> Tensor:
    """Puts originals in odd rows, their reconstructions below them: a grid as `grid` gives it."""
    columns = min(columns, len(images))
    count = len(images) // columns * columns
    rows = zip(images[:count].cpu().split(columns), reconstructions[:count].cpu().split(columns), strict=True)
    return grid(torch.cat([half for row in rows for half in row]), columns)


def save_png(picture: Tensor, path: Path) -> None:
    """Writes a picture, [H, W, 3] uint8, as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(path)
