"""Draws every figure of a run: takes from model and data the arrays that `vaelab.figures` draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vaelab import runs
from vaelab.core.randomness import seeded
from vaelab.figures import anomalies, codebooks, curves, images, latents, tables
from vaelab.inference import coding
from vaelab.inference.batches import evaluating
from vaelab.nn.likelihoods.columns import decode, spans
from vaelab.report import continuous, discrete
from vaelab.report.scene import FEW, ROWS, SEED, Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

BINS = 32
"""Bins of the histograms of pixels."""


def draw(
    model: Model, data: ImageData, count: int = FEW, names: Iterable[str] | None = None
) -> Iterator[tuple[str, Figure]]:
    """Draws the figures of a model, one by one with their names: all that apply, or those named.

    The model's mode and the global random state are left as they were, between two figures, too.
    """
    scene = Scene(model, data, count)
    for name in FIGURES if names is None else names:
        if name in OF_PICTURES and not scene.pictures:
            continue
        with evaluating(model), seeded(SEED, model.device):
            figure = FIGURES[name](scene)
        if figure is not None:
            yield name, figure


def draw_curves(run: Path, rows: list[dict[str, float]]) -> Iterator[tuple[str, Figure]]:
    """Draws the curves of a run, from the rows of metrics.csv and the vectors of its epochs, if there are any."""
    if any("epoch" in row for row in rows):
        yield "curves", curves.training(rows)
        scheduled = curves.scheduled(rows)
        if scheduled is not None:
            yield "schedule", scheduled
    epochs, kl = runs.read_vectors(run, "kl_per_dim")
    if len(epochs) > 1:
        yield "kl_per_dim", latents.kl_per_dimension(torch.tensor(epochs), torch.tensor(kl[""], dtype=torch.float64))
    epochs, counts = runs.read_vectors(run, "code_counts")
    if len(epochs) > 1:
        by_level = {level: torch.tensor(rows, dtype=torch.float64) for level, rows in counts.items()}
        yield "code_usage", codebooks.usage(torch.tensor(epochs), by_level)


def draw_evaluated(run: Path) -> Iterator[tuple[str, Figure]]:
    """Draws what only an evaluation knows of a run: the ROC curves of its anomalies, if it has any."""
    evaluation = runs.read_evaluation(run, "test")
    start, metrics = "anomaly/roc_", evaluation.get("figures", {})
    curves = {n.removeprefix(start): v for n, v in evaluation.get("vectors", {}).items() if n.startswith(start)}
    if curves:
        areas = {n: (metrics[f"anomaly/auroc_{n}"], metrics[f"anomaly/auroc_{n}_se"]) for n in curves}
        count = f"{metrics['anomaly/images']:,.0f} anomalies, {evaluation['images']:,} own images"
        yield "roc", anomalies.roc(curves, areas, f"ROC: {count}")


# --- one function per figure ------------------------------------------------------------------


def _reconstructions(s: Scene) -> Figure:
    made = coding.decode(s.model, coding.codes(s.model, s.few.images, s.few.labels), s.few.labels, s.data.pixel_range)
    return images.reconstructions(s.unit(s.few.images), made)


def _errors(s: Scene) -> Figure:
    return images.errors((s.unit(s.many.images) - s.made).square().flatten(1).mean(1))


def _samples(s: Scene) -> Figure | None:
    if s.model.prior is None:
        return None
    drawn = coding.sample(s.model, 2 * s.count, None, s.data.pixel_range, SEED)
    return images.samples(drawn, title=discrete.title(s.model, "Samples"))


def _real_and_generated(s: Scene) -> Figure | None:
    if s.model.prior is None:
        return None
    labels = s.few.labels if s.model.told else None  # the same labels on both sides
    generated = coding.sample(s.model, len(s.few.images), labels, s.data.pixel_range, SEED)
    title = discrete.title(s.model, "Real images, and samples")
    return images.real_and_generated(s.unit(s.few.images), generated, title=title)


def _classes(s: Scene) -> Figure | None:
    if not s.model.by_class or s.model.prior is None or s.model.num_classes is None:
        return None
    shown, columns = min(s.model.num_classes, ROWS), 10 if discrete.fitted(s.model) is None else 16
    labels = torch.arange(shown).repeat_interleave(columns)
    if s.model.prior.classes is None:
        z = torch.cat([*coding.draws(s.model, columns, SEED)] * shown)  # a draw per column
    else:
        z = torch.cat([*coding.draws(s.model, len(labels), SEED, labels=labels)])
    made = coding.decode(s.model, z, labels, s.data.pixel_range)
    title = discrete.title(s.model, "Samples of each class")
    return images.classes(made.unflatten(0, (shown, columns)), s.classes[:shown], title)


def _levels(s: Scene) -> Figure | None:
    levels, columns, rows = s.model.layout.levels, 10, 4
    if len(levels) < 2 or s.model.prior is None or not s.model.prior.stepwise:
        return None
    z, label = torch.cat(list(coding.draws(s.model, rows * columns, SEED))), s.one if s.model.conditional else None
    made, names = [], []
    for upper, level in pairwise(levels):
        shared = coding.share_rows(s.model.prior, z, s.model.layout.span(level.name).start, columns)
        made.append(coding.decode(s.model, shared, label, s.data.pixel_range).unflatten(0, (rows, columns)))
        names += [f"{upper.name} {row}" for row in range(1, rows + 1)]
    return images.classes(torch.cat(made), names)


def _uncertainty(s: Scene) -> Figure | None:
    if not s.posterior.density:
        return None
    x, labels = s.few.images[:8], None if s.few.labels is None else s.few.labels[:8]
    mean, deviation = coding.uncertainty(s.model, x, labels, 100, s.data.pixel_range, SEED)
    return images.uncertainty(s.unit(x), mean, deviation)


def _data(s: Scene) -> Figure:
    """Draws training images; a class with few of them has gaps in its row."""
    x, labels, columns = s.unit(s.known.images), s.known.classes, 8
    of_class = {} if labels is None else {name: x[labels.cpu() == c] for c, name in enumerate(s.classes)}
    groups = dict([(name, group) for name, group in of_class.items() if len(group)][:ROWS]) or {"all": x}
    columns = min(columns, max(map(len, groups.values())))
    white = torch.ones(columns, *x.shape[1:])
    shown = torch.stack([torch.cat([group, white])[:columns] for group in groups.values()])
    histograms = torch.stack([torch.histc(group, BINS, 0, 1) for group in groups.values()])
    return images.data(shown, histograms, list(groups))


def _marginals(s: Scene) -> Figure | None:
    fields = s.data.fields
    if fields is None or s.rows is None:
        return None
    real, generated = (x.numpy() for x in s.rows)
    parts = [real[:, span] for span in spans(fields)]
    known = [f.decode(x[~np.isnan(x[:, 0])]) for f, x in zip(fields, parts, strict=True)]
    return tables.marginals(fields, known, decode(fields, generated))


def _correlations(s: Scene) -> Figure | None:
    fields = s.data.fields
    if fields is None or s.rows is None:
        return None
    named = [(f.name, span.start) for f, span in zip(fields, spans(fields), strict=True) if f.kind != "categorical"]
    if len(named) < 2:
        return None
    places = [place for _, place in named]
    return tables.correlations([name for name, _ in named], *(x[:, places].numpy() for x in s.rows))


def _lines(s: Scene) -> Figure | None:
    if s.pictures or s.data.fields is not None or s.data.shape[2] < 2:
        return None
    x, labels, of = s.few.images, s.few.labels, s.data.pixel_range
    made = coding.decode(s.model, coding.codes(s.model, x, labels), labels, of)
    drawn = None if s.model.prior is None else coding.sample(s.model, len(x), None, of, SEED)[:, :, 0].numpy()
    holes = x.isnan().cpu()
    return tables.lines(s.unit(x).masked_fill(holes, torch.nan)[:, :, 0].numpy(), made[:, :, 0].numpy(), drawn)


FIGURES: dict[str, Callable[[Scene], Any]] = {
    "reconstructions": _reconstructions,
    "errors": _errors,
    "samples": _samples,
    "real_and_generated": _real_and_generated,
    "classes": _classes,
    "levels": _levels,
    "temperatures": discrete.temperatures,
    "nearest": discrete.nearest,
    "prior_loss": discrete.prior_loss,
    "traversals": continuous.traversals,
    "manifold": continuous.manifold,
    "interpolations": continuous.interpolations,
    "latents": continuous.scatter,
    "dimensions": continuous.dimensions,
    "uncertainty": _uncertainty,
    "codes": discrete.codes,
    "code_vectors": discrete.code_vectors,
    "code_patches": discrete.code_patches,
    "code_maps": discrete.code_maps,
    "code_levels": discrete.code_levels,
    "data": _data,
    "marginals": _marginals,
    "correlations": _correlations,
    "lines": _lines,
}
"""Each figure's name and the function that draws it, or returns None where it does not apply."""
OF_PICTURES = {
    *("reconstructions", "errors", "samples", "real_and_generated", "classes", "levels", "temperatures", "nearest"),
    *("traversals", "manifold", "interpolations", "uncertainty", "code_patches", "code_maps", "code_levels", "data"),
}
"""Names of the figures that show examples as pictures, or measure them as such."""
WHILE_TRAINING = (
    "marginals",
    "lines",
    "reconstructions",
    "samples",
    "classes",
    "levels",
    "traversals",
    "latents",
    "dimensions",
    "codes",
    "code_maps",
)
"""Names of the figures that are drawn at intervals while training."""
