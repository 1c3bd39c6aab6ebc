"""Draws the figures of discrete codes, and of priors that were fitted to a model's codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vaelab.evaluation.metrics.codes import code_histogram
from vaelab.figures import codebooks, images
from vaelab.inference import coding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.nn.priors import Prior
    from vaelab.report.gallery import Scene

PATCHES, PATCHED = 64, 500
"""Codes whose patch is drawn, and most images whose patches are averaged."""
TEMPERATURES, COLUMNS = (0.5, 0.75, 1.0, 1.25), 10
"""Temperatures of the rows of samples, and samples in each."""
LOSSES, LOGITS = 500, 2**24
"""Most images that the prior's loss is a mean over, and logits that are computed at a time."""
SEED = 0
"""Seed of the draws."""


def code_vectors(s: Scene) -> Figure | None:
    """Draws where the code vectors lie, and how often training images choose each."""
    if s.codebook is None:
        return None
    return codebooks.vectors(s.codebook.vectors, s.counts[0], f"{len(s.known.images):,} training images")


def code_patches(s: Scene) -> Figure | None:
    """Draws what is decoded around each of the codes that validation images use most."""
    if s.codebook is None:
        return None
    made, maps = s.made[:PATCHED], s.codes[:PATCHED]
    counts = code_histogram(maps, s.codebook.num_embeddings)
    codes = counts.argsort(descending=True, stable=True)[: min(PATCHES, int((counts > 0).sum()))]
    title = (
        f"What is decoded around each code: the mean over {len(maps):,} images of all places that have it; "
        f"the {len(codes)} most used of {int((counts > 0).sum())} codes"
    )
    return codebooks.patches(codebooks.mean_patches(made, maps, codes), codes, title)


def _fitted(s: Scene) -> Prior | None:
    """The prior that samples are drawn from, if it was fitted afterwards."""
    return s.model.prior if s.model.prior is not None and s.model.prior.afterwards else None


def temperatures(s: Scene) -> Figure | None:
    """Draws samples of a fitted prior, a row per temperature: from the same noise and of the same class in a column."""
    prior = _fitted(s)
    if prior is None:
        return None
    by_class = s.model.by_class and s.model.classes <= 2 * COLUMNS
    columns = s.model.classes if by_class else COLUMNS
    labels = s.model.in_turn(columns)
    rows = []
    for temperature in TEMPERATURES:
        z = prior.sample(columns, labels, torch.Generator().manual_seed(SEED), temperature)
        rows.append(coding.decode(s.model, z, labels, s.data.pixel_range))
    return images.classes(
        torch.stack(rows),
        [f"temperature {temperature:g}" for temperature in TEMPERATURES],
        f"Samples from {prior.words}: each column from the same noise",
        s.classes or [str(k) for k in range(columns)] if by_class else None,
    )


def prior_loss(s: Scene) -> Figure | None:
    """Draws what the codes at each position cost under a fitted prior of codes, beside the mean image."""
    prior = _fitted(s)
    if s.codebook is None or prior is None or not hasattr(prior, "log_probs"):
        return None
    maps, labels = s.codes[:LOSSES], None if s.many.labels is None else s.many.labels[:LOSSES]
    size = max(1, LOGITS // (maps[0].numel() * s.codebook.num_embeddings))
    parts = [
        prior.log_probs(part, None if labels is None else labels[start : start + size]).cpu()  # type: ignore[operator]
        for start, part in zip(range(0, len(maps), size), maps.split(size), strict=True)
    ]
    nats = -torch.cat(parts).double().mean(0).view(maps.shape[1:])
    title = (
        f"{prior.words[0].upper()}{prior.words[1:]}: {nats.mean():.3f} nats per code, {nats.sum():.2f} per image, "
        f"over {len(maps):,} images; all codes alike would be ln K = {math.log(s.codebook.num_embeddings):.3f} each"
    )
    return codebooks.position_losses(s.unit(s.many.images).mean(0), nats, title)
