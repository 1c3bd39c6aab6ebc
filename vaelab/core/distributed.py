"""Sums, means and random rows over all processes of a run; without a process group they change nothing.

Several processes train as one would on all their images: each knows its share of the global batch,
which the loader tells it, so that nothing has to be asked of the others or of the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Share(NamedTuple):
    """A process's part of a global batch.

    offset: images that belong to the processes before this one. count: images of this process. total: images of
    all processes. processes: their number.
    """

    offset: int
    count: int
    total: int
    processes: int

    @property
    def weight(self) -> float:
        """Weight of this process's mean in the average over processes: 1 where all have as many images."""
        return self.processes * self.count / self.total


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, sums are over this process's own images: the other processes are not there to answer."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def active() -> bool:
    """Whether several processes train together."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sum(x: Tensor) -> Tensor:
    """Sums `x` over all processes, in place, and returns it."""
    if active():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """Replaces `x` by the first process's, in place, and returns it."""
    if active():
        dist.broadcast(x, 0)
    return x


def global_mean(mean: Tensor, share: Share | None) -> Tensor:
    """Returns the mean over the images of all processes, with the gradient of this process's `mean`.

    Its value is the same on all. mean: over this process's images. share: None where it has them
    all. The loss is weighted with `share.weight` and DDP averages the gradients, so that a function f
    of the global mean m gets its exact gradient: f'(m) times the weighted average of d m_rank.
    """
    if share is None:
        return mean
    total = all_sum(mean.detach() * (share.weight / share.processes))
    return total + (mean - mean.detach())


def all_rows(x: Tensor, share: Share | None) -> Tensor:
    """Returns the rows of all processes, [total, ...], in the global batch's order, with the gradient of one's own.

    A function f of them has the same value on all processes. The gradient of this process's rows is scaled so that
    what `global_mean` says of the mean holds of f: weighted and averaged, it is exact. x: [count, ...]. share: None
    where the process has them all.
    """
    if share is None:
        return x
    start, end = share.offset, share.offset + share.count
    rows = x.new_zeros(share.total, *x.shape[1:])
    rows[start:end] = x.detach()
    all_sum(rows)
    mine = x.detach() + (x - x.detach()) * (share.total / share.count)
    return torch.cat([rows[:start], mine, rows[end:]])


def random_rows(x: Tensor, count: int, share: Share | None) -> Tensor:
    """Draws `count` random rows of all processes' `x`, [N, D] on each: returns [count, D], the same everywhere.

    They are the rows that one process with all images would take: the first process's random
    numbers count them through the global batch. share: this process's part of the images that
    `x` was made of, each of which gives the same number of rows; None where this process has them all.
    """
    if share is None:
        return x[torch.randint(len(x), (count,), device=x.device)]
    per_image = len(x) // share.count
    rows = from_first(torch.randint(per_image * share.total, (count,), device=x.device))
    rows = rows - per_image * share.offset
    mine = (rows >= 0) & (rows < len(x))
    return all_sum(torch.where(mine[:, None], x[rows.clamp(0, len(x) - 1)], x.new_zeros(())))
