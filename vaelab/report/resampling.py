"""Computes for the explorer which codes a position may have given all others, under a fitted prior over codes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.inference.batches import evaluating
from vaelab.nn.priors.autoregressive import Autoregressive

if TYPE_CHECKING:
    from vaelab.models import Model

CANDIDATES, SHOWN = 16, 8
"""Codes that are compared at each position, and those of them that are told."""
SECONDS, TRIED = 4.0, 8
"""Seconds that all maps may take together, and positions of the first that are tried to tell how long one takes."""
Choices = list[list[tuple[int, float]]]
"""For each of some positions of a map the most probable codes there and their probabilities, from the greatest on."""


def choices(model: Model, maps: Tensor, labels: Tensor | None, positions: Sequence[int]) -> list[Choices]:
    """Finds the most probable codes of some positions given all other codes, those of other levels too.

    Of as many of the first maps as SECONDS allow, none without a fitted prior over codes. maps: [N, *layout.shape].
    labels: [N], or None. positions: counted along a flattened map.
    """
    prior = model.prior
    if not isinstance(prior, Autoregressive):
        return []
    given = [None] * len(maps) if labels is None or prior.classes is None else list(labels.split(1))
    at = torch.tensor(positions, device=prior.place.device)
    maps = maps.to(at.device)
    with evaluating(prior):
        started, tried = time.perf_counter(), at[:TRIED]
        _choices(prior, maps[0], given[0], tried)
        each = (time.perf_counter() - started) * len(at) / len(tried)
        few = int(SECONDS / each)
        return [_choices(prior, z, y, at) for z, y in zip(maps[:few], given[:few], strict=True)]


def _choices(prior: Autoregressive, z: Tensor, label: Tensor | None, positions: Tensor) -> Choices:
    """Does that for one map, [*layout.shape]. label: [1], of a prior that is told it. positions: [P].

    p(z_i | all others) is p(z) over its sum over all codes at i. Of these the sum takes the CANDIDATES most probable
    ones given the codes before, the map's own among them: what only the codes after make probable is left out.
    """
    flat, size = z.flatten(), z.numel()
    label = None if label is None else label.to(z.device)
    found = prior.logits(flat[None], label)[0, positions].topk(min(CANDIDATES, prior.codes), 1).indices  # [P, C]
    own = flat[positions]
    missing = (found != own[:, None]).all(1)
    found[missing, -1] = own[missing]
    place = positions[:, None, None].expand(*found.shape, 1)
    changed = flat.expand(*found.shape, size).scatter(2, place, found[:, :, None])
    told = None if label is None else label.expand(found.numel())
    log_p = prior.log_prob(changed.reshape(-1, *z.shape), told).view(found.shape)
    best = log_p.softmax(1).topk(min(SHOWN, found.shape[1]), 1)
    codes = found.gather(1, best.indices).tolist()
    return [list(zip(*pair, strict=True)) for pair in zip(codes, best.values.tolist(), strict=True)]
