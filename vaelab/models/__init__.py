"""The variants: one LightningModule each."""

from vaelab.models.ae import AE
from vaelab.models.cvae import CVAE
from vaelab.models.module import Model
from vaelab.models.regularised import BetaVAE, CapacityVAE
from vaelab.models.vae import VAE
from vaelab.models.vqvae import VQVAE
from vaelab.models.vqvae2 import VQVAE2

__all__ = ["AE", "CVAE", "VAE", "VQVAE", "VQVAE2", "BetaVAE", "CapacityVAE", "Model"]
