"""Draws the figures of codes that are vectors: what each dimension does, where codes lie, what lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.figures import latents, walks
from vaelab.inference import coding, paths
from vaelab.report.scene import ROWS, Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure


REACH, STEPS = 3.0, 11
"""Values of a traversal, from minus to plus REACH, in STEPS pictures."""
SIDE = 15
"""Pictures on a side of the plane of codes."""


def traversals(s: Scene) -> Figure | None:
    layout = s.model.layout
    if layout.dimensions is None:
        return None
    dims, used = s.usage
    dims, values = dims[:ROWS], torch.linspace(-REACH, REACH, STEPS)
    start = coding.codes(s.model, s.few.images[:1], s.one)
    centre, scale, unit = torch.zeros(start.shape[1]), torch.ones(start.shape[1]), walks.PLAIN
    if not layout.standard:  # no prior gives the scale
        centre, scale, unit = s.codes.mean(0), s.codes.std(0, unbiased=False), walks.DEVIATIONS
    made = paths.traverse(s.model, start, dims.tolist(), values, s.one, s.data.pixel_range, scale, centre)
    names = [
        f"{layout.axis(d)}  {used.word} {float(used.values[i]):.2f} {used.unit}".rstrip()
        for i, d in enumerate(dims.tolist())
    ]
    title = f"{len(dims)} of {start.shape[1]} latent dimensions, one at a time"
    return walks.traversals(made, values, names, title, ((start[0] - centre) / scale)[dims], unit)


def manifold(s: Scene) -> Figure | None:
    """Draws decoded codes at even quantiles of the prior; of codes without one, of a normal as wide as they are.

    Two coordinates of a circle are no plane.
    """
    layout = s.model.layout
    if layout.dimensions != 2 or layout.spherical:
        return None
    values = torch.special.ndtri((torch.arange(SIDE) + 0.5) / SIDE)
    grid, unit = torch.cartesian_prod(values, values).flip(1), "N(0, 1)"
    if not layout.standard:
        grid, unit = s.codes.mean(0) + s.codes.std(0, unbiased=False) * grid, "a normal fitted to the codes, in its σ"
    made = coding.decode(s.model, grid, s.one, s.data.pixel_range).unflatten(0, (SIDE, SIDE))
    return walks.manifold(made, values, (layout.axis(0), layout.axis(1)), f"Decoded at even quantiles of {unit}")


def interpolations(s: Scene) -> Figure | None:
    if s.model.layout.dimensions is None:
        return None
    codes, labels = coding.codes(s.model, s.few.images, s.few.labels), s.few.labels
    rows, names = [], []
    for first, second in _pairs(labels, len(codes)):
        label = None if labels is None else labels[first : first + 1]
        ends = s.unit(s.few.images[[first, second]])
        for spherical in (False, True):
            a, b = codes[first], codes[second]
            between = paths.interpolate(s.model, a, b, STEPS, spherical, label, s.data.pixel_range)
            rows.append(torch.cat([ends[:1], between, ends[1:]]))
            names.append("spherical" if spherical else "linear")
    return walks.interpolations(torch.stack(rows), names) if rows else None


def _pairs(labels: Tensor | None, count: int) -> list[tuple[int, int]]:
    """Returns three pairs of images, of two classes where there are some: each with the next of another label."""
    known, left, pairs = [0] * count if labels is None else labels.tolist(), list(range(count)), []
    while len(left) > 1 and len(pairs) < 3:
        first = left.pop(0)
        second = next((i for i in left if known[i] != known[first]), left[0])
        left.remove(second)
        pairs.append((first, second))
    return pairs


def scatter(s: Scene) -> Figure | None:
    if (s.model.layout.dimensions or 0) < 2:
        return None
    points, axes = s.codes, tuple(s.model.layout.axis(i) for i in range(2))
    if s.model.layout.dimensions != 2:
        points, explained = latents.principal_components(s.codes)
        axes = tuple(latents.component(i, explained) for i in range(2))
    values, names = s.many.classes, s.classes
    if values is None and s.many.factors is not None and s.data.factor_sizes:
        values, names = s.many.factors[:, 0], []
    if values is not None and len(values.unique()) > latents.MOST_CLASSES:
        names = ["class"] if s.many.classes is not None else [next(iter(s.data.factor_sizes or ["factor"]))]
    what = "posterior means" if s.posterior.density else "codes"
    return latents.scatter(
        points,
        None if values is None else values.cpu(),
        (axes[0], axes[1]),
        f"{what} of {len(points):,} images",
        names,
    )


def dimensions(s: Scene) -> Figure | None:
    factors = s.posterior.factorised
    if factors is None or s.usage[1].word != "KL":
        return None
    dims, used = s.usage
    variance, kl = s.codes.var(0, unbiased=False), used.values[dims.argsort()]
    return latents.dimensions(kl, variance, factors[1].exp().mean(0).cpu(), len(s.many.images))
