"""Formats a comparison as tables that fit the terminal, and as the content of files."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vaelab.core.metrics import metric
from vaelab.evaluation.comparison.configurations import ALWAYS_SHOWN, Configuration, Interval, Ranking, columns, word
from vaelab.evaluation.comparison.rate_distortion import Point

ABSENT = "-"
GAP = "  "


def titles(figures: Sequence[str]) -> dict[str, str]:
    """Shortens names of metrics to the last part, where no other one has it."""
    short = {name: metric(name).title or name.rpartition("/")[2] for name in figures}
    return {name: title if list(short.values()).count(title) == 1 else name for name, title in short.items()}


def figures_table(
    rows: Sequence[Configuration],
    labels: Sequence[str],
    names: Mapping[str, str],
    rankings: Mapping[str, Ranking],
    width: int,
) -> str:
    """Formats a row per configuration: its settings, n, and each metric as mean ± half of its interval.

    labels: settings that tell the rows apart. names: titles by metric. width: characters in a line;
    metrics that do not fit come in a further block.
    """
    letters = sets_by_letter(names, rankings)
    fixed = [*_labels(rows, labels), ["n", *(str(len(row.runs)) for row in rows)]]
    flowing = []
    for figure, title in names.items():
        ranking = rankings[figure]
        letter = {i: letters[tuple(members)] for members, _ in ranking.sets for i in members if len(ranking.sets) > 1}
        marks = ["*" if i in ranking.best else "~" if i in ranking.tied else "" for i in range(len(rows))]
        marks = [f"{mark:1} {letter[i]}" if i in letter else mark for i, mark in enumerate(marks)]
        sizes, absent = [len(row.runs) for row in rows], ["mixed" if figure in row.mixed else ABSENT for row in rows]
        cells = _cells([row.figures.get(figure) for row in rows], marks, sizes, absent)
        flowing.append([title + " " * max(map(len, marks)), *cells])
    return layout(fixed, flowing, width)


def sets_by_letter(names: Iterable[str], rankings: Mapping[str, Ranking]) -> dict[tuple[int, ...], str]:
    """Returns a letter for each set of comparable configurations, where a metric has several such sets."""
    sets = [tuple(members) for name in names for members, _ in rankings[name].sets if len(rankings[name].sets) > 1]
    return {members: _letter(i) for i, members in enumerate(sorted(set(sets)))}


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[i % 26]


def curve_table(rows: Sequence[Configuration], curve: Sequence[Point], width: int) -> str:
    """Formats a row per point of a rate–distortion curve, with measured β and C where these are not the configured."""
    of_curve = [rows[point.index] for point in curve]
    errors = [row.figures.get("reconstruction/mse_mean") for row in of_curve]
    means = [
        [Interval(value, None, None, 1) for value in values] for values in zip(*(p[1:3] for p in curve), strict=True)
    ]
    blank, one, none = [""] * len(curve), [1] * len(curve), [ABSENT] * len(curve)
    flowing = [["rate", *_cells(means[0], blank, one, none)], ["distortion", *_cells(means[1], blank, one, none)]]
    if any(errors):
        of_mse = [error and Interval(error.mean, None, None, 1) for error in errors]
        flowing.append(["mse", *_cells(of_mse, blank, one, none)])
    for name in unreached(of_curve):
        flowing.append(
            [
                f"measured {name}",
                *(span([run.scheduled[name][0] for run in row.runs if name in run.scheduled]) for row in of_curve),
            ]
        )
    flowing.append(["", *("dominated" if point.dominated else "" for point in curve)])
    return layout(_labels(of_curve, columns(of_curve)[0]), flowing, width)


def curve_heading(rows: Sequence[Configuration], curve: Sequence[Point]) -> str:
    """Returns the heading of a rate–distortion table."""
    settings = rows[curve[0].index].settings
    of = ", ".join(f"{key}={word(settings[key])}" for key in ALWAYS_SHOWN[1:4] if key in settings)
    codes = any("likelihood/kl" not in rows[point.index].figures for point in curve)
    rate = "KL; of codes, positions x log K" if codes else "KL"
    return f"rate ({rate}) and distortion (-log p(x|z)), nats per image, means over seeds: {of}"


def unreached(rows: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    """Returns scheduled weights, and the rows whose measured ones are more than 5 % off the schedule's end."""
    by_weight: dict[str, list[Configuration]] = {}
    for row in rows:
        weights = [(name, *values) for run in row.runs for name, values in run.scheduled.items()]
        for name in dict.fromkeys(name for name, value, end in weights if abs(value - end) > 0.05 * abs(end) + 1e-6):
            by_weight.setdefault(name, []).append(row)
    return by_weight


def span(values: Sequence[float]) -> str:
    """Writes values to three digits, as `2.4` or `2.4 to 3`."""
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))) if values else ABSENT


def _labels(rows: Sequence[Configuration], labels: Sequence[str]) -> list[list[str]]:
    last = [key.rpartition(".")[2] for key in labels]
    short = [name if last.count(name) == 1 else key for key, name in zip(labels, last, strict=True)]
    return [[name, *(_shown(row.settings.get(k)) for row in rows)] for k, name in zip(labels, short, strict=True)]


def _shown(value: Any) -> str:
    return ABSENT if value is None else word(value)


def _cells(
    values: Sequence[Interval | None], marks: Sequence[str], sizes: Sequence[int], absent: Sequence[str]
) -> list[str]:
    """Formats `mean ± half`, aligned, to two digits of the middle half; four digits of the mean where there is none.

    A mean over fewer seeds than the row has is followed by their number. absent: what stands for None.
    """
    known = [value for value in values if value]
    halves = [value.mean - value.low for value in known if value.low is not None]
    places = _places(
        [h for h in halves if h > 1e-9 * _largest([v.mean for v in known])], [value.mean for value in known]
    )
    means = [no if v is None else f"{v.mean:.{places}f}" for v, no in zip(values, absent, strict=True)]
    spreads = [
        "" if value is None or value.low is None else f" ± {value.mean - value.low:.{places}f}" for value in values
    ]
    fewer = [f" ({v.n})" if v and v.n < size else "" for v, size in zip(values, sizes, strict=True)]
    parts = [
        _padded(means, str.rjust),
        _padded(spreads, str.ljust),
        _padded(fewer, str.ljust),
        _padded(marks, str.ljust),
    ]
    return ["".join(cell) for cell in zip(*parts, strict=True)]


def _places(halves: Sequence[float], means: Sequence[float]) -> int:
    """Returns the decimals of a column."""
    if all(float(mean).is_integer() for mean in means) and not halves:
        return 0
    digits = (
        1 - math.floor(math.log10(statistics.median(halves))) if halves else 3 - math.floor(math.log10(_largest(means)))
    )
    return min(max(digits, 0), max(5 - math.floor(math.log10(_largest(means))), 0), 6)


def _largest(means: Sequence[float]) -> float:
    return max(map(abs, means), default=0.0) or 1.0


def _padded(texts: Sequence[str], pad: Any) -> list[str]:
    width = max(map(len, texts))
    return [pad(text, width) for text in texts]


def layout(fixed: list[list[str]], flowing: list[list[str]], width: int) -> str:
    """Sets columns side by side; where they do not fit, in blocks that each begin with the fixed ones."""
    room = width - max(max(map(len, column)) for column in flowing) - len(GAP)
    while len(GAP) * len(fixed) + sum(max(map(len, column)) for column in fixed) > room:
        i = max(range(len(fixed)), key=lambda i: max(map(len, fixed[i])))
        longest = max(map(len, fixed[i]))
        if longest <= 6:
            break
        fixed[i] = [text if len(text) < longest else text[: longest - 2] + "…" for text in fixed[i]]
    left = [_padded(column, str.ljust) for column in fixed]
    blocks, block = [], list(left)
    for column in (_padded(column, str.rjust) for column in flowing):
        if len(block) > len(left) and sum(len(c[0]) + len(GAP) for c in (*block, column)) - len(GAP) > width:
            blocks.append(block)
            block = list(left)
        block.append(column)
    blocks.append(block)
    lines = [[GAP.join(cells).rstrip() for cells in zip(*block, strict=True)] for block in blocks]
    return "\n\n".join("\n".join(block) for block in lines)


def records(
    rows: Sequence[Configuration], labels: Sequence[str], figures: Sequence[str], rankings: Mapping[str, Ranking]
) -> list[dict[str, Any]]:
    """Returns a JSON record per configuration. A metric whose seeds cannot be averaged has null for its mean."""
    result = []
    for i, row in enumerate(rows):
        measured = {}
        for figure, ranking in ((figure, rankings[figure]) for figure in figures):
            if figure in row.mixed:
                why = row.mixed[figure]
                measured[figure] = {
                    "mean": None,
                    "low": None,
                    "high": None,
                    "n": why.n,
                    "rank": None,
                    "mixed": why.what,
                }
            elif figure in row.figures:
                place = "best" if i in ranking.best else "not separated from the best" if i in ranking.tied else None
                measured[figure] = {**row.figures[figure]._asdict(), "rank": place}
        settings = {key: row.settings.get(key) for key in labels}
        result.append(
            {
                "settings": settings,
                "runs": [run.name for run in row.runs],
                "seeds": [run.seed for run in row.runs],
                "figures": measured,
            }
        )
    return result


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """Writes records as CSV: mean, low, high and n of each metric, empty where there is none."""
    names = dict.fromkeys(name for record in records for name in record["figures"])
    rows = []
    for record in records:
        row = {key: json.dumps(v) if isinstance(v, list) else v for key, v in record["settings"].items()}
        row |= {"seeds": " ".join(map(str, record["seeds"])), "runs": json.dumps(record["runs"])}
        for name in names:
            measured = record["figures"].get(name, {})
            row |= {f"{name}_{part}": measured.get(part) for part in Interval._fields}
        rows.append(row)
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
