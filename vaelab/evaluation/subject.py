"""What is evaluated: a model, a split of its data, and the encodings, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab.evaluation.likelihood import importance_weighted

BATCH = 512
"""Images at a time."""


class Unsupported(Exception):  # noqa: N818
    """A section cannot be measured on this model or data: the reason, for the user."""


class Settings(NamedTuple):
    """How much work to do; see conf/eval.yaml for what each means and its default."""

    seed: int
    memory: int
    importance_samples: int
    generated: int
    gap_images: int


class Section(NamedTuple):
    """What a section measured.

    figures: numbers. vectors: figures with several components. per_image: tensors whose first
    dimension is the split's images. protocol: how it was measured, in a sentence or two.
    """

    figures: dict[str, float]
    protocol: str
    vectors: dict[str, Tensor] = {}
    per_image: dict[str, Tensor] = {}


@dataclass(eq=False)
class Subject:
    """A trained model in eval mode, its data, set up, and the split that is measured.

    part: the split's name. identity: what the images depend on, as plain data. other: a data set that
    the model was not trained on, for anomaly detection, or None.
    """

    model: Any
    data: Any
    part: str
    identity: dict[str, Any]
    settings: Settings
    other: Any = None

    @property
    def split(self) -> Any:
        """The measured images: anything with the methods of `vaelab.datasets.splits.Split`."""
        return getattr(self.data, self.part)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def latents(self) -> str:
        return self.model.latents

    def seed(self, *place: int | str) -> None:
        """Seeds torch's noise by a place in the evaluation, so that no section depends on those before it."""
        torch.manual_seed(sum(ord(c) * 257**i for i, c in enumerate(f"{self.settings.seed} {place}")) % 2**63)

    def batches(self, split: Any = None, bar: str | None = None, limit: int | None = None) -> Iterator[Any]:
        """The images of a split (the measured one) as the model sees them: the same at every pass.

        bar: words for a progress bar, which is shown if the pass takes long. limit: the first images only.
        """
        split = self.split if split is None else split
        parts = torch.arange(min(len(split), limit or len(split))).split(BATCH)
        shown = tqdm(parts, desc=bar, unit="batch", delay=2, leave=False, disable=None if bar else True)
        for i, part in enumerate(shown):
            self.seed("images", i)
            yield self.data.as_model_sees(split.batch(part).to(self.device))

    @cached_property
    def bounds(self) -> dict[str, Tensor]:
        """`bounds_of` the measured split."""
        return self.bounds_of(self.split)

    def bounds_of(self, split: Any) -> dict[str, Tensor]:
        """Of each image of a split, [N]: elbo, log_p_hat, reconstruction, kl, effective_samples."""
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        samples, memory = self.settings.importance_samples, self.settings.memory
        found: dict[str, list[Tensor]] = {}
        for batch in self.batches(split, "importance sampling"):
            bound = importance_weighted(self.model, batch.images, batch.labels, samples, memory, generator)
            for name, values in {"elbo": bound.elbo, **bound._asdict()}.items():
                found.setdefault(name, []).append(values)
        return {name: torch.cat(parts) for name, parts in found.items()}

    @cached_property
    def distortion(self) -> Tensor:
        """`distortion_of` the measured split."""
        return self.distortion_of(self.split)

    def distortion_of(self, split: Any) -> Tensor:
        """-log p(x|z) at the image's own code, [N], nats: for models without a Gaussian posterior."""
        model, parts = self.model, []
        for batch in self.batches(split, "distortion"):
            raw = model.decode(model.encode(batch.images, batch.labels), batch.labels)
            parts.append(-model.likelihood.log_prob(raw, batch.images))
        return torch.cat(parts).cpu().double()

    @cached_property
    def codes(self) -> tuple[Tensor, ...]:
        """What the model's `encode` gives for the whole split: one tensor, or mean and log-variance."""
        return self.encode(self.split)

    def encode(self, split: Any) -> tuple[Tensor, ...]:
        """Codes of all images of a split."""
        found = []
        for batch in self.batches(split, "encoding"):
            code = self.model.encode(batch.images, batch.labels)
            found.append(code if isinstance(code, tuple) else (code,))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def batched_codes(self) -> Iterator[tuple[Tensor, ...]]:
        """`codes` in the batches of `batches`."""
        return zip(*(part.split(BATCH) for part in self.codes), strict=True)

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels of the split, [N] int64 on the CPU, or None."""
        return self.known_of(self.split, "labels")

    @cached_property
    def factors(self) -> Tensor | None:
        """Ground-truth factors of the split, [N, F] on the CPU, or None."""
        return self.known_of(self.split, "factors")

    def known_of(self, split: Any, name: str) -> Tensor | None:
        """`labels` or `factors` of a split, on the CPU, or None."""
        parts = [getattr(split.batch(part), name) for part in torch.arange(len(split)).split(BATCH)]
        return None if parts[0] is None else torch.cat(parts).cpu()

    def bytes_of(self, split: Any) -> Tensor:
        """The images of a split as the model sees them, [N, C, H, W] uint8 on the processor."""
        shown = self.batches(split, "reading images")
        return torch.cat([self.unit(batch.images).mul(255).round().to(torch.uint8).cpu() for batch in shown])

    def some(self, split: Any, count: int) -> Any:
        """At most `count` images of a split, drawn at random and always the same ones."""
        if len(split) <= count:
            return split
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.settings.seed))
        return split.subset(order[:count].sort().values)

    def unit(self, images: Tensor) -> Tensor:
        """Images in the data's range, moved to [0, 1]."""
        low, high = self.data.pixel_range
        return (images - low) / (high - low)
