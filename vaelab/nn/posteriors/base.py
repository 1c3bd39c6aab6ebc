"""The contract of a posterior q(z|x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from vaelab.nn.priors import Prior


class KL(NamedTuple):
    """KL(q(z|x) || p(z)) of each image, nats.

    total: [B]. per_dim: [B, d], which sum to it, or None where it is no sum over dimensions. exact:
    whether it is in closed form; else it is an estimate by a draw of z, right in expectation.
    """

    total: Tensor
    per_dim: Tensor | None
    exact: bool


class Usage(NamedTuple):
    """How much each axis of the code is used, over a set of images.

    values: [d]. word, unit: what they are. silent: value below which an axis carries nothing, or None.
    """

    values: Tensor
    word: str
    unit: str
    silent: float | None


@dataclass(eq=False)
class Posterior:
    """Base of the posteriors of B images. Its tensors, [B, ...] each, are its fields."""

    name: ClassVar[str]
    density: ClassVar[bool] = True
    """Whether there is a `log_prob`, and with it a bound on log p(x)."""

    @property
    def code(self) -> Tensor:
        """What stands for each image without noise: [B, d], or [B, h, w] int64."""
        raise NotImplementedError

    def rsample(self, noise: Tensor) -> Tensor:
        """Draws of z, made of standard normal noise, [..., B, d] both; gradients flow to the parameters."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x), nats: [..., B, d] -> [..., B]."""
        raise NotImplementedError

    def has_kl(self, prior: Prior) -> bool:
        """Whether KL(q(z|x) || p(z)) has a closed form, which `kl` computes."""
        return False

    def kl(self, prior: Prior) -> KL:
        """KL(q(z|x) || p(z)) in closed form. Raises NotImplementedError where there is none: see `has_kl`."""
        raise NotImplementedError(f"{type(self).__name__} has no KL to {type(prior).__name__} in closed form")

    def draw(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws of z, [..., B, d], and their log p(z) - log q(z|x), [..., B], nats."""
        z = self.rsample(noise)
        return z, prior.log_prob(z, labels) - self.log_prob(z)

    def sample_with_kl(self, noise: Tensor, prior: Prior, labels: Tensor | None = None) -> tuple[Tensor, KL]:
        """A draw of z, [B, d], and the KL: in closed form where there is one, else by this draw."""
        if self.has_kl(prior):
            return self.rsample(noise), self.kl(prior)
        z, log_ratio = self.draw(noise, prior, labels)
        return z, KL(self.control_variate(noise, prior) - log_ratio, None, exact=False)

    def control_variate(self, noise: Tensor, prior: Prior) -> Tensor | float:
        """A term with mean zero, [..., B], nats, that takes noise from -log_ratio as an estimate of the KL.

        0 unless something near the posterior has a KL in closed form.
        """
        return 0.0

    def usage(self, prior: Prior | None) -> Usage:
        """How much each axis of the code is used: its variance over the images, where nothing else is known."""
        return Usage(self.code.var(0, unbiased=False), "variance", "", None)

    @property
    def marginals(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance of each dimension, [B, d] each, of a product of normal ones; None of any other."""
        return None

    # --- as a set of tensors -----------------------------------------------------------------------

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The tensors that it is made of, by the names that files have for them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """What files and other programs get of it, by name: the code is under a name of the layout's `arrays`."""
        return self.arrays

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The posterior with every tensor replaced, as by a selection of images or a move to a device."""
        changed: dict[str, Any] = {name: function(value) for name, value in self.arrays.items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: Any) -> Self:
        """The posteriors of some of the images."""
        return self.map(lambda values: values[index])

    def split(self, size: int) -> list[Self]:
        """The posteriors of `size` images at a time."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @staticmethod
    def cat(parts: Sequence[Posterior]) -> Posterior:
        """The posterior of the images of all parts, which are of one kind."""
        columns = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        return replace(parts[0], **columns)
