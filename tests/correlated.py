"""A linear Gaussian model whose latents are correlated given the image: all of it is in closed form."""

import torch
from torch.distributions import MultivariateNormal

from vaelab.models import VAE
from vaelab.nn.likelihoods import Gaussian
from vaelab.nn.networks import MLP

SHAPE, PIXELS, LATENTS, SIGMA = (1, 3, 3), 9, 2, 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Correlated(VAE):
    """Probabilistic PCA whose directions are not orthogonal: latents are correlated given the image.

    The decoder is W, which stays; encoder and flow are free.
    """

    def __init__(self, posterior=None):
        torch.manual_seed(0)
        super().__init__(SHAPE, None, MLP([], "relu", False), Gaussian(SIGMA), LATENTS, posterior)
        self.weight = torch.randn(PIXELS, LATENTS, generator=seeded(4)) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
        decoder = self.decoder.body[-1]
        with torch.no_grad():
            decoder.weight.copy_(self.weight)
            decoder.bias.zero_()
        self.precision = torch.eye(LATENTS) + self.weight.t() @ self.weight / SIGMA**2

    def images(self, count, seed):
        noise = seeded(seed)
        z = torch.randn(count, LATENTS, generator=noise)
        return (z @ self.weight.t() + SIGMA * torch.randn(count, PIXELS, generator=noise)).view(-1, *SHAPE)

    def log_evidence(self, x):
        covariance = self.weight @ self.weight.t() + SIGMA**2 * torch.eye(PIXELS)
        return MultivariateNormal(torch.zeros(PIXELS).double(), covariance.double()).log_prob(x.flatten(1).double())

    @property
    def lost_by_a_diagonal(self):
        """KL of the best diagonal Gaussian to the posterior, nats."""
        return 0.5 * (self.precision.diagonal().log().sum() - self.precision.logdet()).item()
