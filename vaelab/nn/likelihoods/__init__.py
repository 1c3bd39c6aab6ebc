"""Observation models p(x|z): what a decoder's raw output says about an image.

A decoder gives raw parameters (logits, or unsquashed means), never a squashed output. The
likelihood turns them into a log-density in nats per image, a mean image and a sample.
"""

from vaelab.nn.likelihoods.base import Likelihood, sum_pixels
from vaelab.nn.likelihoods.levels import BetaBinomial, DiscretisedLogistic
from vaelab.nn.likelihoods.pixels import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    GaussianLearned,
    Laplace,
    log_bernoulli,
)
from vaelab.nn.likelihoods.table import Table

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "GaussianLearned",
    "Laplace",
    "Likelihood",
    "Table",
    "log_bernoulli",
    "sum_pixels",
]
