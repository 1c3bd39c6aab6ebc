"""Scores of single images: how unlike its training images a model finds each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.pixels import to_unit
from vaelab.evaluation.metrics.likelihood import importance_weighted
from vaelab.inference.batches import evaluating

if TYPE_CHECKING:
    from vaelab.models import Model


def scored(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    pixel_range: tuple[float, float] | None,
    samples: int,
    memory: int,
    seed: int,
) -> dict[str, Tensor]:
    """Scores images, as the section `anomaly` of an evaluation does. Returns columns by name, [N] float64 each.

    batches: images as the model sees them, [B, C, H, W], and their labels, [B], or None. samples, memory: those of
    `importance_weighted`. seed: of the draws.
    score: -log_p_hat, or, of a model without a bound on log p(x), -log p(x|z) at the image's own code; the higher, the
    less typical. elbo, log_p_hat, reconstruction, kl: nats, as everywhere. mse: squared error of the reconstruction
    without noise, a mean over pixels in [0, 1]; not of rows of a table, whose pixel_range is None.
    """
    generator, rows = torch.Generator(model.device).manual_seed(seed), []
    with evaluating(model), torch.no_grad():
        for x, labels in batches:
            raw = model.decode(model.encode(x, labels).code, labels)
            if model.bounded:
                bound = importance_weighted(model, x, labels, samples, memory, generator)
                row = {"score": -bound.log_p_hat, "elbo": bound.elbo, "log_p_hat": bound.log_p_hat}
                row |= {"reconstruction": bound.reconstruction, "kl": bound.kl}
            else:
                distortion = -model.likelihood.log_prob(raw, x).cpu().double()
                row = {"score": distortion, "reconstruction": distortion}
            rows.append(row)
            if pixel_range is None:
                continue
            made, image = (to_unit(images, pixel_range, clamp=False) for images in (model.likelihood.mean(raw), x))
            row["mse"] = (made - image).square().flatten(1).nanmean(1).cpu().double()  # of the pixels that are there
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
