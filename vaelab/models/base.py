"""The contract of a variant: what it is made of, what it measures of a batch, what it minimises.

Nothing here knows a trainer; `vaelab.models.module` has the half that Lightning asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.core.types import Shape
from vaelab.core.words import Finding
from vaelab.nn.coders import Decoder
from vaelab.nn.conditions import Condition, Unconditional
from vaelab.nn.layouts import Layout
from vaelab.nn.likelihoods import Likelihood
from vaelab.nn.posteriors import Posterior
from vaelab.nn.priors import Prior
from vaelab.nn.quantizers import Codebook

Terms = dict[str, Tensor]
"""Terms of a batch by name: [B] of each image, and tensors of other shapes that the objective needs."""
Part = TypeVar("Part")
Build = Callable[..., Part] | None
"""A function that builds a part of a model from the sizes that the model knows; None for the usual part."""


class Variant(nn.Module):
    """Base class of the variants.

    A variant implements `encode`, `decode`, `terms` (what is measured of a batch) and `objective` (what
    is minimised). It sets `layout` and, if it has one, `prior`. `terms` and `objective` change no state
    and draw no random numbers: what moves by itself does so in `learn`, and the noise is handed in.

    shape: (C, H, W) of the images. num_classes: classes of the labels, None if there are none.
    likelihood: p(x|z). condition: what the model is told beside the pixels, given the classes.
    """

    monitor = "elbo"
    """The metric that selects the best checkpoint."""
    best: Literal["min", "max"] = "max"
    """Whether the best checkpoint has the greatest (`max`) or the least (`min`) value of `monitor`."""
    scalars: dict[str, float] = {}
    """Names and first values of scalars that a schedule or a controller may set, to 0 or more. Each becomes a 0-dim
    buffer: saved, moved with the device, logged under its name, and changed without recompiling a compiled model."""
    replaceable = True
    """Whether another prior, fitted to its codes afterwards, may stand in the place of its own."""
    own_options: dict[str, dict[str, Any]] = {}
    """Options of the optimiser, such as `lr` and `betas`, of parts that have their own, by the part's name. All parts
    learn in one step: an adversary's terms are cut off from the weights of what it judges, and the reverse."""
    least_batch = 1
    """Images that a batch has at least: more than one where the objective compares those of a batch."""
    semi_supervised = False
    """Whether it learns from images whose label is -1, not known, beside others; `classify` then gives log q(y|x)."""
    layout: Layout
    """Description of the latents: their levels, shapes and axes."""
    prior: Prior | None
    """Distribution that new images are drawn from; None where there is none."""
    decoder: Decoder
    device: torch.device

    def __init__(
        self, shape: Shape, num_classes: int | None, likelihood: Likelihood, condition: Build[Condition] = None
    ):
        super().__init__()
        self.shape: Shape = tuple(shape)  # type: ignore[assignment]
        self.num_classes, self.likelihood = num_classes, likelihood
        self.condition: Condition = (condition or Unconditional)(num_classes)
        self.prior = None
        for name, value in self.scalars.items():
            self.register_buffer(name, torch.tensor(value))

    @property
    def conditional(self) -> bool:
        """Whether images are encoded, decoded and sampled with their labels."""
        return self.condition.size > 0

    @property
    def told(self) -> bool:
        """Whether samples are of a label: the decoder or the prior is told one."""
        return self.conditional or (self.prior is not None and self.prior.classes is not None)

    @property
    def by_class(self) -> bool:
        """Whether samples are of a class: they are of a label, and it is no vector."""
        return self.told and self.num_classes is not None

    @property
    def classes(self) -> int:
        """Number of classes of the labels that a conditional model is told. Raises ValueError without labels."""
        if self.num_classes is None:
            raise ValueError("the data has no labels")
        return self.num_classes

    @property
    def books(self) -> Sequence[Codebook]:
        """The codebook of each of the layout's levels, where levels share one several times the same; else none."""
        return ()

    # --- what a variant implements ------------------------------------------------------------

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        """Returns the posterior of each image. x: [B, C, H, W] in the data's range; labels: [B], [B, A] or None."""
        raise NotImplementedError

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes latents, as `layout` has them, to raw parameters of p(x|z), of the likelihood's shape."""
        raise NotImplementedError

    def noise(self, count: int) -> Tensor | None:
        """Draws the noise that `terms` of `count` images needs from torch's global generators; None for nothing."""
        return None

    def terms(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Computes everything that the objective is made of.

        batch: images as the model sees them. noise: as `noise` draws it. Returns tensors by name; floats of
        shape [B] are per image and logged as means. Those of other shapes are for `objective`, `vectors` and
        `observe`.
        """
        raise NotImplementedError

    def objective(self, terms: Terms) -> Tensor:
        """Computes the scalar that is minimised, nats per image."""
        raise NotImplementedError

    def vectors(self, terms: Terms) -> dict[str, Tensor]:
        """Computes metrics of several components, summed over the batch: fresh tensors, which are kept for a while."""
        return {}

    def derived(self, means: dict[str, float], vectors: dict[str, Tensor]) -> dict[str, float]:
        """Computes further metrics that follow from exact means over images, of terms and of vectors."""
        return {}

    def place(self, batch: Batch) -> None:
        """Sets up what has to see a first batch of images; called before each training step."""

    def untold(self, batch: Batch) -> Batch:
        """Takes what the model is conditioned on from a random share of a training batch, if it shall learn that."""
        return batch._replace(labels=self.condition.dropped(batch.labels))

    def observe(self, batch: Batch, terms: Terms) -> Any:
        """Returns what `learn` has to know of a training batch, without gradients; None for nothing."""
        return None

    def learn(self, observed: Sequence[Any]) -> None:
        """Moves what learns without the optimiser: controllers, moving averages.

        Called once per optimiser step, between the gradients and the step. observed: what
        `observe` gave for each of its batches, of which there are several where gradients are accumulated.
        """

    def diagnose(self, figures: dict[str, float]) -> list[Finding]:
        """Says what is wrong with a training that no other variant has; figures: means over a training epoch, by name.

        It is looked for at the end of each epoch, once a run is judged.
        """
        return []

    def seen(self, x: Tensor) -> Tensor:
        """Returns images as an encoder is given them: 0, the mean of a standardised column, for what is missing."""
        return x.nan_to_num() if self.likelihood.missing else x

    # --- what follows from it -----------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes the codes of `x` to mean images, [B, C, H, W], without sampling."""
        return self.likelihood.mean(self.decode(self.encode(x, labels).code, labels))

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """Decodes `count` draws from the prior to mean images, [count, C, H, W].

        labels: [count] or [count, A], where samples are of a label; None for labels in turn. Raises UserError without
        a prior.
        """
        labels = self.in_turn(count) if labels is None else labels
        return self.likelihood.mean(self.decode(self.require_prior().sample(count, labels), labels))

    def in_turn(self, count: int) -> Tensor | None:
        """Takes every class in turn for `count` samples, [count] int64, or label vectors of the data, [count, A].

        None where samples are of no label.
        """
        if self.by_class:
            return torch.arange(count, device=self.device) % self.classes
        return self.condition.in_turn(count)

    @torch.no_grad()
    def blank(self) -> Posterior:
        """Encodes one black image of the first label: the posterior's type and tensors show what `encode` gives."""
        return self.encode(torch.zeros(1, *self.shape, device=self.device), self.in_turn(1))

    @property
    def bounded(self) -> bool:
        """Whether there is a bound on log p(x): the posterior and the prior have densities."""
        return self.prior is not None and self.prior.density and self.blank().density

    def require_prior(self) -> Prior:
        """Returns the prior. Raises UserError if there is none."""
        if self.prior is None:
            raise UserError(f"{type(self).__name__} has no prior to draw samples from: vaelab prior fits one")
        return self.prior

    def draw_from(self, prior: Prior) -> None:
        """Puts another prior in the place of the model's own: one that was fitted to its codes afterwards."""
        prior.fitted = True
        self.prior, self.layout = prior, replace(self.layout, standard=prior.standard)

    def start_from(self, mean_image: Tensor, spread: float, count: int) -> None:
        """Tells a fresh model of its training images, and starts it at their mean.

        mean_image: [C, H, W] in the data's range, which the output bias is set to. spread: the
        pixels' standard deviation around it, where a learned noise level starts. count: number of images.
        """
        self.decoder.start_from(mean_image, self.likelihood.raw_from_mean)
        self.likelihood.start_from(spread)
