"""A stack whose training steps are traced: the operations of one are written down, and repeated from then on.

A small step is mostly Python: that of the models, of `torch.vmap`, of what runs in a backward pass. What is repeated
are the same operations in the same order, so that not a digit differs. What Python decides in a step is decided once;
so a step is taken both ways after tracing and once in every epoch, and none is repeated any more when they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from vaelab.core.batch import Batch
from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.vectorized.stack import Stack

WARM_UP = 40
"""Steps of a kind before one is traced, which takes as long as some hundred."""


class Computed(NamedTuple):
    """What a step computes: what came of its batches, and the gradients of all weights."""

    outcome: Outcome
    gradients: list[Tensor | None]


class TracedStack(Stack):
    """A stack that repeats the operations of its training steps. together: as of `Stack`."""

    def __init__(self, models: Sequence[Model], trainers: Sequence[pl.Trainer], together: bool):
        super().__init__(models, trainers, together)
        self.seen: Counter[Any] = Counter()  # steps by kind
        self.steps: dict[Any, Callable[..., Any]] = {}  # as traced
        self.compared: dict[Any, int] = {}  # in which epoch
        self.declined = False

    def _gradients(self, batch: Batch, noise: Tensor | None, dims: Any) -> Outcome:
        kind = batch.images.shape, batch[3:], dims
        self.seen[kind] += 1
        if self.declined or self.seen[kind] <= WARM_UP or torch.is_anomaly_enabled():
            return super()._gradients(batch, noise, dims)
        if kind not in self.steps:
            return self._trace(kind, batch, noise)
        repeated = self._repeat(self.steps[kind], batch, noise)
        if self.compared.get(kind) == (epoch := self.trainers[0].current_epoch):
            return repeated.outcome
        outcome, self.compared[kind] = super()._gradients(batch, noise, dims), epoch
        if not _same(repeated, self._computed(outcome)):
            self._decline("depends on more than its tensors")
        return outcome

    def _trace(self, kind: Any, batch: Batch, noise: Tensor | None) -> Outcome:
        """Takes a step, and writes its operations down."""
        taken: list[Outcome] = []

        def step(*tensors: Tensor) -> Computed:
            taken.append(super(TracedStack, self)._gradients(batch, noise, kind[-1]))
            return self._computed(taken[0])

        try:
            self.steps[kind] = make_fx(step)(*self._read(batch, noise))
        except Exception as error:
            self._decline(f"cannot be traced ({str(error).strip().partition(chr(10))[0]})")
            return super()._gradients(batch, noise, kind[-1])
        return taken[0]

    @torch.no_grad()
    def _repeat(self, step: Callable[..., Any], batch: Batch, noise: Tensor | None) -> Computed:
        """Repeats a traced step with the tensors of today."""
        outcome, gradients = step(*self._read(batch, noise))
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = gradient
        return Computed(Outcome(*outcome), gradients)

    def _read(self, batch: Batch, noise: Tensor | None) -> list[Tensor]:
        """Lists all tensors that a step reads."""
        given = [tensor for tensor in (*batch[:3], noise) if tensor is not None]
        return [*self.weights.values(), *self.buffers.values(), *self.numbers, *given]

    def _computed(self, outcome: Outcome) -> Computed:
        return Computed(outcome, [weight.grad for weight in self.weights.values()])

    def _decline(self, why: str) -> None:
        self.declined = True
        print(f"  the step of {len(self.models)} jobs {why}: it is taken anew each time, more slowly", flush=True)


def _same(a: Computed, b: Computed) -> bool:
    """Whether two steps have computed the same, to the last digit; NaN is NaN."""
    parts = ((c.outcome.loss, *chain(*(part.values() for part in c.outcome[1:])), *c.gradients) for c in (a, b))
    return all(
        y is None if x is None else y is not None and torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(*parts, strict=True)
    )
