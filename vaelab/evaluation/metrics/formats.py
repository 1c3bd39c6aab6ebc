"""Usual formats beside a model's codes, so that a rate in bits per pixel has something to stand beside."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaelab.evaluation.metrics import fidelity

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "WebP")


def beside(originals: Tensor, decoded: Tensor, rate: float) -> list[list[str]]:
    """Measures decoded images, and JPEG and WebP that take no more bits.

    originals, decoded: [N, C, H, W] in [0, 1]. rate: bits per pixel of the decoded. A format codes all images on
    one sheet, so that its headers, which are as large as a small image, hardly count; its quality is the highest that
    takes no more than `rate`, else the lowest. Returns rows of name, bits per pixel, PSNR and SSIM as text.
    """
    from PIL import Image

    rows = [["this model", *_cells(rate, decoded, originals)]]
    sheet, columns = _sheet(originals)
    pixels = originals[:, 0].numel()
    for name in FORMATS:
        content, quality = _best(sheet, name, rate * pixels / 8)
        with Image.open(io.BytesIO(content)) as image:
            back = np.asarray(image.convert(sheet.mode), dtype=np.float32) / 255
        made = _cut(torch.from_numpy(back), originals, columns)
        rows.append([f"{name}, quality {quality}", *_cells(8 * len(content) / pixels, made, originals)])
    return rows


def lossless(pixels: Tensor) -> list[tuple[str, bytes]]:
    """Codes binary images, [N, C, H, W] uint8, as PNG, of one sheet, and as gzip and bzip2, of eight pixels a byte."""
    import bz2
    import gzip

    sheet, _ = _sheet(pixels.flatten(0, 1)[:, None].float())
    buffer = io.BytesIO()
    sheet.convert("1").save(buffer, format="PNG", optimize=True)
    content = np.packbits(pixels.numpy()).tobytes()
    return [("PNG", buffer.getvalue()), ("gzip", gzip.compress(content, 9)), ("bzip2", bz2.compress(content, 9))]


def _cells(rate: float, images: Tensor, originals: Tensor) -> list[str]:
    images = images.clamp(0, 1)
    similarity = "-"
    if min(originals.shape[2:]) >= fidelity.LEAST_SIZE:
        similarity = f"{fidelity.ssim(images, originals).mean():.3f}"
    return [f"{rate:.3f}", f"{fidelity.psnr(images, originals).mean():.2f}", similarity]


def _sheet(images: Tensor) -> tuple[Image, int]:
    """Lays images out on one, row by row; the places that are left are filled with the last."""
    from PIL import Image

    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = torch.cat([images, images[-1:].expand(rows * columns - count, -1, -1, -1)])
    pixels = filled.mul(255).round().byte().view(rows, columns, channels, height, width)
    sheet = pixels.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).numpy()
    return Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet), columns


def _cut(sheet: Tensor, like: Tensor, columns: int) -> Tensor:
    """Cuts a sheet, [H, W] or [H, W, C], into images again."""
    count, channels, height, width = like.shape
    tiles = sheet.view(-1, height, columns, width, channels).permute(0, 2, 4, 1, 3)
    return tiles.reshape(-1, channels, height, width)[:count]


def _best(sheet: Image, name: str, most: float) -> tuple[bytes, int]:
    """Codes the sheet at the highest quality that takes at most so many bytes; at the lowest if all take more."""
    low, high, found = 1, 100, _coded(sheet, name, 1)
    while low < high:
        middle = (low + high + 1) // 2
        content = _coded(sheet, name, middle)
        if len(content) <= most:
            low, found = middle, content
        else:
            high = middle - 1
    return found, low


def _coded(sheet: Image, name: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format=name, quality=quality)
    return buffer.getvalue()
