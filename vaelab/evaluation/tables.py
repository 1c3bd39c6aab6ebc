"""A comparison as text: tables that fit the terminal, and the lines below them."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vaelab.evaluation.comparison import (
    ALWAYS_SHOWN,
    REASONS,
    Configuration,
    Interval,
    Point,
    Ranking,
    columns,
    rule,
    word,
)

TITLES = {"reconstruction/mse_mean": "mse", "disentanglement/dci_disentanglement": "dci"}
ABSENT = "-"
GAP = "  "


def titles(figures: Sequence[str]) -> dict[str, str]:
    """Short names of figures: the last part, where no other one has it."""
    short = {name: TITLES.get(name, name.rpartition("/")[2]) for name in figures}
    return {name: title if list(short.values()).count(title) == 1 else name for name, title in short.items()}


def figures_table(
    rows: Sequence[Configuration],
    labels: Sequence[str],
    names: Mapping[str, str],
    rankings: Mapping[str, Ranking],
    width: int,
) -> str:
    """A row per configuration: its settings, n, and each figure as mean ± half of its interval.

    labels: settings that tell the rows apart. names: titles by figure. width: characters in a line;
    figures that do not fit come in a further block.
    """
    fixed = [*_labels(rows, labels), ["n", *(str(len(row.runs)) for row in rows)]]
    flowing = []
    for figure, title in names.items():
        ranking = rankings[figure]
        marks = ["*" if i in ranking.best else "~" if i in ranking.tied else "" for i in range(len(rows))]
        sizes = [len(row.runs) for row in rows]
        flowing.append([title + " " * any(marks), *_cells([row.figures.get(figure) for row in rows], marks, sizes)])
    return _layout(fixed, flowing, width)


def curve_table(rows: Sequence[Configuration], curve: Sequence[Point], width: int) -> str:
    """A row per point of a rate–distortion curve."""
    own = [rows[point.index] for point in curve]
    errors = [row.figures.get("reconstruction/mse_mean") for row in own]
    means = [
        [Interval(value, None, None, 1) for value in values] for values in zip(*(p[1:3] for p in curve), strict=True)
    ]
    blank, one = [""] * len(own), [1] * len(own)
    flowing = [["rate", *_cells(means[0], blank, one)], ["distortion", *_cells(means[1], blank, one)]]
    if any(errors):
        of_mse = [error and Interval(error.mean, None, None, 1) for error in errors]
        flowing.append(["mse", *_cells(of_mse, blank, one)])
    flowing.append(["", *("dominated" if point.dominated else "" for point in curve)])
    return _layout(_labels(own, columns(own)[0]), flowing, width)


def _labels(rows: Sequence[Configuration], labels: Sequence[str]) -> list[list[str]]:
    last = [key.rpartition(".")[2] for key in labels]
    short = [name if last.count(name) == 1 else key for key, name in zip(labels, last, strict=True)]
    return [[name, *(_shown(row.settings.get(k)) for row in rows)] for k, name in zip(labels, short, strict=True)]


def _shown(value: Any) -> str:
    return ABSENT if value is None else word(value)


def _cells(values: Sequence[Interval | None], marks: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """`mean ± half`, aligned, to two digits of the middle half; four digits of the mean where there is none.

    A figure that fewer seeds have than the row is followed by their number.
    """
    found = [value for value in values if value]
    halves = [value.mean - value.low for value in found if value.low is not None]
    places = _places(
        [h for h in halves if h > 1e-9 * _largest([v.mean for v in found])], [value.mean for value in found]
    )
    means = [ABSENT if value is None else f"{value.mean:.{places}f}" for value in values]
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
    """Decimals of a column."""
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


def _layout(fixed: list[list[str]], flowing: list[list[str]], width: int) -> str:
    """Columns side by side; where they do not fit, in blocks that each begin with the fixed ones."""
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


def refusals(names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> list[str]:
    """A line per reason for which figures are not ranked."""
    across: dict[tuple[str, str], list[str]] = {}
    for figure, title in names.items():
        for refused in rankings[figure].refused:
            across.setdefault(refused, []).append(title)
    lines = [f"{', '.join(t)}: not ranked across {what}: {REASONS[why]}" for (why, what), t in across.items()]
    open_ended = [title for figure, title in names.items() if not rule(figure).better]
    return lines + ([f"{', '.join(open_ended)}: not ranked: neither more nor less is better"] if open_ended else [])


def objectives(rows: Sequence[Configuration], names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> list[str]:
    """A line where what is ranked is no likelihood."""
    found: dict[str, list[str]] = {}
    for figure, title in names.items():
        if "likelihood" in rule(figure).agree:
            for i in rankings[figure].best:
                said = rows[i].runs[0].aspects["likelihood"]
                if str(said["log_likelihood_is"]).startswith("not a density"):
                    text = f"likelihood={said['likelihood']} is {said['log_likelihood_is']}"
                    found.setdefault(text, []).append(title)
    return [
        f"{', '.join(dict.fromkeys(t))}: ranked as values of an objective only: {text}" for text, t in found.items()
    ]


def codes_beside_elbo(rows: Sequence[Configuration], names: Mapping[str, str]) -> list[str]:
    """A line where a codebook's rate + distortion might be taken for an ELBO."""
    elbo = "likelihood/elbo"
    without = [row for row in rows if elbo not in row.figures and "codebook/perplexity" in row.figures]
    if elbo not in names or not without:
        return []
    models = ", ".join(dict.fromkeys(str(row.settings.get("model")) for row in without))
    why = "its codes have no learned prior, and the rate depends on which one is assumed"
    return [f"elbo: model={models} has none; rate + distortion is not ranked against it: {why}"]


def heading(rows: Sequence[Configuration], split: str) -> str:
    """How much is compared, and what all of it has in common."""
    runs = sum(len(row.runs) for row in rows)
    settings = {key: [row.settings.get(key) for row in rows] for key in ALWAYS_SHOWN[:4]}
    common = [f"{key}={word(v[0])}" for key, v in settings.items() if v[0] is not None and all(x == v[0] for x in v)]
    counts = f"{runs} run{'s' * (runs > 1)} in {len(rows)} configuration{'s' * (len(rows) > 1)}"
    return ", ".join([f"{counts}: split={split}", *common])


def legend(rows: Sequence[Configuration], names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> str:
    """What the table's signs mean, as far as it has them."""
    sizes = {len(row.runs) for row in rows}
    said = ["mean ± 95 % interval over n seeds (Student's t)"] if max(sizes) > 1 else []
    said += ["n = 1 is a single seed: it has no interval"] if 1 in sizes else []
    said += ["* best"] if any(rankings[name].best for name in names) else []
    said += ["~ not separated from it: the intervals overlap"] if any(rankings[name].tied for name in names) else []
    said += ["one configuration: there is nothing to rank"] if len(rows) == 1 else []
    return "; ".join(said)


def differing_too(keys: Sequence[str]) -> list[str]:
    """A line for settings that differ but have no column; of nested ones the topmost."""
    top = [key for key in keys if not any(key.startswith(f"{other}.") for other in keys)]
    return [f"these differ, too, along with the columns: {', '.join(top)}"] if top else []


def unevaluated(rows: Sequence[Configuration], command: str) -> list[str]:
    """A line that names the runs without an evaluation, by their folder if they are many; command: what makes one."""
    names = [run.name for row in rows for run in row.runs if not run.evaluated]
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(str(PurePath(name).parent), []).append(name)
    some = [f"{len(n)} in {folder}" if len(n) > 3 else ", ".join(sorted(n)) for folder, n in sorted(folders.items())]
    words = f"not evaluated, so only with figures of training's end: {', '.join(some)}; to evaluate: {command}"
    return [words] if names else []


def curve_heading(rows: Sequence[Configuration], curve: Sequence[Point]) -> str:
    """What a rate–distortion table is of."""
    settings = rows[curve[0].index].settings
    of = ", ".join(f"{key}={word(settings[key])}" for key in ALWAYS_SHOWN[1:4] if key in settings)
    codes = any("likelihood/kl" not in rows[point.index].figures for point in curve)
    rate = "KL; of codes, positions x log K" if codes else "KL"
    return f"rate ({rate}) and distortion (-log p(x|z)), nats per image, means over seeds: {of}"


def folded(lines: Sequence[str], width: int) -> list[str]:
    """Lines of prose folded at the width; tables, which have several lines, as they are."""
    fold = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line if "\n" in line else fold.fill(line) for line in lines]


def records(
    rows: Sequence[Configuration], labels: Sequence[str], figures: Sequence[str], rankings: Mapping[str, Ranking]
) -> list[dict[str, Any]]:
    """What a JSON file says of each configuration."""
    result = []
    for i, row in enumerate(rows):
        measured = {}
        for figure in (figure for figure in figures if figure in row.figures):
            ranking = rankings[figure]
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
    """The same as CSV: mean, low, high and n of each figure, empty where there is none."""
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
