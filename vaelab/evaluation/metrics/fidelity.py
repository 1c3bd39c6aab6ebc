"""Measures how faithful a picture is to its original: signal-to-noise ratio and structural similarity.

Pictures and originals are [B, C, H, W] in [0, 1]; a value of each picture comes back, [B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ERROR = 1e-10
"""Mean squared error below which a picture counts as equal: its PSNR is 100 dB, and not infinite."""
BORDER, SIGMA = 5, 1.5
"""How far SSIM's Gaussian window of 11 pixels reaches to each side, and its standard deviation, pixels."""
LEAST_SIZE = BORDER + 1
"""Least height and width for SSIM: a picture can be reflected by less than its size."""
STABILISERS = 0.01**2, 0.03**2
"""C1 and C2 of SSIM, for pixels in [0, 1]."""
SCALE_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333
"""Exponents of MS-SSIM from the finest scale to the coarsest (Wang, Simoncelli & Bovik 2003, section 3.2)."""
LEAST_SIZE_OF_SCALES = 2 * BORDER * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""Least height and width for MS-SSIM: the window must fit on the coarsest scale."""


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio, -10 log10 of the mean squared error, dB; 100 for equal pictures."""
    error = (pictures - originals).square().flatten(1).mean(1)
    return -10 * error.clamp(min=LEAST_ERROR).log10()


def ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """Computes the structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004), 1 for equal pictures.

    It is the mean over channels and pixels; pictures are reflected at their borders, as in torchmetrics. Raises
    ValueError for pictures below 6 pixels.
    """
    _check_size(pictures, LEAST_SIZE, "SSIM")
    luminance, structure = _similarities(pictures, originals)
    return (luminance * structure).flatten(1).mean(1)


def ms_ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """Computes the structural similarity over five scales, each half the one before (Wang et al. 2003, eq. 7).

    Contrast and structure are of the places where the window fits without reflection, as in torchmetrics. A negative
    mean of a scale counts as 0. Raises ValueError for pictures below 161 pixels.
    """
    _check_size(pictures, LEAST_SIZE_OF_SCALES, "MS-SSIM")
    result = torch.ones(len(pictures), device=pictures.device)
    inside = slice(BORDER, -BORDER)
    for weight in SCALE_WEIGHTS[:-1]:
        structure = _similarities(pictures, originals)[1][..., inside, inside]
        result = result * structure.flatten(1).mean(1).relu() ** weight
        pictures, originals = F.avg_pool2d(pictures, 2), F.avg_pool2d(originals, 2)
    return result * ssim(pictures, originals).relu() ** SCALE_WEIGHTS[-1]


def _check_size(pictures: Tensor, least: int, name: str) -> None:
    if min(pictures.shape[-2:]) < least:
        height, width = pictures.shape[-2:]
        raise ValueError(f"{name} needs pictures of at least {least} x {least} pixels: these have {height} x {width}")


def _similarities(pictures: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Computes SSIM's two factors at each pixel, [B, C, H, W]: luminance; contrast and structure."""
    products = [pictures, originals, pictures.square(), originals.square(), pictures * originals]
    mean_p, mean_o, square_p, square_o, cross = _windowed(torch.cat(products)).chunk(5)
    first, second = STABILISERS
    luminance = (2 * mean_p * mean_o + first) / (mean_p.square() + mean_o.square() + first)
    variances = (square_p - mean_p.square()).clamp(min=0) + (square_o - mean_o.square()).clamp(min=0)
    return luminance, (2 * (cross - mean_p * mean_o) + second) / (variances + second)


def _windowed(maps: Tensor) -> Tensor:
    """Averages with the Gaussian window around each pixel, [B, C, H, W]."""
    places = torch.arange(-BORDER, BORDER + 1, device=maps.device, dtype=maps.dtype)
    window = torch.softmax(-0.5 * (places / SIGMA).square(), 0)
    channels = F.pad(maps.flatten(0, 1).unsqueeze(1), [BORDER] * 4, mode="reflect")
    return F.conv2d(F.conv2d(channels, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view(maps.shape)
