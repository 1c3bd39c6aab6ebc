"""The order in which the batches of a split come, and the loaders that read them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vaelab.core.batch import Batch
from vaelab.core.distributed import Share
from vaelab.core.errors import UserError
from vaelab.datasets.splits import Split


class Place(NamedTuple):
    """Indices of a batch's images in a split, [B] int64, and what `Batch` says of share and weight."""

    index: Tensor
    share: Share | None
    weight: float


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Draws the order of an epoch's images, [size] int64: a function of its arguments alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)


def batch_bounds(size: int, batch_size: int, world_size: int) -> list[tuple[int, int]]:
    """Computes where each global batch of an epoch starts and ends.

    A global batch holds `batch_size` images per process. A remainder too small to give every
    process two images (a batch norm needs two) joins the batch before it, so each image is seen
    exactly once.
    """
    step = batch_size * world_size
    bounds = [(start, min(start + step, size)) for start in range(0, size, step)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < 2 * world_size:
        bounds[-2:] = [(bounds[-2][0], size)]
    return bounds


def rank_slice(start: int, stop: int, rank: int, world_size: int) -> slice:
    """Computes the part of a global batch that belongs to `rank`; parts differ by at most one image."""
    size = stop - start
    return slice(start + size * rank // world_size, start + size * (rank + 1) // world_size)


class IndexBatches(Sampler[Place]):
    """Sampler of one process: gives the place of each batch of an epoch.

    order: called at the start of every pass; gives the epoch's order, [N] int64, and the number
    of batches already done (not zero after a resume in the middle of an epoch). steps: called likewise; gives
    the number of batches in an optimiser step, and of those in the epoch, the last step of which may have fewer.
    """

    def __init__(
        self,
        order: Callable[[], tuple[Tensor, int]],
        size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        steps: Callable[[], tuple[int, int]] | None = None,
    ):
        self.steps = steps
        self.order, self.size, self.batch_size = order, size, batch_size
        self.rank, self.world_size = rank, world_size
        self.bounds = self.next_bounds = self.whole = batch_bounds(size, batch_size, world_size)

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[Place]:
        order, begin = self.order()
        self.bounds, self.next_bounds = self.next_bounds, self.whole
        each, count = self.steps() if self.steps else (1, 0)
        for number in range(begin, len(self.bounds)):
            start, stop = self.bounds[number]
            part = rank_slice(start, stop, self.rank, self.world_size)
            share = Share(part.start - start, part.stop - part.start, stop - start, self.world_size)
            weight = 1.0 if each == 1 else self._weight(number, each, count)
            yield Place(order[part], share if self.world_size > 1 else None, weight)

    def _weight(self, number: int, each: int, count: int) -> float:
        """Weight of a batch's mean loss in a step of `each` batches, whose losses are summed and divided by `each`."""
        first = number - number % each
        step = self.bounds[first : max(min(first + each, count), number + 1)]
        start, stop = self.bounds[number]
        return (stop - start) * each / sum(end - begin for begin, end in step)

    def go_on_after(self, images: int) -> int:
        """Cuts the next pass anew after an epoch's first `images`; returns which of its batches comes next.

        The first images may have been seen in batches of another size, by another number of processes.
        """
        rest = batch_bounds(self.size - images, self.batch_size, self.world_size)
        done = len(self.whole) - len(rest)
        self.next_bounds = self.whole[:done] + [(start + images, stop + images) for start, stop in rest]
        return done


class Newest:
    """Keeps the newest result of each kind, for runs of one process that go through the same data side by side."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Any, Any]] = {}

    def of(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what was made for this key, if that was the last of its kind, or makes it."""
        if kind not in self.kept or self.kept[kind][0] != key:
            self.kept[kind] = key, make()
        return self.kept[kind][1]


class ResidentLoader:
    """Loader of a split that needs no workers: a gather, or a drawing, of some batches at a time.

    seen: makes of stored images what the model sees; None leaves them as they are. ahead: batches that are read at
    once. newest: keeps what was read last for others that ask for the same.
    """

    def __init__(
        self,
        split: Split,
        batches: IndexBatches,
        seen: Callable[[Batch], Batch] | None = None,
        ahead: int = 1,
        newest: Newest | None = None,
    ):
        self.split, self.batches, self.seen, self.ahead, self.newest = split, batches, seen, ahead, newest

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        places = iter(self.batches)
        while some := list(itertools.islice(places, self.ahead)):
            for batch, place in zip(self._read([place.index for place in some]), some, strict=True):
                yield batch._replace(share=place.share, weight=place.weight)

    def _read(self, indices: list[Tensor]) -> list[Batch]:
        if self.newest is None:
            return self._gathered(indices)
        # the indices are kept, too: while they are, no others lie in their place
        key = [(index.data_ptr(), len(index)) for index in indices]
        return self.newest.of("batches", key, lambda: (self._gathered(indices), indices))[0]

    def _gathered(self, indices: list[Tensor]) -> list[Batch]:
        whole = self.split.batch(indices[0] if len(indices) == 1 else torch.cat(indices))
        if self.seen is not None:
            whole = self.seen(whole)
        if len(indices) == 1:
            return [whole]
        sizes = [len(index) for index in indices]
        parts = ([None] * len(sizes) if part is None else part.split(sizes) for part in whole[:3])
        return [Batch(*of_batch, *whole[3:]) for of_batch in zip(*parts, strict=True)]  # type: ignore[arg-type]


class _BatchDataset(Dataset[Batch | UserError]):
    """A split seen as a data set whose items are whole batches, or the error of a file."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, place: Place) -> Batch | UserError:  # type: ignore[override]
        try:
            return self.split.batch(place.index)._replace(share=place.share, weight=place.weight)
        except UserError as error:
            return error


class _StreamingLoader(DataLoader):
    """Loader that raises a worker's UserError as it is: a DataLoader would make a page of tracebacks of it."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def streaming_loader(split: Split, batches: IndexBatches, num_workers: int, pin_memory: bool) -> DataLoader:
    """Makes a loader whose worker processes read batches ahead, for a split that does not fit the memory.

    The loader has a random generator of its own: the global one stays untouched, so that a
    resumed run draws the same noise.
    """
    return _StreamingLoader(
        _BatchDataset(split),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(0),
    )


def free_memory(device: torch.device) -> int:
    """Returns the bytes of memory that a device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
