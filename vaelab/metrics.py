"""Exact means over images, accumulated on the device without synchronising with the host."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaelab.distributed import all_sum


class Means:
    """Running sums of per-batch figures, weighted by the batches' sizes.

    `update` costs a few small kernels and no host sync; `compute` copies one tensor to the host.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.vectors: dict[str, Tensor] = {}
        self.count = 0
        self.bad: Tensor | None = None

    @torch.no_grad()
    def update(self, means: dict[str, Tensor], vectors: dict[str, Tensor], count: int) -> None:
        """Adds a batch.

        means: 0-dim tensors, each a mean over the batch. vectors: tensors summed over the batch.
        count: images in the batch.
        """
        row = torch.stack([value.detach() for value in means.values()]).double()
        if self.sums is None:
            self.names, self.sums = list(means), torch.zeros_like(row)
            self.vectors = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in vectors.items()}
        self.sums = self.sums.to(row.device).add_(row, alpha=count)  # moves after a restore
        for name, value in vectors.items():
            self.vectors[name] = self.vectors[name].to(row.device).add_(value.detach())
        self.count += count
        bad = ~row.isfinite()
        self.bad = bad if self.bad is None else torch.where(self.bad.any(), self.bad, bad)

    def merge(self, other: Means) -> None:
        """Adds all that `other` has seen."""
        if other.sums is None:
            return
        if self.sums is None:
            self.names, self.sums = other.names, torch.zeros_like(other.sums)
            self.vectors = {name: torch.zeros_like(value) for name, value in other.vectors.items()}
        device = other.sums.device
        self.sums = self.sums.to(device).add_(other.sums)  # moves after a restore
        for name, value in other.vectors.items():
            self.vectors[name] = self.vectors[name].to(device).add_(value)
        self.count += other.count

    def compute(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Means over all images of all processes, of the figures and of the vectors (on the CPU)."""
        if self.sums is None:
            return {}, {}
        packed = [self.sums, *(v.flatten() for v in self.vectors.values()), self.sums.new_tensor([self.count])]
        flat = all_sum(torch.cat(packed)).cpu()
        means = flat[:-1] / flat[-1]
        values = dict(zip(self.names, means.tolist(), strict=False))
        parts = means[len(self.names) :].split([v.numel() for v in self.vectors.values()])
        return values, {n: part.view(v.shape) for (n, v), part in zip(self.vectors.items(), parts, strict=True)}

    def state(self) -> dict[str, Any]:
        """All that the processes have added, as tensors and plain data; every process must call it."""
        if self.sums is None:
            return {"names": [], "sums": None, "vectors": {}, "count": 0}
        vectors = {name: all_sum(value.clone()) for name, value in self.vectors.items()}
        count = int(all_sum(torch.tensor([self.count], device=self.sums.device)).item())
        return {"names": self.names, "sums": all_sum(self.sums.clone()), "vectors": vectors, "count": count}

    def restore(self, state: dict[str, Any], empty: bool = False) -> None:
        """Goes on from a `state`; `empty` takes its names alone, so that every process has the same."""
        self.clear()
        self.names, self.sums = state["names"], state["sums"]
        self.vectors, self.count = state["vectors"], state["count"]
        if empty and self.sums is not None:
            self.sums, self.count = torch.zeros_like(self.sums), 0
            self.vectors = {name: torch.zeros_like(value) for name, value in self.vectors.items()}

    def first_bad(self) -> list[str]:
        """Names of the figures that were infinite or NaN in the first batch that had one, terms before their sum."""
        values = self.compute()[0]
        if self.bad is not None and bool(self.bad.any()):
            found = [name for name, bad in zip(self.names, self.bad.tolist(), strict=True) if bad]
        else:  # another process's batch
            found = [name for name, value in values.items() if not math.isfinite(value)]
        return [name for name in found if name != "loss"] or found
