"""The contract of a prior p(z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.core.types import Shape
from vaelab.nn.layouts import Layout

if TYPE_CHECKING:
    from vaelab.nn.posteriors import Posterior


class Latents(NamedTuple):
    """Latents of N images. z: [N, ...], as `Prior.log_prob` takes them. labels: [N], or None where there are none."""

    z: Tensor
    labels: Tensor | None


class Kept(Protocol):
    """Where a fit keeps what it needs to go on after an interruption."""

    def load(self) -> dict[str, Any]:
        """What was saved last; {} if the fit begins."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Puts plain data and tensors in the place of what was saved before."""
        ...


class Prior(nn.Module):
    """Base class of the priors.

    words: its name in captions and messages. standard: whether each axis has mean 0 and standard deviation 1.
    in_training: whether a model can have it while it trains. afterwards: whether `fit` fits it to the codes of a
    finished run. fitted: whether that was done, and it has taken the place of a model's own.
    density: whether it has a `log_prob`, without which there is no bound on log p(x). estimate: how `log_prob` is
    estimated, in words, if it is not exact; its mean is then at most log p(z). of_posteriors: whether it is made of
    the posteriors of its model, which need a density.
    stepwise: whether it draws a level of latents given those above it, by `below`.
    discrete: whether it is of indices of codes, and not of real numbers. spherical: whether it is of points on the unit
    sphere, whose density is that of an area. placeholder: whether it only stands where a
    better one is to be fitted: draws from it look like nothing. classes: number of classes of the labels that it is
    told, None if it looks at none.
    """

    words: str
    standard = False
    in_training = True
    afterwards = False
    fitted = False
    density = True
    estimate = ""
    of_posteriors = False
    stepwise = False
    discrete = False
    spherical = False
    placeholder = False
    classes: int | None = None
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(()), persistent=False)  # knows the device to draw on

    @classmethod
    def fits(cls, layout: Layout, density: bool) -> bool:
        """Whether it can be fitted afterwards to latents of this layout, whose posteriors have a density or not."""
        same_kind = cls.discrete == (layout.codes is not None) and cls.spherical == layout.spherical
        return cls.afterwards and same_kind and (density or not cls.of_posteriors)

    @classmethod
    def sizes(cls, layout: Layout, num_classes: int | None) -> dict[str, Any]:
        """What the constructor is told of a model's latents and of the data's labels: plain data."""
        return {"latent_dim": layout.dimensions}

    def belongs(
        self, encode: Callable[[Tensor, Tensor | None], Posterior], shape: Shape, label: Tensor | None = None
    ) -> None:
        """Tells the prior of the model that it becomes a part of: how it encodes images, and their (C, H, W).

        label: one that the model may be told, [1] or [1, A], or None.
        """

    def start_from(self, images: Callable[[int], Batch]) -> None:
        """Starts the prior of a fresh model. images: gives so many training images, always the same."""

    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Draws the latents of `count` images: [count, d], or [count, h, w] int64.

        labels: [count], of conditional images. generator: the source of the noise, on whose device the
        draws are made; torch's global one on the prior's own device where None. temperature: factor of
        the prior's deviations, or exponent 1 / temperature of its probabilities. top_k: how many codes, the most
        probable ones, each is drawn from; None for all. What `check_sampling` refuses has no effect.
        """
        raise NotImplementedError

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes log p(z) of each latent, nats: [..., d] -> [...], or [B, h, w] -> [B].

        labels: [B], of a prior that is told them: then it is log p(z|y).
        """
        raise NotImplementedError

    def below(self, z: Tensor, above: Tensor) -> Tensor:
        """Gives draws, [N, d], other first axes, [N, a]; what comes after them becomes a draw given these.

        Only of a prior that is `stepwise`.
        """
        raise NotImplementedError

    @property
    def weights(self) -> Tensor | None:
        """The weights of a mixture, [K], which sum to 1; None of any other prior."""
        return None

    @property
    def mean(self) -> Tensor | None:
        """The mean latent, [d], where a path can start; None where there is none."""
        return None

    def fit(
        self,
        z: Tensor,
        seed: int,
        labels: Tensor | None = None,
        held_out: Latents | None = None,
        kept: Kept | None = None,
    ) -> str:
        """Fits a prior that is fitted afterwards to latents, with progress. Returns how it went, in words.

        z: of N images, [N, d] or [N, h, w]. labels: [N], or None. seed: of what the fit draws. held_out: of images
        that are not fitted to, and tell when to stop. kept: where a long fit saves how far it is.
        Raises UserError for latents that it cannot fit.
        """
        raise NotImplementedError

    def check_sampling(self, temperature: float, top_k: int | None, model: str) -> None:
        """Raises UserError for what `sample` has no use for. model: name of the model whose prior it is."""
        if top_k is not None:
            raise UserError(f"top_k={top_k}: the prior of {model} does not draw code after code: leave it out")

    def _device(self, generator: torch.Generator | None) -> torch.device:
        return self.place.device if generator is None else generator.device
