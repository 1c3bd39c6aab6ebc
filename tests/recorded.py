"""A stand-in for a CUDA graph on the processor: the operations of a function, done again on the same tensors.

As on a GPU, recording leaves everything as it was, what Python computes in between is done once, what a recorded
function returns is overwritten by the next replay, and an operation whose value the host reads is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("aten._local_scalar_dense.default", "aten.nonzero.default")


def storages(tree: Any) -> dict[int, Any]:
    """Memory of the tensors in a tree, by its address."""
    found = (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in found}


class Recorder(TorchDispatchMode):
    """Notes each operation, and what memory held before an operation first used it."""

    def __init__(self, refuse: bool):
        super().__init__()
        self.refuse, self.waits = refuse, 0
        self.operations: list[tuple[Any, tuple, dict, list[tuple[int, torch.Tensor]]]] = []
        self.made: dict[int, Any] = {}
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(func) in WAITING:
            self.waits += 1
            if self.refuse:
                raise RuntimeError("operation not permitted when stream is capturing\nfurther lines")
        for address, storage in storages([args, kwargs]).items():  # not all that write to them say so
            if address not in self.made and address not in self.before:
                self.before[address] = storage, storage.clone()
        result = func(*args, **kwargs)
        given = storages([args, kwargs])
        outputs = [(i, t) for i, t in enumerate(tree_leaves(result)) if isinstance(t, torch.Tensor)]
        fresh = [(i, t) for i, t in outputs if t.untyped_storage()._cdata not in given]
        self.made |= storages(fresh)
        self.operations.append((func, args, kwargs, fresh))
        return result


class RecordedGraph:
    """Has the methods of `vaelab.training.captured.CUDAGraph`."""

    def __init__(self) -> None:
        self.replays = 0

    def warm_up(self, function):
        with Recorder(refuse=False) as recorder:
            result = function()
        return result, "somewhere.py:7" if recorder.waits else None

    def record(self, function):
        state, self.recorder = torch.get_rng_state(), Recorder(refuse=True)
        try:
            with self.recorder:
                self.result = function()
        finally:
            torch.set_rng_state(state)
            for storage, before in self.recorder.before.values():
                storage.copy_(before)
            for storage in self.recorder.made.values():  # nothing was computed
                storage.copy_(storage.clone().fill_(0xFF))

    def replay(self):
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, fresh in self.recorder.operations:
                result = tree_leaves(func(*args, **kwargs))
                for i, place in fresh:
                    place.copy_(result[i])
        return self.result
