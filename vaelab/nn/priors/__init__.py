"""Priors of the latents: what new images are drawn from, and what codes cost.

A prior is a module with `sample` and `log_prob`. It belongs to a model, learned with it or fixed, or is
fitted afterwards to the codes of a finished run.
"""

from vaelab.nn.priors.base import Kept, Latents, Prior
from vaelab.nn.priors.gmm import GaussianMixture
from vaelab.nn.priors.pixelcnn import PixelCNN
from vaelab.nn.priors.sphere import UniformSphere
from vaelab.nn.priors.standard import StandardNormal
from vaelab.nn.priors.transformer import Transformer
from vaelab.nn.priors.uniform import UniformCodes
from vaelab.nn.priors.vamp import VampPrior

__all__ = [
    "GaussianMixture",
    "Kept",
    "Latents",
    "PixelCNN",
    "Prior",
    "StandardNormal",
    "Transformer",
    "UniformCodes",
    "UniformSphere",
    "VampPrior",
]
