"""Fills in what is missing of an example by what a trained model makes of the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.inference.batches import evaluating
from vaelab.nn.conditions import again

if TYPE_CHECKING:
    from vaelab.models import Model

MOST_ROWS, NUMBERS = 2**15, 2**22
"""Most rows, and numbers in them, that are decoded at a time."""


@torch.no_grad()
def impute(model: Model, x: Tensor, labels: Tensor | None, draws: int, seed: int) -> Tensor:
    """Fills in NaN by E[x_missing | x_observed], by self-normalised importance sampling (Mattei & Frellsen 2019).

    Each of K = `draws` of z ~ q(z|x) weighs w = p(x_observed|z) p(z) / q(z|x), and gives E[x_missing|z]. x: as the
    model sees it, [N, C, H, W], on any device; labels: [N], of a conditional model. Returns x with no NaN, on the
    processor. Raises UserError for a model without densities.
    """
    if not model.bounded:
        raise UserError(
            f"impute: {type(model).__name__} has no density to weigh draws by: take a run of model=vae, say"
        )
    filled = []
    with evaluating(model):
        rows = max(1, min(MOST_ROWS, NUMBERS // x[0].numel()))
        size = max(1, rows // draws)
        noise = torch.Generator().manual_seed(seed)
        for start in range(0, len(x), size):
            part = x[start : start + size].to(model.device)
            given = None if labels is None else labels[start : start + size].to(model.device)
            expected = _expected(model, part, given, draws, rows, noise)
            filled.append(torch.where(part.isnan(), expected, part).cpu())
    return torch.cat(filled)


def _expected(model: Model, x: Tensor, labels: Tensor | None, draws: int, rows: int, noise: torch.Generator) -> Tensor:
    """Computes E[x | x_observed] of each image, [B, C, H, W]; at most about `rows` are decoded at a time."""
    posterior, prior, done = model.encode(x, labels), model.require_prior(), 0
    highest = torch.full((len(x),), -math.inf, device=x.device)
    total, mean = torch.zeros(len(x), device=x.device), torch.zeros_like(x)
    while done < draws:
        count = min(draws - done, max(1, rows // len(x)))
        z, log_ratio = posterior.draw(
            torch.randn(count, *posterior.code.shape, generator=noise).to(x.device), prior, labels
        )
        raw = model.decode(z.flatten(0, 1), again(labels, count))
        log_w = model.likelihood.log_prob(raw, x.repeat(count, 1, 1, 1)).view(count, -1) + log_ratio
        before, highest = highest, torch.maximum(highest, log_w.amax(0))
        w, shrink = (log_w - highest).exp(), (before - highest).exp()
        made = model.likelihood.mean(raw).view(count, *x.shape)
        total = total * shrink + w.sum(0)
        mean = mean * shrink[:, None, None, None] + torch.einsum("kb,kbchw->bchw", w, made)
        done += count
    return mean / total[:, None, None, None]
