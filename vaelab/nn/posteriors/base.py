"""The contract of a posterior q(z|x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from vaelab.nn.priors import Prior


class KL(NamedTuple):
    """The divergence KL(q(z|x) || p(z)) of each image, nats.

    total: [B]. per_dim: [B, d], which sum to it, or None where it is no sum over dimensions. exact:
    whether it is in closed form; else it is an estimate by a draw of z, right in expectation.
    """

    total: Tensor
    per_dim: Tensor | None
    exact: bool


class Usage(NamedTuple):
    """How much each axis of the code is used, over a set of images.

    values: [d]. word, unit: what they are called and counted in. silent: value below which an axis carries nothing,
    or None.
    """

    values: Tensor
    word: str
    unit: str
    silent: float | None


@dataclass(eq=False)
class Posterior:
    """Base class of the posteriors of B images. Its tensors, [B, ...] each, are its fields."""

    name: ClassVar[str]
    density: ClassVar[bool] = True
    """Whether the posterior has a `log_prob`, and with it a bound on log p(x)."""
    spherical: ClassVar[bool] = False
    """Whether its draws lie on the unit sphere: densities are then those of an area, and not of a volume."""

    @property
    def code(self) -> Tensor:
        """The code that stands for each image without noise: [B, d], or [B, h, w] int64."""
        raise NotImplementedError

    def rsample(self, noise: Tensor) -> Tensor:
        """Makes draws of z of standard normal noise, [..., B, d] both; gradients flow to the parameters."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """Computes log q(z|x), nats: [..., B, d] -> [..., B]."""
        raise NotImplementedError

    def has_kl(self, prior: Prior) -> bool:
        """Whether KL(q(z|x) || p(z)) has a closed form, which `kl` computes."""
        return False

    def kl(self, prior: Prior) -> KL:
        """Computes KL(q(z|x) || p(z)) in closed form. Raises NotImplementedError where `has_kl` is false."""
        raise NotImplementedError(f"{type(self).__name__} has no KL to {type(prior).__name__} in closed form")

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Makes draws of z, [..., B, d], and computes their log p(z) - log q(z|x), [..., B], nats."""
        z = self.rsample(noise)
        return z, prior.log_prob(z, labels) - self.log_prob(z)

    def draw_by_path(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Does as `draw`, with gradients that reach the parameters by way of z alone (Roeder et al. 2017).

        What is left out, the derivative of log q(z|x) in its parameters at a fixed z, is 0 in expectation and all of
        the noise where q is the true posterior. It holds for posteriors whose parameters are all their fields.
        """
        z = self.rsample(noise)
        return z, prior.log_prob(z, labels) - self.map(Tensor.detach).log_prob(z)

    def sample_with_kl(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, KL]:
        """Draws z, [B, d], and computes the KL: in closed form where there is one, else by this draw."""
        if self.has_kl(prior):
            return self.rsample(noise), self.kl(prior)
        z, log_ratio = self.draw(noise, prior, labels)
        return z, KL(self.control_variate(noise, prior) - log_ratio, None, exact=False)

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        """Computes a term with mean zero, [..., B], nats, that takes noise from -log_ratio as an estimate of the KL.

        It is 0 unless a distribution near the posterior has a KL in closed form.
        """
        return 0.0

    def usage(self, prior: Prior | None) -> Usage:
        """Measures how much each axis of the code is used: its variance over the images, unless a KL is known."""
        return Usage(self.code.var(0, unbiased=False), "variance", "", None)

    @property
    def factorised(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance of each dimension, [B, d] each, if the posterior is a product of normals, else None."""
        return None

    # --- as a set of tensors -----------------------------------------------------------------------

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The tensors that the posterior is made of, by the names that files have for them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Tensors for files and other programs, by name: the code is under a name of the layout's `arrays`."""
        return self.arrays

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Replaces every tensor of the posterior, as by a selection of images or a move to a device."""
        changed: dict[str, Any] = {name: function(value) for name, value in self.arrays.items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: Any) -> Self:
        """Selects the posteriors of some of the images."""
        return self.map(lambda values: values[index])

    def split(self, size: int) -> list[Self]:
        """Splits the posteriors into parts of at most `size` images."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @staticmethod
    def cat(parts: Sequence[Posterior]) -> Posterior:
        """Joins parts, all of one kind, to the posterior of the images of all of them."""
        columns = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        return replace(parts[0], **columns)


class Head(nn.Module):
    """Base class of the modules that make a posterior of an encoder's output.

    Its constructor takes the number of latent dimensions, and what the YAML of the option gives.
    """

    features: int
    """Number of outputs that the encoder has to give for each image."""

    def forward(self, features: Tensor) -> Posterior:
        """Makes the posterior of B images of what the encoder says of them, [B, features]."""
        raise NotImplementedError

    def example(self) -> Posterior:
        """Makes the posterior of one image from zeros, while a model is built: its type shows what it is able to."""
        return self(torch.zeros(1, self.features))
