"""The subject of an evaluation: a model, a split of its data, and the encodings, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab.core.pixels import to_bytes, to_unit
from vaelab.core.randomness import seed_of
from vaelab.evaluation.metrics.likelihood import importance_weighted
from vaelab.inference.batches import batch_size
from vaelab.nn.posteriors import Posterior

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

AT_A_TIME = 20_000
"""Draws of z after which the importance-weighted bound shows its progress."""


class Unsupported(Exception):  # noqa: N818
    """Raised where a section cannot be measured on this model or data, with the reason for the user."""


class Settings(NamedTuple):
    """Settings of an evaluation that say how much work to do; conf/eval.yaml explains each and has its default."""

    seed: int
    memory: int
    importance_samples: int
    generated: int
    gap_images: int
    inception: str | None
    lpips: str | None


class Section(NamedTuple):
    """The metrics that a section measured.

    figures: metrics. vectors: metrics with several components. per_image: tensors whose first
    dimension is the split's images. protocol: how it was measured, in a sentence or two, without
    anything of the single run: metrics with the same protocol can be compared.
    """

    figures: dict[str, float]
    protocol: str
    vectors: dict[str, Tensor] = {}
    per_image: dict[str, Tensor] = {}


class Part(NamedTuple):
    """A set of images with a name, by which their noise is seeded.

    split: anything with the methods of `vaelab.datasets.Split`.
    """

    name: str
    split: Any

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.split)


@dataclass(eq=False)
class Subject:
    """A trained model in eval mode, its data, set up, and the part of it that is measured.

    other: test images of a data set that the model was not trained on, for anomaly detection, or None.
    """

    model: Model
    data: ImageData
    part: str
    settings: Settings
    other: Part | None = None

    @property
    def own(self) -> Part:
        """The measured images."""
        return self.of(self.part)

    def of(self, name: str) -> Part:
        """Returns the train, val or test images of the data."""
        return Part(name, getattr(self.data, name))

    def some(self, part: Part, count: int) -> Part:
        """Returns at most `count` images of a part, drawn at random and always the same ones, in their order."""
        if len(part) <= count:
            return part
        return Part(f"{count} of {part.name}", part.split.subset(self.drawn(len(part), count)))

    def drawn(self, size: int, count: int) -> Tensor:
        """Draws at most `count` of the numbers below `size`, always the same ones, rising: int64 on the CPU."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(size, generator=generator)[:count].sort().values

    @property
    def device(self) -> torch.device:
        return self.model.device

    def seed(self, *place: int | str) -> None:
        """Seeds torch's noise by a place in the evaluation, so that no section depends on those before it."""
        torch.manual_seed(seed_of(self.settings.seed, *place))

    def require_pictures(self) -> None:
        """Raises Unsupported if examples are no whole pictures: for sections that measure them as such."""
        if self.data.fields is not None:
            raise Unsupported("rows of a table are no pictures")
        if self.data.masked:
            raise Unsupported("values are missing")

    # --- passes -------------------------------------------------------------------------------

    def batches(self, part: Part | None = None, bar: str | None = None) -> Iterator[Any]:
        """Yields the images of a part (the measured one) as the model sees them, the same at every pass.

        bar: words for a progress bar, which is shown if the pass takes long.
        """
        part = self.own if part is None else part
        places = torch.arange(len(part)).split(batch_size(self.model.shape))
        shown = tqdm(places, desc=bar, unit="batch", delay=2, leave=False, disable=None if bar else True)
        for i, place in enumerate(shown):
            self.seed(part.name, i)
            yield self.data.as_model_sees(part.split.batch(place).to(self.device))

    @cached_property
    def posterior(self) -> Posterior:
        """The posterior of the measured images, by `encode`."""
        return self.encode(self.own)

    @property
    def codes(self) -> Tensor:
        """The codes of the measured images: [N, d], or [N, h, w] int64."""
        return self.posterior.code

    def encode(self, part: Part) -> Posterior:
        """Encodes all images of a part. Returns their posterior.

        Raises ValueError if it is not finite, or the weights that discrete codes are made with.
        """
        posteriors = [self.model.encode(batch.images, batch.labels) for batch in self.batches(part, "encoding")]
        posterior = Posterior.cat(posteriors)
        continuous = posterior.code.is_floating_point()
        values = (posterior.arrays if continuous else self.model.state_dict()).values()
        if not all(bool(tensor.isfinite().all()) for tensor in values if torch.is_tensor(tensor)):
            raise ValueError(f"the {'codes' if continuous else 'weights'} of the model are NaN or infinite")
        return posterior

    def in_batches(self, posterior: Posterior) -> list[Posterior]:
        """Splits a posterior into the batches of `batches`."""
        return posterior.split(batch_size(self.model.shape))

    @cached_property
    def bounds(self) -> dict[str, Tensor]:
        """Bounds of the measured images, by `bounds_of`."""
        return self.bounds_of(self.own)

    def bounds_of(self, part: Part) -> dict[str, Tensor]:
        """Computes for each image, [N]: elbo, log_p_hat, reconstruction, kl, effective_samples."""
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        samples, memory = self.settings.importance_samples, self.settings.memory
        size, parts_by_name = max(8, AT_A_TIME // samples), {}
        with tqdm(total=len(part), desc="importance sampling", unit="image", delay=2, leave=False, disable=None) as bar:
            for batch in self.batches(part):
                labels = [None] * len(batch.images) if batch.labels is None else batch.labels.split(size)
                for x, y in zip(batch.images.split(size), labels, strict=False):
                    bound = importance_weighted(self.model, x, y, samples, memory, generator)
                    for name, values in {"elbo": bound.elbo, **bound._asdict()}.items():
                        parts_by_name.setdefault(name, []).append(values)
                    bar.update(len(x))
        return {name: torch.cat(parts) for name, parts in parts_by_name.items()}

    @cached_property
    def distortion(self) -> Tensor:
        """Distortion of the measured images, by `distortion_of`."""
        return self.distortion_of(self.own, self.posterior)

    def distortion_of(self, part: Part, posterior: Posterior) -> Tensor:
        """Computes -log p(x|z) at the image's own code, [N], nats: for models without a bound on log p(x)."""
        parts = []
        for batch, encoded in zip(self.batches(part, "decoding"), self.in_batches(posterior), strict=True):
            raw = self.model.decode(encoded.code, batch.labels)
            parts.append(-self.model.likelihood.log_prob(raw, batch.images))
        return torch.cat(parts).cpu().double()

    def bytes_of(self, part: Part) -> Tensor:
        """Returns the images of a part as the model sees them, [N, C, H, W] uint8 on the processor."""
        return torch.cat([to_bytes(self.unit(batch.images)) for batch in self.batches(part, "reading images")])

    # --- what is known of the images ----------------------------------------------------------

    @cached_property
    def labels(self) -> Tensor | None:
        """Classes of the measured images, [N] int64 on the CPU; None without labels, or where they are vectors."""
        return None if self.data.num_classes is None else self.known_of(self.own, "labels")

    @cached_property
    def factors(self) -> Tensor | None:
        """Ground-truth factors of the measured images, [N, F] on the CPU, or None."""
        return self.known_of(self.own, "factors")

    def known_of(self, part: Part, name: str) -> Tensor | None:
        """Returns `labels` or `factors` of a part, on the CPU, or None."""
        if getattr(part.split.batch(torch.arange(1)), name) is None:
            return None
        places = torch.arange(len(part)).split(batch_size(self.model.shape))
        return torch.cat([getattr(part.split.batch(place), name) for place in places]).cpu()

    def unit(self, images: Tensor) -> Tensor:
        """Moves images from the data's range to [0, 1]."""
        return to_unit(images, self.data.pixel_range, clamp=False)
