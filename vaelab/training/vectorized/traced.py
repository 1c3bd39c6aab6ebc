"""A stack whose training steps are traced: the operations of one are written down, and repeated from then on.

A small step is mostly Python: that of the models, of `torch.vmap`, of what runs in a backward pass. What is repeated
are the same operations in the same order, so that not a digit differs. What Python decides in a step is decided once:
in the lab's own models by options alone, and what changes is in tensors. What a user wrote may go by the time, and is
taken anew each time.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from vaelab.core.batch import Batch
from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.vectorized.stack import Stack

WARM_UP = 10
"""Steps of a kind before one is traced, which takes as long as four to forty."""
KNOWN = {"vaelab", "torch", "pytorch_lightning", "zuko"}
"""Packages whose parts and callbacks change nothing in a step but by tensors."""


class Computed(NamedTuple):
    """What a step computes: what came of its batches, and the gradients of all weights."""

    outcome: Outcome
    gradients: list[Tensor | None]


class _Recorder(TorchDispatchMode):
    """Writes down the operations of its block. given: the tensors that are others whenever they are repeated."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self.graph, self.constants = fx.Graph(), nn.Module()
        self.nodes = WeakTensorKeyDictionary()
        for number, tensor in enumerate(given):
            self.nodes[tensor] = self.graph.placeholder(f"given_{number}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.lift_fresh.default:  # a constant, which what follows may change
            func = torch.ops.aten.lift_fresh_copy.default
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, map_aggregate(args, self._node), map_aggregate(kwargs, self._node))  # type: ignore[arg-type]
        if isinstance(result, Tensor):
            self.nodes[result] = node
            return result
        for number, part in enumerate(result if isinstance(result, (tuple, list)) else [result]):
            if isinstance(part, Tensor):
                self.nodes[part] = self.graph.call_function(operator.getitem, (node, number))
            elif part is not None:
                raise RuntimeError(f"{func} tells Python what it has computed")
        return result

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value not in self.nodes:
            name = f"constant_{len(self.nodes)}"
            self.constants.register_buffer(name, value)
            self.nodes[value] = self.graph.get_attr(name)
        return self.nodes[value]

    def repeating(self, result: Any) -> Callable[..., Any]:
        """Makes a function of the given tensors that repeats the operations. result: what it returns."""
        self.graph.output(map_aggregate(result, self._node))
        return fx.GraphModule(self.constants, self.graph)


class TracedStack(Stack):
    """A stack that repeats the operations of its training steps. together: as of `Stack`."""

    def __init__(self, models: Sequence[Model], trainers: Sequence[pl.Trainer], together: bool):
        super().__init__(models, trainers, together)
        parts = (*models[0].modules(), *chain(*(trainer.callbacks for trainer in trainers)))  # type: ignore[attr-defined]
        self.declined = any(type(part).__module__.partition(".")[0] not in KNOWN for part in parts)
        self.seen: Counter[Any] = Counter()  # steps by kind
        self.kind: Any = None  # of the step that was traced: that of whole batches is the first to be seen so often
        self.step: Callable[..., Any]
        self.compared = False

    def _gradients(self, batch: Batch, noise: Tensor | None, dims: Any) -> Outcome:
        kind = (*(None if t is None else t.shape for t in (*batch[:3], noise)), batch[3:], dims)
        if self.declined or torch.is_anomaly_enabled():
            return super()._gradients(batch, noise, dims)
        if self.kind is None:
            self.seen[kind] += 1
            if self.seen[kind] > WARM_UP:
                return self._trace(kind, batch, noise)
        if kind != self.kind:
            return super()._gradients(batch, noise, dims)
        repeated = self._repeat(batch, noise)
        if self.compared:
            return repeated.outcome
        outcome, self.compared = super()._gradients(batch, noise, dims), True
        if not _same(repeated, self._computed(outcome)):
            self._decline("depends on more than its tensors")
        return outcome

    def _trace(self, kind: Any, batch: Batch, noise: Tensor | None) -> Outcome:
        """Takes a step, and writes its operations down."""
        recorder = _Recorder(self._read(batch, noise))
        try:
            with recorder:
                outcome = super()._gradients(batch, noise, kind[-1])
            self.step, self.kind = recorder.repeating((tuple(outcome), self._computed(outcome).gradients)), kind
        except Exception as error:
            self._decline(f"cannot be traced ({str(error).strip().partition(chr(10))[0]})")
            return super()._gradients(batch, noise, kind[-1])
        return outcome

    @torch.no_grad()
    def _repeat(self, batch: Batch, noise: Tensor | None) -> Computed:
        """Repeats the traced step with the tensors of today."""
        outcome, gradients = self.step(*self._read(batch, noise))
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
        y is None if x is None else y is not None and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        for x, y in zip(*parts, strict=True)
    )
