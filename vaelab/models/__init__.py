"""The variants: one LightningModule each."""

from vaelab.models.ae import AE
from vaelab.models.cvae import CVAE
from vaelab.models.iwae import IWAE
from vaelab.models.m2 import M2
from vaelab.models.module import Model
from vaelab.models.regularised import (
    DIPVAE,
    GECO,
    TCVAE,
    WAE,
    BetaVAE,
    CapacityVAE,
    ControlVAE,
    FactorVAE,
    InfoVAE,
)
from vaelab.models.svae import SVAE
from vaelab.models.vae import VAE
from vaelab.models.vqvae import VQVAE
from vaelab.models.vqvae2 import VQVAE2

__all__ = [
    "AE",
    "CVAE",
    "DIPVAE",
    "GECO",
    "IWAE",
    "M2",
    "SVAE",
    "TCVAE",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "WAE",
    "BetaVAE",
    "CapacityVAE",
    "ControlVAE",
    "FactorVAE",
    "InfoVAE",
    "Model",
]
