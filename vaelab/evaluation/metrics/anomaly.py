"""Measures how well a score tells anomalous images from normal ones."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(normal_scores: Tensor, anomalous_scores: Tensor) -> tuple[float, float]:
    """Computes the area under the receiver operating characteristic, and its standard error.

    normal_scores: [N]; anomalous_scores: [M]; the higher, the more anomalous (so -ELBO, not ELBO).
    The area is the probability that an anomalous image scores higher than a normal one, ties counted
    half (the Mann-Whitney statistic; Hanley & McNeil 1982): 1/2 is chance, below 1/2 the score is on
    the wrong side. The standard error is that of DeLong, DeLong & Clarke-Pearson 1988, from the
    spread of both sets' placement values. It covers the sampling of images, not of trained models,
    and is 0 where the sets do not overlap at all. Infinite scores are ranked like any other.
    Raises ValueError for NaN, for fewer than two scores, or for other shapes.
    """
    normal, anomalous = _scores(normal_scores, "normal_scores"), _scores(anomalous_scores, "anomalous_scores")
    above = _share_below(anomalous, normal)
    below = 1 - _share_below(normal, anomalous)
    error = (above.var() / len(above) + below.var() / len(below)).sqrt()
    return above.mean().item(), error.item()


def roc(normal_scores: Tensor, anomalous_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the receiver operating characteristic: shares of each set that score at least as high as a threshold.

    The arguments are those of `auroc`, which is the area below. Returns the shares of normal images, taken for
    anomalies by mistake, and of anomalous ones, [T + 1] each, rising from 0 to 1, for all thresholds.
    """
    normal, anomalous = _scores(normal_scores, "normal_scores"), _scores(anomalous_scores, "anomalous_scores")
    thresholds = torch.cat([normal, anomalous]).unique().flip(0)
    shares = [
        (len(scores) - torch.searchsorted(scores.sort().values, thresholds, side="left")).double() / len(scores)
        for scores in (normal, anomalous)
    ]
    false, true = (torch.cat([share.new_zeros(1), share]) for share in shares)
    return false, true


def found_at(false: Tensor, true: Tensor, at: Tensor) -> Tensor:
    """Reads a ROC curve, as `roc` gives it, at shares of normal images taken for anomalies, [A]: shares found, [A]."""
    above = torch.searchsorted(false, at, side="right")
    below, above = above - 1, above.clamp(max=len(false) - 1)
    way = ((at - false[below]) / (false[above] - false[below]).clamp(min=1e-12)).clamp(0, 1)
    return true[below] + way * (true[above] - true[below])


def _share_below(points: Tensor, others: Tensor) -> Tensor:
    """Computes the share of `others` below each point, ties counted half: [P], [O] -> [P]."""
    ranked = others.sort().values
    less, no_more = (torch.searchsorted(ranked, points, side=side) for side in ("left", "right"))
    return (less + no_more).double() / (2 * len(others))


def _scores(scores: Tensor, name: str) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"{name} must be [N] with two scores or more, got {list(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"{name}: {int(scores.isnan().sum())} of {len(scores)} scores are NaN")
    return scores
