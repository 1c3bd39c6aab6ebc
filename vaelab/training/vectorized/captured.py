"""A stack whose training steps are launched as two CUDA graphs: the gradients, and the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.captured import WARM_UP, CUDAGraph, Inputs
from vaelab.training.loop import decline
from vaelab.training.vectorized.optimizers import Optimizers
from vaelab.training.vectorized.stack import Asked, Stack, learned_of


class CapturedStack(Stack):
    """A stack that replays captured steps of whole batches, and takes all others as they come.

    What a model learns without a gradient comes between the two graphs: each job draws from generators of its own.

    make: a graph on the models' device. size: images of a whole batch.
    """

    optimizers: Optimizers

    def __init__(
        self, models: Sequence[Model], trainers: Sequence[pl.Trainer], make: Callable[[], CUDAGraph], size: int
    ):
        super().__init__(models, trainers, together=True)
        self.graph: CUDAGraph | None = make()
        self.stepping = make()
        self.size, self.warm, self.inputs = size, 0, Inputs()
        self.dims: Any = None
        self.captured: Outcome

    def take(self, asked: Sequence[Asked], training: bool) -> list[Outcome]:
        if not training or self.graph is None or len(asked[0].batch.images) != self.size:
            return super().take(asked, training)
        if self.warm < WARM_UP:  # of which the first makes the optimiser's states
            self.warm += 1
            outcomes, _ = self.graph.warm_up(lambda: super(CapturedStack, self).take(asked, training))
            return outcomes
        if self.optimizers.one is None or not self.optimizers.join():
            self._decline("is for jobs that take the same steps, their learning rates apart")
            return super().take(asked, training)
        batch, noise, dims = self._joined(asked)
        if self.inputs.empty and not self._record(self.graph, batch, noise, dims):
            return super().take(asked, training)
        if dims != self.dims:  # some see other batches from now on
            return super().take(asked, training)
        self.optimizers.write_rates()
        self.inputs.fill(batch, noise)
        outcomes = learned_of(asked, self._apart(_copied(self.graph.replay())))
        self.stepping.replay()
        return outcomes

    def _record(self, graph: CUDAGraph, batch: Any, noise: Tensor | None, dims: Any) -> bool:
        """Captures a step. Returns whether that is possible."""
        held, self.dims = self.inputs.hold(batch, noise), dims
        try:
            graph.record(lambda: self._backward(*held, dims))
            self.stepping.record(lambda: self.optimizers.step_by_rates(capturable=True))
        except RuntimeError as error:
            self._decline(f"failed ({str(error).strip().partition(chr(10))[0]})")
            return False
        return True

    def _decline(self, why: str) -> None:
        self.graph = None
        decline(why)


def _copied(outcome: Outcome) -> Outcome:
    """Copies an outcome out of the graph's memory: all numbers with one launch."""
    names = list(outcome.metrics)
    metrics = torch.stack([outcome.loss, *outcome.metrics.values()]).detach().unbind()
    parts = [{name: value.detach().clone() for name, value in part.items()} for part in outcome[2:]]
    return Outcome(metrics[0], dict(zip(names, metrics[1:], strict=True)), *parts)
