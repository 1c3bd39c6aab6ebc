"""Measures generated images against real ones: distances between distributions, and to the nearest image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.pixels import to_unit
from vaelab.core.randomness import seed_of, seeded
from vaelab.inference.batches import batch_size, evaluating

if TYPE_CHECKING:
    from vaelab.models import Model

MEMORY = 2**26
"""Bytes of distances or images that a search holds at a time."""
ROUNDING = 1e-12
"""Fraction of the largest squared norm that two equal squared distances may differ by in float64."""


def generate(
    model: Model, count: int, labels: Tensor | None, pixel_range: tuple[float, float], binary: bool, seed: int
) -> Iterator[Tensor]:
    """Yields images of draws from the prior, in batches: `count` of [C, H, W] in [0, 1], on the model's device.

    labels: [count], of a conditional model, best those of the images to compare with; None for every
    class in turn, anew in each batch. pixel_range, binary: of the data; see `as_data`. The images
    depend on the arguments alone: global random state and the model's mode are untouched. Raises
    UserError if the model has no prior.
    """
    size = batch_size(model.shape)
    for number, start in enumerate(range(0, count, size)):
        part = slice(start, min(start + size, count))
        with evaluating(model), seeded(seed_of(seed, number), model.device):
            wanted = None if labels is None else labels[part].to(model.device)
            images = as_data(model.sample(part.stop - part.start, wanted), pixel_range, binary)
        yield images


def as_data(means: Tensor, pixel_range: tuple[float, float], binary: bool) -> Tensor:
    """Turns mean images E[x|z] of a model into images in [0, 1] of the data's kind; any shape.

    Grey data: the means themselves, as is usual, although a draw from p(x|z) would be noisier. Binary
    data: each pixel is drawn with its mean as probability, which is p(x|z) of a Bernoulli likelihood;
    a grey mean would be unlike all data whatever the model. Draws from the global generators.
    Raises ValueError for means that are not finite.
    """
    images = to_unit(means, pixel_range)
    if not images.isfinite().all():
        raise ValueError("pixels of the model's images are NaN or infinite")
    return torch.bernoulli(images) if binary else images


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Computes the squared Fréchet distance between normal distributions with the moments of `a` and of `b`.

    a: [N, F], b: [M, F], features of images. Heusel et al. 2017, eq. 6:
    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64, S with N - 1 in the denominator.
    The trace of the root is computed as the sum of the singular values of S_a^(1/2) S_b^(1/2), which
    is the same and exists for singular covariances.

    Deviation: with a judge's features this is no FID, whose features are Inception's. It can be
    compared between models only where the judge (data set, seed) and the numbers of images are the
    same. It is biased upwards, by tr(S_a) / N + tr(S_b) / M for the means alone: compare it with that of
    two sets of real images of these sizes.
    Raises ValueError for transposed or non-finite features, or for no more images than features.
    """
    a, b = _features(a, "a"), _features(b, "b")
    _check_same_width(a, b)
    root_a, root_b = _symmetric_root(_covariance(a)), _symmetric_root(_covariance(b))
    means = (a.mean(0) - b.mean(0)).square().sum()
    traces = root_a.square().sum() + root_b.square().sum()  # tr(S) = |S^(1/2)|^2
    overlap = torch.linalg.svdvals(root_a @ root_b).sum()
    return max((means + traces - 2 * overlap).item(), 0.0)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _symmetric_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), each in [0, 1].

    real: [N, F], generated: [M, F], features of images; the paper takes N = M. Precision is the share
    of generated images within a ball around some real image that reaches to its k-th nearest real
    neighbour: what is generated looks real. Recall is the same with the sets exchanged: what is real
    is generated. Not 1 for two halves of one set: that is the level to compare with.

    Deviations: the features are the judge's, not VGG-16's; all images are used, without resampling.
    Memory does not depend on N and M. Raises ValueError like `frechet_distance`.
    """
    real, generated = _features(real, "real"), _features(generated, "generated")
    _check_same_width(real, generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(f"k must be from 1 to less than the number of images, got {k}")
    centre = real.mean(0)  # smaller norms, smaller rounding errors
    real, generated = real - centre, generated - centre
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Computes the share of points within the ball of any centre, whose radius is its k-th neighbour's distance."""
    rows = max(1, MEMORY // (8 * len(centres)))
    # the smallest of the k + 1 is the centre itself
    radii = torch.cat([_squared(part, centres).topk(k + 1, largest=False).values[:, k] for part in centres.split(rows)])
    radii += ROUNDING * max(points.square().sum(1).max(), centres.square().sum(1).max())
    inside = sum((_squared(part, centres) <= radii).any(1).sum() for part in points.split(rows))
    return float(inside / len(points))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Computes squared distances, [A, F], [B, F] -> [A, B]."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True))


def nearest_neighbours(queries: Tensor, references: Tensor, memory: int = MEMORY) -> tuple[Tensor, Tensor]:
    """Finds each query's nearest reference: the Euclidean distance to it, [M] float32, and its index, [M].

    queries: [M, ...], references: [N, ...] of the same further shape: images, in any one range; uint8
    counts as value / 255. Both are taken in chunks, of `memory` bytes in all. The search is by float32
    products, so that of two references equally near to 1e-3 either may be taken; the distance to the
    one taken is computed from the difference, and is exactly 0 for a copy if there is one.
    Raises ValueError for other shapes or an empty set.
    """
    if queries.ndim < 2 or queries.shape[1:] != references.shape[1:] or not len(queries) or not len(references):
        raise ValueError(
            f"queries {list(queries.shape)} and references {list(references.shape)} must be images of one shape"
        )
    values = queries[0].numel()
    chunk = max(1, memory // (3 * 4 * values))
    rows = max(1, min(chunk, memory // (3 * 4 * min(chunk, len(references)))))
    best = torch.full((len(queries),), torch.inf, device=queries.device)
    which = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in _bar(range(0, len(references), chunk)):
        part = _flat(references[start : start + chunk]).to(queries.device)
        norms = part.square().sum(1)
        for first in range(0, len(queries), rows):
            now = slice(first, first + rows)
            # squared distances less |query|^2, which is the same for all references
            value, index = torch.addmm(norms, _flat(queries[now]), part.T, alpha=-2).min(1)
            closer = value < best[now]
            best[now] = torch.where(closer, value, best[now])
            which[now] = torch.where(closer, index + start, which[now])
    pairs = zip(queries.split(chunk), which.split(chunk), strict=True)
    distances = [(_flat(x) - _flat(references[i.to(references.device)]).to(x.device)).norm(dim=1) for x, i in pairs]
    return torch.cat(distances), which


def memorisation_ratio(generated: Tensor, unseen: Tensor) -> float:
    """Computes the median distance of generated images to training images, over that of unseen real images.

    generated: [M], unseen: [T], from `nearest_neighbours` with the same training images; unseen: of
    test images. At 1 a generated image is as far from the training images as a new real one is. Below
    1 it is closer than it should be; near 0 training images are copied. The comparison is that of
    Meehan, Chaudhuri & Dasgupta 2020, by medians in pixel space instead of ranks in cells.

    Blur lowers it too: a smooth image is closer to most images than a sharp one is, so that a value not
    far below 1 is no sign of copying where pictures are soft. Raises ValueError if the unseen images
    are copies themselves, or for NaN or no distances.
    """
    medians = []
    for name, distances in (("generated", generated), ("unseen", unseen)):
        if distances.ndim != 1 or not len(distances) or not distances.isfinite().all():
            raise ValueError(f"{name} must be finite distances [N], got {list(distances.shape)}")
        medians.append(distances.double().cpu().quantile(0.5).item())
    if medians[1] == 0:
        raise ValueError("unseen: at least half of these images are among the training images")
    return medians[0] / medians[1]


def _bar(chunks: range) -> Iterator[int]:
    from tqdm import tqdm

    yield from tqdm(chunks, desc="nearest training images", unit="chunk", delay=2, leave=False, disable=None)


def _flat(images: Tensor) -> Tensor:
    floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return floats.flatten(1)


def _features(features: Tensor, name: str) -> Tensor:
    """Returns features in float64 on the processor, which is the only device that always has it."""
    features = torch.as_tensor(features).detach().cpu().double()
    if features.ndim != 2 or len(features) <= features.shape[1]:
        raise ValueError(f"{name} must be [N, F] with more images N than features F, got {list(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"{name}: {int((~features.isfinite()).any(1).sum())} of {len(features)} rows are not finite")
    return features


def _check_same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sets need the same features, got {list(a.shape)} and {list(b.shape)}")
