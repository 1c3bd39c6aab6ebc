"""The VampPrior: a mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.types import PositiveFloat, PositiveInt, Shape
from vaelab.nn.priors.learning import Gradual

if TYPE_CHECKING:
    from vaelab.nn.posteriors import Posterior


class VampPrior(Gradual):
    """p(z) = 1/K sum_k q(z|u_k), for K images u_k that are learned: section 3.3, eq. 9.

    The best prior for the ELBO is the aggregate posterior, and this is one of as many images as can be afforded. u_k
    start at training images. With a model in training they learn by the ELBO's gradient, `fit` maximises the likelihood
    of draws of a finished model's q(z|x), whose encoder stays. Deviation: they are free, where the paper keeps them
    between 0 and 1. Of a conditional model each keeps the label of the image that it started at: p(z) is that of all
    labels together.

    latent_dim: number d of latent dimensions. components: K. epochs, batch_size, lr, patience: of `fit`; see
    `vaelab.nn.priors.learning`. What trains without them need not name them.
    """

    of_posteriors = True
    part = "latent"

    encode: Callable[[Tensor, Tensor | None], Posterior]
    pseudo_labels: Tensor

    def __init__(
        self,
        latent_dim: PositiveInt,
        components: PositiveInt,
        epochs: PositiveInt = 20,
        batch_size: PositiveInt = 500,
        lr: PositiveFloat = 3e-2,
        patience: PositiveInt = 3,
    ):
        super().__init__(epochs, batch_size, lr, patience)
        self.latent_dim = self.parts = latent_dim
        self.components = components
        self.words = f"a VampPrior of {components} pseudo-input{'s' * (components > 1)}"

    def belongs(
        self, encode: Callable[[Tensor, Tensor | None], Posterior], shape: Shape, label: Tensor | None = None
    ) -> None:
        self.encode = encode  # a method: no part of this module, and of a copied model that of the copy
        self.pseudo_inputs = nn.Parameter(torch.rand(self.components, *shape))
        blank = torch.zeros(1, dtype=torch.int64) if label is None else torch.zeros_like(label)
        self.register_buffer("pseudo_labels", blank.repeat(self.components, *[1] * (blank.ndim - 1)))

    @torch.no_grad()
    def start_from(self, images: Callable[[int], Batch]) -> None:
        """Starts the pseudo-inputs at training images, again from the first where there are too few."""
        batch = images(self.components)
        place = torch.arange(self.components) % len(batch.images)
        self.pseudo_inputs.copy_(batch.images[place].nan_to_num())
        if batch.labels is not None and batch.labels[0].shape == self.pseudo_labels[0].shape:
            self.pseudo_labels.copy_(batch.labels[place])

    def posteriors(self) -> Posterior:
        """Encodes the pseudo-inputs, as the model encodes images."""
        return self.encode(self.pseudo_inputs, self.pseudo_labels)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """`count` draws, [count, d]; the temperature scales the noise of each posterior."""
        device = self._device(generator)
        chosen = torch.randint(self.components, (count,), generator=generator, device=device)
        noise = torch.randn(count, self.latent_dim, generator=generator, device=device)
        posterior = self.posteriors()[chosen.to(self.place.device)]
        return posterior.rsample(temperature * noise.to(self.place.device)).to(device)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        each = self.posteriors().log_prob(z.unsqueeze(-2).expand(*z.shape[:-1], self.components, z.shape[-1]))
        return each.logsumexp(-1) - math.log(self.components)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        return self.posteriors().code.mean(0)
