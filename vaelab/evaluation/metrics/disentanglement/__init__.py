"""Metrics of disentanglement: of codes and factors, one by one or all at once, and of the codes of several seeds."""

from vaelab.evaluation.metrics.disentanglement.groups import beta_vae_score, disentanglement, factor_vae_score
from vaelab.evaluation.metrics.disentanglement.information import mig, mig_of_active, modularity
from vaelab.evaluation.metrics.disentanglement.predictability import dci, explicitness, sap
from vaelab.evaluation.metrics.disentanglement.udr import lasso, spearman, udr

__all__ = [
    "beta_vae_score",
    "dci",
    "disentanglement",
    "explicitness",
    "factor_vae_score",
    "lasso",
    "mig",
    "mig_of_active",
    "modularity",
    "sap",
    "spearman",
    "udr",
]
