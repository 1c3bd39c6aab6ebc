"""Posteriors q(z|x) of a batch of images, and the parts of a model that make them of an encoder's output.

A posterior is an object that `encode` returns. It has a `code`, which stands for the image, draws, a
density where there is one, and a KL to a prior. Codes without a distribution are posteriors without a
density.
"""

from vaelab.nn.posteriors.base import KL, Head, Posterior, Usage
from vaelab.nn.posteriors.deterministic import Codes, Deterministic, Point
from vaelab.nn.posteriors.gaussian import Diagonal, DiagonalGaussian, Full, FullGaussian
from vaelab.nn.posteriors.vmf import VMF, VonMisesFisher

__all__ = [
    "KL",
    "VMF",
    "Codes",
    "Deterministic",
    "Diagonal",
    "DiagonalGaussian",
    "Full",
    "FullGaussian",
    "Head",
    "Point",
    "Posterior",
    "Usage",
    "VonMisesFisher",
]
