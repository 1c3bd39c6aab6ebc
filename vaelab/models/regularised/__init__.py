"""Variants that weigh the reconstruction against something else than the KL alone, or with another weight."""

from vaelab.models.regularised.beta import BetaVAE
from vaelab.models.regularised.capacity import CapacityVAE

__all__ = ["BetaVAE", "CapacityVAE"]
