"""Draws the figures of discrete codes, and of priors that were fitted to a model's codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.pixels import to_bytes
from vaelab.datasets.splits import TensorSplit
from vaelab.evaluation.metrics.codes import code_histogram
from vaelab.evaluation.metrics.samples import nearest_neighbours
from vaelab.figures import codebooks, images, latents
from vaelab.inference import coding
from vaelab.nn.quantizers import perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.models import Model
    from vaelab.nn.priors import Prior
    from vaelab.report.scene import Scene

PATCHES, PATCHED = 64, 500
"""Codes whose patch is drawn, of all levels together, and most images whose patches are averaged."""
TEMPERATURES, COLUMNS = (0.5, 0.75, 1.0, 1.25), 10
"""Temperatures of the rows of samples, and samples in each."""
LOSSES, LOGITS = 500, 2**24
"""Most images that the prior's loss is a mean over, and logits that are computed at a time."""
SOUGHT, MOST_BYTES, REAL = 60_000, 2**28, 200
"""Most training images, and bytes of them, that the nearest is sought among; most validation images that are held
beside the samples."""
SEED = 0
"""Seed of the draws."""


def codes(s: Scene) -> Figure | None:
    """Draws how often training images choose each code."""
    if s.model.layout.codes is None:
        return None
    of = f"{len(s.known.images):,} training images"
    if len(s.counts) > 1:
        return codebooks.levels(s.counts, [level.name for level in s.model.layout.levels], of)
    return latents.codebook(s.counts[0], perplexity(s.counts).item(), of)


def code_maps(s: Scene) -> Figure | None:
    """Draws which code is where in some images."""
    layout = s.model.layout
    if layout.codes is None:
        return None
    maps = zip(layout.levels, layout.split(s.codes[:8]), strict=True)
    return images.code_maps(s.unit(s.many.images[:8]), s.made[:8], {x.name: z for x, z in maps}, layout.codes)


def code_levels(s: Scene) -> Figure | None:
    """Draws what is decoded of the first levels of codes alone."""
    layout, x = s.model.layout, s.unit(s.many.images[:8])
    if layout.codes is None or len(layout.levels) == 1:
        return None
    labels = s.many.labels[:8] if s.model.conditional else None
    made = {
        level.name: coding.decode(s.model, s.codes[:8], labels, s.data.pixel_range, number)
        for number, level in enumerate(layout.levels, start=1)
    }
    return images.levels(x, made)


def code_vectors(s: Scene) -> Figure | None:
    """Draws where the code vectors lie, and how often training images choose each."""
    if not s.model.books:
        return None
    levels = zip(s.model.layout.levels, s.model.books, strict=True)
    codes = {level.name: book.vectors for level, book in levels}
    return codebooks.vectors(codes, s.counts, f"{len(s.known.images):,} training images")


def code_patches(s: Scene) -> Figure | None:
    """Draws what is decoded around each of the codes that validation images use most."""
    layout, made = s.model.layout, s.made[:PATCHED]
    if layout.codes is None:
        return None
    most = max(1, PATCHES // len(layout.levels))
    pictures, drawn, used = {}, {}, []
    for level, maps in zip(layout.levels, layout.split(s.codes[:PATCHED]), strict=True):
        counts = code_histogram(maps, layout.codes)
        used.append(int((counts > 0).sum()))
        codes = counts.argsort(descending=True, stable=True)[: min(most, used[-1])]
        pictures[level.name], drawn[level.name] = codebooks.mean_patches(made, maps, codes), codes
    shown = f"the {most} most used codes of each level"
    if len(used) == 1:
        shown = f"the {len(codes)} most used of {used[0]} codes"
    words = f"What is decoded around each code: the mean over {len(made):,} images of all places that have it; {shown}"
    return codebooks.patches(pictures, drawn, words)


def fitted(model: Model) -> Prior | None:
    """The prior that a model's samples are drawn from, if it was fitted afterwards."""
    return model.prior if model.prior is not None and model.prior.fitted else None


def title(model: Model, what: str) -> str | None:
    """Titles samples of a fitted prior, which are drawn as it is; None for a model's own prior. what: they are."""
    prior = fitted(model)
    return f"{what} from {prior.words}, temperature 1{', all codes' * prior.discrete}" if prior else None


def temperatures(s: Scene) -> Figure | None:
    """Draws samples of a fitted prior, a row per temperature: from the same noise and of the same class in a column."""
    prior = fitted(s.model)
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
        f"Samples from {prior.words}: a column from the same noise",
        s.classes or [str(k) for k in range(columns)] if by_class else None,
    )


def nearest(s: Scene) -> Figure | None:
    """Draws samples of a fitted prior above the training images that are nearest to them."""
    if fitted(s.model) is None:
        return None
    made, known = coding.sample(s.model, COLUMNS, None, s.data.pixel_range, SEED), _known(s)
    distances, which = nearest_neighbours(made, known)
    words = f"Samples, and the nearest of {len(known):,} training images with its Euclidean distance, pixels in [0, 1]"
    if len(s.data.val):
        real, _ = nearest_neighbours(s.unit(s.many.images[:REAL]), known)
        words += f"; of {len(real):,} validation images to theirs the median is {real.quantile(0.5).item():.2f}"
    return images.nearest(made, known[which].float() / 255, distances, words)


def _known(s: Scene) -> Tensor:
    """Training images as the model sees them, [N, C, H, W] uint8: all those in memory, within limits, else many."""
    split, count = s.data.train, min(len(s.data.train), SOUGHT, MOST_BYTES // math.prod(s.data.shape))
    if not isinstance(split, TensorSplit):
        return to_bytes(s.unit(s.known.images))
    index = torch.linspace(0, len(split) - 1, count).long().split(1024)
    batches = (s.data.as_model_sees(split.batch(part).to(s.model.device)) for part in index)
    return torch.cat([to_bytes(s.unit(batch.images)) for batch in batches])


def prior_loss(s: Scene) -> Figure | None:
    """Draws what the codes at each position cost under a fitted prior of codes, beside the mean image."""
    prior, layout = fitted(s.model), s.model.layout
    if layout.codes is None or prior is None or not hasattr(prior, "log_probs"):
        return None
    codes, labels = s.codes[:LOSSES], None if s.many.labels is None else s.many.labels[:LOSSES]
    size = max(1, LOGITS // (codes[0].numel() * layout.codes))
    parts = [
        prior.log_probs(part, None if labels is None else labels[start : start + size]).cpu()  # type: ignore[operator]
        for start, part in zip(range(0, len(codes), size), codes.split(size), strict=True)
    ]
    nats = -torch.cat(parts).double().mean(0)
    words = (
        f"{prior.words[0].upper()}{prior.words[1:]}: {nats.mean():.3f} nats per code, {nats.sum():.2f} per image, "
        f"over {len(codes):,} images; all codes alike would be ln K = {math.log(layout.codes):.3f} each"
    )
    levels = zip(layout.levels, layout.split(nats.view(1, *codes.shape[1:])), strict=True)
    losses = {level.name: part[0] for level, part in levels}
    return codebooks.position_losses(s.unit(s.many.images).mean(0), losses, words)
