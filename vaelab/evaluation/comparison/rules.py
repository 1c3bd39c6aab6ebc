"""Which end of a figure is better, and what runs must agree in before it is ranked."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import NamedTuple


class Rule(NamedTuple):
    """How a figure ranks.

    better: which end of it is, `max`, `min`, or `` for neither. agree: what must be the same for a mean
    over seeds to mean something, and to rank such means. label_free: models that are given the label
    are not ranked.
    """

    better: str
    agree: tuple[str, ...]
    label_free: bool = False


NATS = ("data", "likelihood", "condition", "reduction")
BOUND = (*NATS, "importance_samples")
MEASURED = ("data", "condition", "protocol")

RULES = {
    # figure                             better   what must agree
    "*_se": Rule("", ()),
    "*_real": Rule("", MEASURED),
    "training/loss": Rule("min", ("objective", *NATS)),
    "training/*": Rule("", ("data",)),
    "likelihood/elbo": Rule("max", NATS),
    "likelihood/reconstruction": Rule("min", ("objective", *NATS)),
    "likelihood/log_p_hat": Rule("max", BOUND),
    "likelihood/bits_per_dim": Rule("min", BOUND),
    "likelihood/effective_samples": Rule("", BOUND),
    "likelihood/importance_samples": Rule("", ("importance_samples",)),
    "likelihood/*": Rule("", ("data",)),
    "reconstruction/*mse_mean": Rule("min", ("data", "condition")),
    "reconstruction/*mse_median": Rule("min", ("data", "condition")),
    "disentanglement/*": Rule("max", MEASURED),
    "labels/*_accuracy": Rule("max", ("data", "protocol"), label_free=True),
    "conditional/sample_accuracy": Rule("max", ("data", "protocol")),
    "samples/frechet": Rule("min", MEASURED),
    "samples/precision": Rule("max", MEASURED),
    "samples/recall": Rule("max", MEASURED),
    "anomaly/auroc_*": Rule("max", ("data", "protocol")),
    "*": Rule("", ("data", "protocol")),
}
"""The first pattern that fits a figure says how it ranks. Of those without an end neither more nor less is better."""

ASIDE = ("*_real", "*/images", "*/dimensions", "*chance", "*/drawn", "*/importance_samples")
"""Figures that say what others are held against or made of: shown only by name."""

REASONS = {
    "objective": "they minimise different things",
    "data": "they are of different images",
    "likelihood": "their noise models put it on different scales",
    "condition": "the label, where it is given, pays for a part of the image",
    "reduction": "their terms are summed or averaged differently",
    "importance_samples": "the bound grows with the number of importance samples",
    "protocol": "they were measured differently; `protocols` in evaluation.json says how",
    "label": "their encoders see what is to be read off the codes",
}
"""Why runs that differ in such an aspect are not ranked."""


def rule(figure: str) -> Rule:
    """How a figure ranks."""
    return next(rule for pattern, rule in RULES.items() if fnmatch(figure, pattern))


def is_aside(figure: str) -> bool:
    """Whether a figure is shown only by name."""
    return any(fnmatch(figure, pattern) for pattern in ASIDE)
