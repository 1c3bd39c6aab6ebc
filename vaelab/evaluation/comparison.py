"""Which runs' figures can be compared, and what follows: configurations, intervals, ranks, rate and distortion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from vaelab.evaluation.compared import Run

LEVEL = 0.95
"""Of the intervals."""


class Rule(NamedTuple):
    """better: which end of a figure is, `max`, `min`, or `` for neither. agree: what must be the same to rank it."""

    better: str
    agree: tuple[str, ...]


NATS = ("data", "likelihood", "condition", "reduction")

RULES = {
    # figure                             better   what must agree
    "training/loss": Rule("min", ("objective", *NATS)),
    "likelihood/elbo": Rule("max", NATS),
    "likelihood/reconstruction": Rule("min", NATS),
    "likelihood/log_p_hat": Rule("max", (*NATS, "importance_samples")),
    "likelihood/bits_per_dim": Rule("min", (*NATS, "importance_samples")),
    "reconstruction/*mse_mean": Rule("min", ("data",)),
    "reconstruction/*mse_median": Rule("min", ("data",)),
    "disentanglement/*": Rule("max", ("data", "protocol")),
    "labels/*_accuracy": Rule("max", ("data", "protocol")),
    "conditional/sample_accuracy": Rule("max", ("data", "protocol")),
    "samples/frechet": Rule("min", ("data", "protocol")),
    "samples/precision": Rule("max", ("data", "protocol")),
    "samples/recall": Rule("max", ("data", "protocol")),
    "anomaly/auroc_*": Rule("max", ("data", "protocol")),
    "*": Rule("", ()),
}
"""The first pattern that fits a figure says how it ranks. Of the others neither more nor less is better."""

REASONS = {
    "objective": "they minimise different things",
    "data": "they are of different images",
    "likelihood": "their noise models put it on different scales",
    "condition": "log p(x | label) is not log p(x): the label pays for a part of the image",
    "reduction": "their terms are summed or averaged differently",
    "importance_samples": "the bound grows with the number of importance samples",
    "protocol": "they were measured differently; `protocols` in evaluation.json says how",
}
"""Why runs that differ in such an aspect are not ranked."""

ALWAYS_SHOWN = ("model", "dataset", "likelihood", "dataset.binarize", "dataset.pixel_range", "checkpoint")
KNOBS = (
    *("model", "model.beta", "model.capacity", "model.num_embeddings"),
    *("schedule.beta.end", "schedule.capacity.end"),
)
"""What moves a model along its rate–distortion curve."""


class Interval(NamedTuple):
    """A mean over n seeds with its confidence interval; low and high are None for n = 1."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Configuration(NamedTuple):
    """Runs that differ only in their seed, and their figures' means."""

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    figures: dict[str, Interval]


class Ranking(NamedTuple):
    """best, tied: indices of configurations. refused: the aspect, and what differs in it."""

    best: set[int]
    tied: set[int]
    refused: list[tuple[str, str]]


class Point(NamedTuple):
    """Rate and distortion of the configuration at `index`, nats per image."""

    index: int
    rate: float
    distortion: float
    dominated: bool


# --- configurations ---------------------------------------------------------------------------


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % confidence interval, by Student's t with n - 1 degrees of freedom.

    It assumes that values over seeds are about normal. One value has no interval.
    """
    if not values:
        raise ValueError("values: an interval needs at least one")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def group(runs: Iterable[Run]) -> tuple[list[Configuration], list[tuple[Run, Run]]]:
    """Configurations in the order of their settings, and the runs left out as (repeat, kept).

    Of runs with the same settings and the same seed one is kept, as the others are no further
    evidence: an evaluated one before others, then the last by name.
    """
    kept: dict[str, dict[int, Run]] = {}
    repeats = []
    for run in sorted(runs, key=lambda run: (run.evaluated, run.name), reverse=True):
        seeds = kept.setdefault(_key(run.settings), {})
        if run.seed in seeds:
            repeats.append((run, seeds[run.seed]))
        seeds.setdefault(run.seed, run)
    rows = []
    for seeds in kept.values():
        members = tuple(seeds[seed] for seed in sorted(seeds))
        names = dict.fromkeys(name for run in members for name in run.figures)
        values = {name: [run.figures[name] for run in members if name in run.figures] for name in names}
        rows.append(Configuration(members[0].settings, members, {k: interval(v) for k, v in values.items()}))
    differing = _in_order({key for row in rows for key in row.settings})
    rows.sort(key=lambda row: [_sortable(row.settings.get(key)) for key in differing])
    return rows, sorted(repeats)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _in_order(keys: Iterable[str]) -> list[str]:
    """Keys as a reader wants them: what always counts, then the model's and what steers it, then the others."""
    groups = ("model", "schedule", "dataset", "likelihood", "codebook", "network")

    def place(key: str) -> tuple[int, int, str]:
        first = ALWAYS_SHOWN.index(key) if key in ALWAYS_SHOWN else len(ALWAYS_SHOWN)
        top = key.split(".")[0]
        return first, groups.index(top) if top in groups else len(groups), key

    return sorted(keys, key=place)


def _sortable(value: Any) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def columns(rows: Sequence[Configuration]) -> tuple[list[str], list[str]]:
    """The settings in which configurations differ: those that tell them apart, and those that go with these.

    Model, data set, likelihood, binarisation and pixel range are always among the first.
    """
    keys = {key for row in rows for key in row.settings}
    differing = [key for key in _in_order(keys) if len({_key(row.settings.get(key)) for row in rows}) > 1]
    shown: list[str] = []
    for key in differing:
        if key in ALWAYS_SHOWN or _distinct(rows, [*shown, key]) > _distinct(rows, shown):
            shown.append(key)
    return shown, [key for key in differing if key not in shown]


def _distinct(rows: Sequence[Configuration], keys: Sequence[str]) -> int:
    return len({_key([row.settings.get(key) for key in keys]) for row in rows})


# --- ranks ------------------------------------------------------------------------------------


def rule(figure: str) -> Rule:
    """How a figure ranks."""
    return next(rule for pattern, rule in RULES.items() if fnmatch(figure, pattern))


def comparable(rows: Sequence[Configuration], figure: str, agree: Sequence[str]) -> tuple[list[list[int]], list]:
    """Sets of configurations that have the figure and agree in all of `agree`, and in what they do not.

    A configuration whose own runs do not agree is in no set.
    """
    having = [i for i, row in enumerate(rows) if figure in row.figures]
    sets: dict[tuple[str, ...], list[int]] = {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for i in having:
        values: list[set[str]] = []
        for name in agree:
            aspect = f"protocol of {figure.partition('/')[0]}" if name == "protocol" else name
            own = [run.aspects.get(aspect, {}) for run in rows[i].runs if figure in run.figures]
            values.append({_key(value) for value in own})
            found.setdefault(name, {}).update({_key(value): value for value in own})
        if all(len(value) == 1 for value in values):
            sets.setdefault(tuple(value.pop() for value in values), []).append(i)
    refused = [(name, _difference(list(values.values()))) for name, values in found.items() if len(values) > 1]
    return list(sets.values()), refused


def _difference(values: list[dict[str, Any]]) -> str:
    """What differs, as `likelihood=bernoulli and gaussian`: of nested keys the topmost."""
    keys = {key for value in values for key in value}
    differing = [key for key in _in_order(keys) if len({_key(value.get(key)) for value in values}) > 1]
    words = sorted({word(value.get(differing[0])) for value in values})
    return f"{differing[0]}={', '.join(words[:-1])} and {words[-1]}"


def word(value: Any) -> str:
    """A setting's value as a word of a sentence or table."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def rank(rows: Sequence[Configuration], figure: str) -> Ranking:
    """The best of every set of comparable configurations, and what cannot be told apart from it.

    tied: its interval overlaps the best one's. A single seed has no interval and is never tied.
    """
    better, agree = rule(figure)
    sets, refused = comparable(rows, figure, agree)
    best: set[int] = set()
    tied: set[int] = set()
    if not better:
        return Ranking(best, tied, [])
    for members in (members for members in sets if len(members) > 1):
        means = [rows[i].figures[figure].mean for i in members]
        top = max(means) if better == "max" else min(means)
        first = [i for i, mean in zip(members, means, strict=True) if mean == top]
        best.update(first)
        others = set(members) - set(first)
        tied |= {i for i in others if any(_overlap(rows[i].figures[figure], rows[j].figures[figure]) for j in first)}
    return Ranking(best, tied, refused)


def _overlap(one: Interval, other: Interval) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def ordered(rows: Sequence[Configuration], figure: str) -> list[Configuration]:
    """Configurations by a figure, best first (least first where neither end is better).

    Sets that cannot be compared stay apart, each in its own order; then come those that have no
    such figure.
    """
    better, agree = rule(figure)
    sets = comparable(rows, figure, agree)[0]
    sign = -1 if better == "max" else 1
    first = [i for members in sets for i in sorted(members, key=lambda i: sign * rows[i].figures[figure].mean)]
    return [rows[i] for i in first] + [row for i, row in enumerate(rows) if i not in first]


# --- rate and distortion ----------------------------------------------------------------------


def rate_distortion(rows: Sequence[Configuration]) -> list[list[Point]]:
    """Rate against distortion, nats per image, in sets of comparable configurations, each sorted by rate.

    Rate: the mean KL (Alemi et al. 2018, "Fixing a broken ELBO"); of a codebook P log K for P
    positions, its KL to the uniform prior. Distortion: the mean of -log p(x|z). A point is
    dominated if another one has neither more rate nor more distortion, and less of one. Sets in
    which beta, C and the like are all the same are left out: they are a point, not a curve.
    """
    curves = []
    for members in comparable(rows, "likelihood/reconstruction", NATS)[0]:
        located = [(i, _rate(rows[i]), rows[i].figures["likelihood/reconstruction"].mean) for i in members]
        places = sorted((rate, distortion, i) for i, rate, distortion in located if rate is not None)
        if _distinct([rows[i] for _, _, i in places], KNOBS) > 1:
            curves.append([Point(i, r, d, _dominated(r, d, places)) for r, d, i in places])
    return curves


def _rate(row: Configuration) -> float | None:
    if "likelihood/kl" in row.figures:
        return row.figures["likelihood/kl"].mean
    bits = row.figures.get("likelihood/rate_uniform_bits")
    return None if bits is None else bits.mean * math.log(2)


def _dominated(rate: float, distortion: float, places: Iterable[tuple[float, float, int]]) -> bool:
    return any(r <= rate and d <= distortion and (r, d) != (rate, distortion) for r, d, _ in places)
