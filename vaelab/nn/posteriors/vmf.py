"""Posteriors on the unit sphere: von Mises-Fisher (Davidson, Falorsi, De Cao, Kipf & Tomczak 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveInt
from vaelab.nn.posteriors.base import KL, Head, Posterior
from vaelab.nn.priors import Prior, UniformSphere
from vaelab.nn.sphere import Angle, log_area

MOST = 18.0
"""Bound of log kappa: draws then lie within 1e-4 of the mean direction, which float32 still tells apart."""


@dataclass(eq=False)
class VonMisesFisher(Posterior):
    """Posterior on the unit sphere in R^d with a density proportional to exp(kappa m.z).

    mean: [B, d], of which the direction is m. log_concentration: log kappa, [B, 1].
    """

    mean: Tensor
    log_concentration: Tensor
    name = "von Mises-Fisher"
    spherical = True

    @property
    def code(self) -> Tensor:
        return F.normalize(self.mean, dim=-1)

    @property
    def angle(self) -> Angle:
        """The law of the angle between m and a draw."""
        wide = torch.float32 if self.mean.device.type == "mps" else torch.float64
        return Angle(self.log_concentration.to(wide).exp(), self.mean.shape[-1])

    def rsample(self, noise: Tensor) -> Tensor:
        """Makes draws of z of standard normal noise, [..., B, d] both; gradients flow to the parameters.

        The first number of the noise says the angle to m, by the inverse of its distribution; the direction of the
        others is uniform, and says which way. Deviation from Davidson et al. 2018, algorithm 1, who draw the angle by
        rejection: there is nothing to reject, so a draw takes as many random numbers as it has dimensions, its
        gradient has no correction term, and a step never waits for the device.
        """
        angle = self.angle
        noise = noise.to(angle.kappa.dtype)
        theta = angle.quantile(torch.special.ndtr(noise[..., :1]))
        around = torch.cat([theta.cos(), theta.sin() * F.normalize(noise[..., 1:], dim=-1)], -1)
        return self._turned(around).to(self.mean.dtype)

    def _turned(self, z: Tensor) -> Tensor:
        """Turns the sphere so that its pole (1, 0, ..., 0) comes to m: by a reflection, as in algorithm 1.

        Deviation: where m lies on the pole's own side, it is the opposite pole that is reflected to m, and the sphere
        turned round. Between a point and the pole that is further from it the mirror's place is always certain; near m
        = (1, 0, ..., 0) the paper's is not, and gradients grow without limit.
        """
        m = self.code.to(z.dtype)
        sign = torch.where(m[..., :1] < 0, -1.0, 1.0)
        axis = F.normalize(torch.cat([m[..., :1] + sign, m[..., 1:]], -1), dim=-1)
        return sign * (2 * (z * axis).sum(-1, keepdim=True) * axis - z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Computes log q(z|x) of points on the sphere, in nats per area of it: [..., B, d] -> [..., B].

        By |z - m|^2 = 2 (1 - m.z), which loses nothing where z is near m.
        """
        angle = self.angle
        away = (z - self.code).square().sum(-1).to(angle.kappa.dtype)
        kappa = self.log_concentration.to(away.dtype).exp().squeeze(-1)
        constant = angle.log_mass.squeeze(-1) + log_area(z.shape[-1] - 1)
        return (-0.5 * kappa * away - constant).to(z.dtype)

    def has_kl(self, prior: Prior) -> bool:
        return isinstance(prior, UniformSphere)

    def kl(self, prior: Prior) -> KL:
        if not self.has_kl(prior):
            return super().kl(prior)
        return KL(self.angle.kl.squeeze(-1).to(self.mean.dtype), None, exact=True)


class VMF(Head):
    """Makes a von Mises-Fisher posterior of an encoder's output.

    Deviation from Davidson et al. 2018, whose kappa is softplus(a) + 1 of what the encoder says: here it is d exp(a),
    by factors as variances of Gaussians are, and it can fall to 0. At a = 0, near which training starts, the noise is
    as wide to each side as the prior is. log kappa is kept below 18.

    latent_dim: number d of the coordinates of a point on the sphere, whose surface has d - 1 dimensions.
    """

    def __init__(self, latent_dim: PositiveInt):
        super().__init__()
        if latent_dim < 2:
            raise UserError(f"model.latent_dim={latent_dim}: a sphere needs 2 or more for posterior=vmf")
        self.latent_dim, self.features = latent_dim, latent_dim + 1

    def forward(self, features: Tensor) -> VonMisesFisher:
        """Makes the posterior of features, [B, d + 1]: a direction of any length, then a; float32 under autocast."""
        direction, a = features.float().tensor_split((self.latent_dim,), 1)
        free = a + math.log(self.latent_dim)
        return VonMisesFisher(F.normalize(direction, dim=1), MOST - F.softplus(MOST - free))
