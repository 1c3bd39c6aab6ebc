"""Autoregressive priors over codes: p(z) as the product of p(z_i | z_1 … z_{i-1}), level by level in raster order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaelab.core.errors import UserError
from vaelab.core.types import PositiveFloat, PositiveInt
from vaelab.nn.layouts import Layout
from vaelab.nn.priors.learning import Gradual

AT_A_TIME = 2**24
"""Logits that are held at a time where nothing is learned from them."""


class Stepper:
    """The logits of a batch of maps, position after position, each given the codes before it.

    This one computes all of them anew at every step; a prior that keeps what it has computed has one of its own. What
    it gives depends on the codes that it was given and on their number alone: whoever decodes meets what was encoded.

    prior: what computes them. count: number B of maps. labels: [B], of a prior that is told them.
    """

    def __init__(self, prior: Autoregressive, count: int, labels: Tensor | None):
        self.prior, self.labels, self.position = prior, labels, -1
        self.z = torch.zeros(count, prior.positions, dtype=torch.int64, device=prior.place.device)

    def next(self, indices: Tensor | None) -> Tensor:
        """The logits of the next position, [B, K]. indices: the codes at the one before it, [B]; None at the first."""
        if indices is not None:
            self.z[:, self.position] = indices
        self.position += 1
        return self.prior.logits(self.z, self.labels)[:, self.position]


class Autoregressive(Gradual):
    """Base class of the autoregressive priors over codes.

    A subclass implements `logits`, and `stepper` if it can be faster step by step.

    codes: number K of codes. maps: (h, w) of each level of an image's codes, the first one first; P positions in all.
    Each level is given those before it. num_classes: of the data's labels, None if there are none. labels: whether it
    is told them, where there are some. epochs, batch_size, lr, patience: of `fit`; see `vaelab.nn.priors.learning`.
    """

    in_training = False
    discrete = True
    part = "code"

    def __init__(
        self,
        codes: PositiveInt,
        maps: list[tuple[int, int]],
        num_classes: int | None,
        labels: bool,
        epochs: PositiveInt,
        batch_size: PositiveInt,
        lr: PositiveFloat,
        patience: PositiveInt,
    ):
        super().__init__(epochs, batch_size, lr, patience)
        self.codes, self.maps = codes, [(height, width) for height, width in maps]
        self.counts = [height * width for height, width in self.maps]
        self.positions = self.parts = sum(self.counts)
        self.shape = self.maps[0] if len(self.maps) == 1 else (self.positions,)
        self.classes = num_classes if labels else None

    @classmethod
    def sizes(cls, layout: Layout, num_classes: int | None) -> dict[str, Any]:
        return {
            "codes": layout.codes,
            "maps": [list(level.shape) for level in layout.levels],
            "num_classes": num_classes,
        }

    # --- what a subclass implements -----------------------------------------------------------

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The logits of each position given the codes before it, [B, P, K]. z: [B, P] int64.

        labels: [B], of a prior that is told them.
        """
        raise NotImplementedError

    def stepper(self, count: int, labels: Tensor | None) -> Stepper:
        """Begins `count` maps of which the codes are found one after the other. labels: [count] or None."""
        return Stepper(self, count, labels)

    # --- as a prior ---------------------------------------------------------------------------

    def log_probs(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes log p(z_i | z before it) at each position, nats: [B, *shape] -> [B, P]."""
        flat, labels = z.flatten(1).to(self.place.device), self._told(labels, len(z))
        logits = self.logits(flat, labels)
        return -F.cross_entropy(logits.flatten(0, 1).float(), flat.flatten(), reduction="none").view(flat.shape)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        size = max(1, AT_A_TIME // (self.positions * self.codes))
        parts = [
            self.log_probs(part, None if labels is None else labels[start : start + size]).sum(1)
            for start, part in zip(range(0, len(z), size), z.split(size), strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Draws codes, [count, h, w], or [count, P] of several levels.

        Labels take every class in turn where none are given. One number in [0, 1) for each code says which it is, by
        the inverse of the cumulative probabilities, so that labels and temperatures are compared on the same noise.
        """
        device = self._device(generator)
        noise = torch.rand(count, self.positions, generator=generator, device=device).to(self.place.device)
        if labels is None and self.classes is not None:
            labels = torch.arange(count) % self.classes
        stepper, chosen, found = self.stepper(count, self._told(labels, count)), None, []
        for position in range(self.positions):
            chosen = _drawn(stepper.next(chosen), noise[:, position], temperature, top_k)
            found.append(chosen)
        return torch.stack(found, 1).view(count, *self.shape).to(device)

    def check_sampling(self, temperature: float, top_k: int | None, model: str) -> None:
        if top_k is not None and top_k > self.codes:
            raise UserError(f"top_k={top_k}: {model} has {self.codes} codes: take fewer, or leave it out")

    def _told(self, labels: Tensor | None, count: int) -> Tensor | None:
        """The labels that it is told, [count] on its device, or None."""
        if self.classes is None:
            return None
        if labels is None:
            raise ValueError("a prior that is told the class needs the images' labels")
        return labels.to(self.place.device).expand(count)

    @property
    def reference(self) -> str:
        return f", where ln K = {math.log(self.codes):.4f}"


def _drawn(logits: Tensor, noise: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Draws codes, [B, K] -> [B]. noise: [B] in [0, 1). At temperature 0 each is the most probable one."""
    if temperature == 0:
        return logits.argmax(1)
    scaled = (logits.float() - logits.float().amax(1, keepdim=True)) / temperature
    if top_k is not None and top_k < scaled.shape[1]:
        best = scaled.topk(top_k, 1)
        scaled = torch.full_like(scaled, -math.inf).scatter(1, best.indices, best.values)
    cumulative = scaled.exp().cumsum(1)
    wanted = noise[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)
