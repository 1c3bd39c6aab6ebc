"""Classes of a data set: left out, for anomaly detection; each as often in training; known of some images only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab.core.batch import Batch, Labelled
from vaelab.core.errors import UserError
from vaelab.datasets.splits import Split

EVERY = 8
"""How many images of an epoch have one with a label among them, where fewer of the data have one."""


def without(
    parts: tuple[Split, Split], classes: Sequence[int | str], names: list[str] | None
) -> tuple[tuple[Split, Split], Split]:
    """Takes classes out of the training and the test images. Returns the rest of both, and the test images taken out.

    classes: by name or number. names: of all classes, None where there are none. Raises UserError for a class that is
    not there, or if no image is left.
    """
    gone = torch.tensor(_numbers(classes, names))
    kept, out = [], parts[1]
    for split in parts:
        leaves = torch.isin(labels_of(split), gone)
        kept.append(split.subset((~leaves).nonzero().flatten()))
        out = split.subset(leaves.nonzero().flatten())
    if not len(kept[0]) or not len(kept[1]):
        raise UserError(f"dataset.leave_out={list(classes)}: no image is left to train on, or to test with")
    return (kept[0], kept[1]), out


def _numbers(classes: Sequence[int | str], names: list[str] | None) -> list[int]:
    """Returns the labels of classes; a name that looks like a number counts before the number."""
    if names is None:
        raise UserError(f"dataset.leave_out={list(classes)}: these data have no classes: take the key away")
    numbers = [names.index(str(c)) if str(c) in names else c for c in classes]
    known = [c for c in numbers if isinstance(c, int) and c < len(names)]
    if len(known) < len(classes) or not classes:
        shown = ", ".join(names[:20]) + ", …" * (len(names) > 20)
        raise UserError(f"dataset.leave_out={list(classes)}: give classes by name or number: {shown}")
    return known


def labels_of(split: Split) -> Tensor:
    """Returns the labels of a whole split, [N] int64 on the processor; images are read only if they must be."""
    labels = getattr(split, "labels", None)
    if labels is None:
        parts = [split.batch(part).labels for part in torch.arange(len(split)).split(256)]
        labels = torch.cat([part for part in parts if part is not None] or [torch.empty(0, dtype=torch.int64)])
    return labels.cpu()


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Draws the order of an epoch of as many images as there are, in which every class comes as often as any other.

    The images of a class take turns: none comes again before all others of it have. labels: [N]. Returns indices,
    [N] int64, as a function of the arguments alone.
    """
    dice = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    classes = labels.unique()
    quotas = torch.full((len(classes),), len(labels) // len(classes))
    quotas[torch.randperm(len(classes), generator=dice)[: len(labels) % len(classes)]] += 1
    parts = []
    for label, quota in zip(classes, quotas.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        rounds = [members[torch.randperm(len(members), generator=dice)] for _ in range(-(-quota // len(members)))]
        parts += [torch.cat(rounds)[:quota]] if rounds else []
    return torch.cat(parts)[torch.randperm(len(labels), generator=dice)]


def chosen(labels: Tensor, count: int, seed: int) -> Tensor:
    """Chooses `count` images at random, as many of each class, whose labels are known: [N] bool.

    labels: [N]. What is left over goes to classes by chance. Raises UserError where a class has too few images, or
    there are fewer than classes.
    """
    classes, sizes = labels.unique(return_counts=True)
    dice = torch.Generator().manual_seed(seed)
    quotas = torch.full((len(classes),), count // len(classes))
    quotas[torch.randperm(len(classes), generator=dice)[: count % len(classes)]] += 1
    if count < len(classes) or (quotas > sizes).any():
        least, most = len(classes), int(sizes.min()) * len(classes)
        raise UserError(f"dataset.labelled={count}: as many of each class can be {least} to {most} images")
    known = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in zip(classes, quotas.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        known[members[torch.randperm(len(members), generator=dice)[:quota]]] = True
    return known


def shares(known: Tensor) -> Labelled:
    """Returns which part of an epoch's places, and of the images, have a label. known: [N] bool."""
    count = int(known.sum())
    return Labelled(max(count, -(-len(known) // EVERY)) / len(known), count / len(known))


def mixed_order(known: Tensor, seed: int, epoch: int) -> Tensor:
    """Draws the order of an epoch of as many images as there are, with those that have a label evenly among them.

    They are one in `EVERY`, or as many as there are if that is more, and take turns; of the others, some wait for
    another epoch. known: [N] bool. Returns indices, [N] int64, as a function of the arguments alone.
    """
    dice = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    size, (with_label, without) = len(known), (part.nonzero().flatten() for part in (known, ~known))
    count = round(shares(known).places * size)
    rounds = -(-count // len(with_label))
    turns = [with_label[torch.randperm(len(with_label), generator=dice)] for _ in range(rounds)]
    places = torch.zeros(size, dtype=torch.bool)
    places[torch.arange(count) * size // count] = True
    order = torch.empty(size, dtype=torch.int64)
    order[places] = torch.cat(turns)[:count]
    order[~places] = without[torch.randperm(len(without), generator=dice)[: size - count]]
    return order


class PartlyLabelled:
    """A view of a split that gives the label -1 to the images whose label is not known. known: [N] bool."""

    def __init__(self, split: Split, known: Tensor):
        self.split, self.known, self.shares = split, known, shares(known)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.split.shape

    @property
    def nbytes(self) -> int:
        return self.split.nbytes

    def __len__(self) -> int:
        return len(self.split)

    def subset(self, index: Tensor) -> PartlyLabelled:
        return PartlyLabelled(self.split.subset(index), self.known[index.to(self.known.device)])

    def batch(self, index: Tensor) -> Batch:
        batch = self.split.batch(index)
        assert batch.labels is not None
        known = self.known[index.to(self.known.device)].to(batch.labels.device)
        return batch._replace(labels=batch.labels.where(known, -1), labelled=self.shares)

    def to(self, device: torch.device) -> PartlyLabelled:
        return PartlyLabelled(self.split.to(device), self.known.to(device))


def told(split: Split, known: Tensor | None, device: torch.device | str = "cpu") -> Split:
    """Returns a split as training sees it: without the labels of images that are not `known`, [N] bool; None: all."""
    return split if known is None else PartlyLabelled(split, known.to(device))
