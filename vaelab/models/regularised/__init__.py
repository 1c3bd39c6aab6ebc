"""Variants that weigh the reconstruction against something else than the KL alone, or with another weight."""

from vaelab.models.regularised.beta import BetaVAE
from vaelab.models.regularised.capacity import CapacityVAE
from vaelab.models.regularised.controlvae import ControlVAE
from vaelab.models.regularised.dip import DIPVAE
from vaelab.models.regularised.factor import FactorVAE
from vaelab.models.regularised.geco import GECO
from vaelab.models.regularised.infovae import InfoVAE
from vaelab.models.regularised.tcvae import TCVAE
from vaelab.models.regularised.wae import WAE

__all__ = ["DIPVAE", "GECO", "TCVAE", "WAE", "BetaVAE", "CapacityVAE", "ControlVAE", "FactorVAE", "InfoVAE"]
