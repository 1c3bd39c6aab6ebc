"""Exact means over images, accumulated on the device without synchronising with the host."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaelab.core.distributed import all_sum


class Means:
    """Running sums of per-batch metrics, weighted by the batches' sizes.

    `update` keeps a batch's metrics as they are, on the device: nothing is computed and nothing
    waits for it. Every `HELD` batches they are folded into sums; `compute` copies one tensor to the
    host.
    """

    HELD = 64

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.vectors: dict[str, Tensor] = {}
        self.count = 0
        self.bad: Tensor | None = None
        self.held: list[tuple[list[Tensor], list[Tensor], int]] = []

    @property
    def empty(self) -> bool:
        """Whether no batch was added."""
        return self.sums is None and not self.held

    def update(self, means: dict[str, Tensor], vectors: dict[str, Tensor], count: int) -> None:
        """Adds the metrics of a batch.

        means: 0-dim tensors, each a mean over the batch, which nobody changes afterwards. vectors:
        tensors summed over the batch. count: images in the batch.
        """
        if self.empty:
            self.names = list(means)
            self.vectors = {name: torch.zeros_like(value, dtype=_wide(value)) for name, value in vectors.items()}
        self.held.append(([m.detach() for m in means.values()], [v.detach() for v in vectors.values()], count))
        if len(self.held) == self.HELD:
            self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        """Adds the held batches to the sums: one stack and one product, whatever their number."""
        if not self.held:
            return
        held, self.held = self.held, []
        rows = torch.stack([m for means, _, _ in held for m in means]).view(len(held), -1)
        rows = rows.to(_wide(rows))
        counts = torch.tensor([count for _, _, count in held], dtype=rows.dtype, pin_memory=rows.is_cuda)
        total = counts.to(rows.device, non_blocking=True) @ rows
        self.sums = total if self.sums is None else self.sums.to(total).add_(total)  # restored sums may lie elsewhere
        bad = ~rows.isfinite()
        first = bad.index_select(0, bad.any(1).int().argmax(0, keepdim=True))[0]
        self.bad = first if self.bad is None else torch.where(self.bad.any(), self.bad, first)
        for i, (name, value) in enumerate(self.vectors.items()):
            rows = torch.stack([vectors[i] for _, vectors, _ in held])
            added = rows.sum(0, dtype=_wide(rows))
            self.vectors[name] = value.to(added).add_(added)
        self.count += sum(count for _, _, count in held)

    def merge(self, other: Means) -> None:
        """Adds all batches that `other` has seen."""
        self._fold()
        other._fold()
        if other.sums is None:
            return
        if self.sums is None:
            self.names, self.sums = other.names, torch.zeros_like(other.sums)
            self.vectors = {name: torch.zeros_like(value) for name, value in other.vectors.items()}
        self.sums = self.sums.to(other.sums).add_(other.sums)  # restored sums may lie elsewhere
        for name, value in other.vectors.items():
            self.vectors[name] = self.vectors[name].to(value).add_(value)
        self.count += other.count

    def compute(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Computes means over all images of all processes, of the metrics and of the vectors (on the CPU)."""
        self._fold()
        if self.sums is None:
            return {}, {}
        packed = [self.sums, *(v.flatten() for v in self.vectors.values()), self.sums.new_tensor([self.count])]
        flat = all_sum(torch.cat(packed)).cpu()
        means = flat[:-1] / flat[-1]
        values = dict(zip(self.names, means.tolist(), strict=False))
        parts = means[len(self.names) :].split([v.numel() for v in self.vectors.values()])
        return values, {n: part.view(v.shape) for (n, v), part in zip(self.vectors.items(), parts, strict=True)}

    def state(self) -> dict[str, Any]:
        """Returns the sums over all processes as tensors and plain data; every process must call it."""
        self._fold()
        if self.sums is None:
            return {"names": [], "sums": None, "vectors": {}, "count": 0}
        vectors = {name: all_sum(value.clone()) for name, value in self.vectors.items()}
        count = int(all_sum(torch.tensor([self.count], device=self.sums.device)).item())
        return {"names": self.names, "sums": all_sum(self.sums.clone()), "vectors": vectors, "count": count}

    def restore(self, state: dict[str, Any], empty: bool = False) -> None:
        """Goes on from a `state`; with `empty` it takes the names alone, so that every process has the same."""
        self.clear()
        self.names, self.sums = state["names"], state["sums"]
        self.vectors, self.count = state["vectors"], state["count"]
        if empty and self.sums is not None:
            self.sums, self.count = torch.zeros_like(self.sums), 0
            self.vectors = {name: torch.zeros_like(value) for name, value in self.vectors.items()}

    def to(self, device: torch.device) -> None:
        """Moves restored sums to `device`, where the processes can add them up."""
        if self.sums is not None:
            wide = _wide(torch.empty(0, device=device))
            self.sums = self.sums.to(device, wide)
            self.vectors = {name: value.to(device, wide) for name, value in self.vectors.items()}

    def first_bad(self) -> list[str]:
        """Names the metrics that were infinite or NaN in the first batch that had one; the loss only if no term was."""
        values = self.compute()[0]
        if self.bad is not None and bool(self.bad.any()):
            bad_names = [name for name, bad in zip(self.names, self.bad.tolist(), strict=True) if bad]
        else:  # it was another process's batch: the means alone show it
            bad_names = [name for name, value in values.items() if not math.isfinite(value)]
        return [name for name in bad_names if name != "loss"] or bad_names


def _wide(x: Tensor) -> torch.dtype:
    """Returns the type that sums of `x` are kept in: float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
