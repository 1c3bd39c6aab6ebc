"""Rules of ranking: which end of a metric is better, and what runs must agree in before it is ranked."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import NamedTuple

from vaelab.core.metrics import metric


class Rule(NamedTuple):
    """The rule by which a metric ranks.

    better: which end of it is better, `max`, `min`, or `` for neither. agree: aspects that must be the same
    for a mean over seeds to mean something, and to rank such means. label_free: models that are given the
    label are not ranked.
    """

    better: str
    agree: tuple[str, ...]
    label_free: bool = False


NATS = ("data", "likelihood", "condition", "reduction")
BOUND = (*NATS, "importance_samples")
MEASURED = ("data", "condition", "protocol")

AGREE: dict[str, tuple[str, ...]] = {
    "*_se": (),
    "*_real": MEASURED,
    "training/loss": ("objective", *NATS),
    "likelihood/elbo": NATS,
    "likelihood/reconstruction": ("objective", *NATS),
    "likelihood/log_p_hat": BOUND,
    "likelihood/bits_per_dim": BOUND,
    "likelihood/rate": MEASURED,
    "likelihood/total": (*MEASURED, "likelihood"),
    "likelihood/effective_samples": BOUND,
    "likelihood/importance_samples": ("importance_samples",),
    "reconstruction/*": ("data", "condition"),
    "disentanglement/*": MEASURED,
    "inception/fid": MEASURED,
    "inception/rfid": MEASURED,
    "lpips/*": MEASURED,
    "samples/frechet": MEASURED,
    "samples/precision": MEASURED,
    "samples/recall": MEASURED,
    "training/*": ("data",),
    "likelihood/*": ("data",),
    "*": ("data", "protocol"),
}
"""Aspects in which runs must agree, by the first pattern that fits a metric's name. Which end is better stands in
`vaelab.core.metrics`."""
LABEL_FREE = "labels/*_accuracy"
"""Metrics for which models that are given the label are not ranked."""
OF_TRAINING_ALONE = ("training/loss",)
"""Metrics of training's end that are ranked although no evaluation has them."""

ASIDE = ("*_real", "*/images", "*/dimensions", "*chance", "*/drawn", "*/importance_samples")
"""Metrics that say what others are held against or made of: shown only by name."""

REASONS = {
    "objective": "they minimise different things",
    "data": "they are of different images",
    "likelihood": "their noise models put it on different scales",
    "condition": "the label, or the part of the image, that is given pays for a part of it",
    "reduction": "their terms are summed or averaged differently",
    "importance_samples": "the bound grows with the number of importance samples",
    "protocol": "they were measured differently; `protocols` in evaluation.json says how",
    "label": "their encoders see what is to be read off the codes",
}
"""The reason, for each aspect, why runs that differ in it are not ranked."""


def rule(figure: str) -> Rule:
    """Returns the rule by which a metric ranks."""
    agree = next(agree for pattern, agree in AGREE.items() if fnmatch(figure, pattern))
    better = metric(figure).better
    if figure.startswith("training/") and figure not in OF_TRAINING_ALONE:
        better = ""
    return Rule(better, agree, fnmatch(figure, LABEL_FREE))


def is_aside(figure: str) -> bool:
    """Whether a metric is shown only by name."""
    return any(fnmatch(figure, pattern) for pattern in ASIDE)
