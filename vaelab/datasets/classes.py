"""Classes of a data set: those that are left out, for anomaly detection, and all of them as often in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.datasets.splits import Split


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
        labels = torch.cat([part for part in parts if part is not None])
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
