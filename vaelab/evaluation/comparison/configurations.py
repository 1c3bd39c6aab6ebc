"""Groups runs into configurations, and computes intervals and ranks of the metrics that can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vaelab.evaluation.comparison.compared import Run
from vaelab.evaluation.comparison.rules import rule

LEVEL = 0.95
"""Confidence level of the intervals."""


DIFFERENT = {
    "protocol": "different protocols",
    "log_likelihood_is": "different kinds of likelihood",
    "reduction": "different reductions",
}
"""Words for differences in aspects whose values are sentences."""
LONGEST = 24
"""Most characters of a value that is written out where it differs."""

ALWAYS_SHOWN = ("model", "dataset", "likelihood", "dataset.binarize", "dataset.pixel_range", "checkpoint")


class Interval(NamedTuple):
    """A mean over n seeds with its confidence interval; low and high are None for n = 1."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Mixed(NamedTuple):
    """The reason why n seeds have no mean: the aspect that they do not share, and what differs in it."""

    aspect: str
    what: str
    n: int


class Configuration(NamedTuple):
    """Runs that differ only in their seed, the means of their metrics, and metrics whose mean would mean nothing."""

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    figures: dict[str, Interval]
    mixed: dict[str, Mixed]


class Ranking(NamedTuple):
    """A ranking of configurations by one metric.

    best, tied: indices of configurations. refused: the aspect, and what differs in it. sets: those that
    were ranked, each with what its members share and the others do not.
    """

    best: set[int]
    tied: set[int]
    refused: list[tuple[str, str]]
    sets: list[tuple[list[int], str]]


# --- configurations ---------------------------------------------------------------------------


def interval(values: Sequence[float]) -> Interval:
    """Computes the mean of independent values and its 95 % confidence interval, by Student's t with n - 1 degrees.

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
    """Groups runs into configurations, in the order of their settings. Returns these and runs left out, (repeat, kept).

    Of runs with the same settings and the same seed one is kept, as the others are no further
    evidence: an evaluated one before others, then the last by name.
    """
    kept: dict[str, dict[int, Run]] = {}
    repeats = []
    for run in sorted(runs, key=lambda run: (bool(run.evaluated), run.name), reverse=True):
        seeds = kept.setdefault(_key(run.settings), {})
        if run.seed in seeds:
            repeats.append((run, seeds[run.seed]))
        seeds.setdefault(run.seed, run)
    rows = []
    for seeds in kept.values():
        rows.append(_configuration(tuple(seeds[seed] for seed in sorted(seeds))))
    differing = _in_order({key for row in rows for key in row.settings})
    rows.sort(key=lambda row: [sortable(row.settings.get(key)) for key in differing])
    return rows, sorted(repeats, key=lambda pair: pair[0].name)


def _configuration(runs: tuple[Run, ...]) -> Configuration:
    figures, mixed = {}, {}
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        sources = _sources(runs, name)
        aspects = {aspect: [run.aspect(aspect, name) for run in sources] for aspect in rule(name).agree}
        differing = [aspect for aspect, values in aspects.items() if len(set(map(_key, values))) > 1]
        if differing:
            mixed[name] = Mixed(differing[0], _difference(aspects[differing[0]]), len(sources))
        else:
            figures[name] = interval([run.figures[name] for run in sources])
    return Configuration(runs[0].settings, runs, figures, mixed)


def _sources(runs: Sequence[Run], figure: str) -> list[Run]:
    """Returns the runs to average a metric over: where it was evaluated for some, these alone."""
    evaluated = [run for run in runs if figure in run.evaluated]
    return evaluated or [run for run in runs if figure in run.figures]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _in_order(keys: Iterable[str]) -> list[str]:
    """Orders keys for a reader: what always counts, then the model's and what steers it, then the others."""
    groups = ("model", "schedule", "dataset", "likelihood", "codebook", "network")

    def place(key: str) -> tuple[int, int, str]:
        first = ALWAYS_SHOWN.index(key) if key in ALWAYS_SHOWN else len(ALWAYS_SHOWN)
        top = key.split(".")[0]
        return first, groups.index(top) if top in groups else len(groups), key

    return sorted(keys, key=place)


def sortable(value: Any) -> tuple[int, float, str]:
    """Returns a sort key for values of a setting: none, numbers, words."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def columns(rows: Sequence[Configuration]) -> tuple[list[str], list[str]]:
    """Returns the settings in which configurations differ: those that tell them apart, and those that go with these.

    Model, data set, likelihood, binarisation and pixel range are always among the first.
    """
    keys = {key for row in rows for key in row.settings}
    differing = [key for key in _in_order(keys) if len({_key(row.settings.get(key)) for row in rows}) > 1]
    shown: list[str] = []
    for key in differing:
        if key in ALWAYS_SHOWN or distinct(rows, [*shown, key]) > distinct(rows, shown):
            shown.append(key)
    return shown, [key for key in differing if key not in shown]


def distinct(rows: Sequence[Configuration], keys: Sequence[str]) -> int:
    return len({_key([row.settings.get(key) for key in keys]) for row in rows})


# --- ranks ------------------------------------------------------------------------------------


def comparable(
    rows: Sequence[Configuration], figure: str, agree: Sequence[str]
) -> tuple[list[list[int]], dict[str, list[dict[str, Any]]]]:
    """Returns sets of configurations that have the metric and agree in all of `agree`, and the values that differ."""
    sets: dict[str, list[int]] = {}
    values: dict[str, list[dict[str, Any]]] = {name: [] for name in agree}
    for i in (i for i, row in enumerate(rows) if figure in row.figures):
        aspects = [_aspect(rows[i], name, figure) for name in agree]
        sets.setdefault(_key(aspects), []).append(i)
        for name, value in zip(agree, aspects, strict=True):
            values[name].append(value)
    return list(sets.values()), {k: v for k, v in values.items() if len(set(map(_key, v))) > 1}


def _aspect(row: Configuration, name: str, figure: str) -> dict[str, Any]:
    return _sources(row.runs, figure)[0].aspect(name, figure)


def _difference(values: Sequence[dict[str, Any]]) -> str:
    """Describes what differs, as `likelihood=bernoulli and gaussian`: of nested keys the topmost."""
    key = _differing(values)
    distinct_values = {_key(value.get(key)): value.get(key) for value in values}
    words = [word(value) for value in sorted(distinct_values.values(), key=sortable)]
    if key in DIFFERENT or max(map(len, words)) > LONGEST:
        return DIFFERENT.get(key, f"different values of {key}")
    return f"{key}={', '.join(words[:-1])} and {words[-1]}"


def _differing(values: Sequence[dict[str, Any]]) -> str:
    keys = {key for value in values for key in value}
    return next(key for key in _in_order(keys) if len({_key(value.get(key)) for value in values}) > 1)


def _shared(rows: Sequence[Configuration], figure: str, first: int, differing: dict[str, list[dict[str, Any]]]) -> str:
    """Describes what the configurations comparable with `first` share, and others do not."""
    named, unnamed = [], []
    for name, values in differing.items():
        key = _differing(values)
        text = word(_aspect(rows[first], name, figure).get(key))
        if key in DIFFERENT or len(text) > LONGEST:
            unnamed.append(f"one {key}")
        else:
            named.append(f"{key}={text}")
    return ", ".join(named or unnamed)


def word(value: Any) -> str:
    """Writes a setting's value as a word of a sentence or table."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def rank(rows: Sequence[Configuration], figure: str) -> Ranking:
    """Ranks configurations by a metric: the best of every comparable set, and those not separated from it.

    A tied one's interval overlaps the best one's. A single seed has no interval and is never tied.
    """
    better, agree, label_free = rule(figure)
    ranking = Ranking(set(), set(), [], [])
    if not better:
        return ranking
    sets, differing = comparable(rows, figure, agree)
    for name, values in differing.items():
        if "data" not in differing or _differing(values) != "log_likelihood_is":  # this follows from the binarisation
            ranking.refused.append((name, _difference(values)))
    if label_free:
        given = {
            i for members in sets for i in members if _aspect(rows[i], "condition", figure)["condition"] == "label"
        }
        sets = [[i for i in members if i not in given] for members in sets]
        ranking.refused.extend([("label", "models that are given the label")] if given else [])
    for members in (members for members in sets if len(members) > 1):
        means = [rows[i].figures[figure].mean for i in members]
        top = max(means) if better == "max" else min(means)
        first = [i for i, mean in zip(members, means, strict=True) if mean == top]
        others = set(members) - set(first)
        tied = {i for i in others if any(_overlap(rows[i].figures[figure], rows[j].figures[figure]) for j in first)}
        ranking.best.update(first)
        ranking.tied.update(tied)
        ranking.sets.append((members, _shared(rows, figure, members[0], differing)))
    return ranking


def _overlap(one: Interval, other: Interval) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def ordered(rows: Sequence[Configuration], figure: str) -> list[Configuration]:
    """Sorts configurations by a metric, best first (least first where neither end is better).

    Sets that cannot be compared stay apart, each in its own order; then come those without the metric.
    """
    better, agree, _ = rule(figure)
    sets = comparable(rows, figure, agree)[0]
    sign = -1 if better == "max" else 1
    first = [i for members in sets for i in sorted(members, key=lambda i: sign * rows[i].figures[figure].mean)]
    return [rows[i] for i in first] + [row for i, row in enumerate(rows) if i not in first]
