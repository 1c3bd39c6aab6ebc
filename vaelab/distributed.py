"""Sums and means over all processes of a run; without a process group they change nothing."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, in place."""
    if active():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The first process's `x`, in place."""
    if active():
        dist.broadcast(x, 0)
    return x


def global_mean(mean: Tensor) -> Tensor:
    """The mean over all processes of a batch mean, with this process's gradient.

    The gradients of all processes are averaged afterwards (DDP), so that a function of the global
    mean gets its exact gradient: d f(m) = f'(m) * average of d m_rank.
    """
    if not active():
        return mean
    total = all_sum(mean.detach().clone()) / dist.get_world_size()
    return mean + (total - mean.detach())
