"""Writes the lines around a comparison's tables: what is compared, what the signs mean, what is not ranked and why."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vaelab.evaluation.comparison import tables
from vaelab.evaluation.comparison.configurations import ALWAYS_SHOWN, Configuration, Ranking, word
from vaelab.evaluation.comparison.rules import REASONS, rule
from vaelab.runs import sweep_of


def refusals(names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> list[str]:
    """Returns a line per reason for which metrics are not ranked."""
    titles_by_reason: dict[str, dict[str, list[str]]] = {}
    for figure, title in names.items():
        for why, what in rankings[figure].refused:
            titles_by_reason.setdefault(why, {}).setdefault(what, []).append(title)
    lines = [
        f"{_titles(across)}: not ranked across {'; '.join(across)}: {REASONS[why]}"
        for why, across in titles_by_reason.items()
    ]
    open_ended = [title for figure, title in names.items() if not rule(figure).better]
    return lines + ([f"{', '.join(open_ended)}: not ranked: neither more nor less is better"] if open_ended else [])


def _titles(by_difference: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(dict.fromkeys(title for titles in by_difference.values() for title in titles))


def mixed(rows: Sequence[Configuration], names: Mapping[str, str]) -> list[str]:
    """Returns a line per reason for which seeds of a row have no mean."""
    titles_by_reason: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for figure in (figure for figure in names if figure in row.mixed):
            why = row.mixed[figure]
            titles_by_reason.setdefault(why.aspect, {}).setdefault(why.what, []).append(names[figure])
    return [
        f"{_titles(across)}: mixed: seeds of one row have {'; '.join(across)}: {REASONS[why]}"
        for why, across in titles_by_reason.items()
    ]


def schedules(rows: Sequence[Configuration]) -> list[str]:
    """Returns a line where the measured weights' β or C is not the one that the rows are labelled with."""
    lines = []
    for name, unreached in tables.unreached(rows).items():
        values = {row.settings["checkpoint"]: None for row in unreached}
        of = [[run.scheduled[name] for run in row.runs if name in run.scheduled] for row in unreached]
        texts = [f"{tables.span([value for value, _ in v])} of {v[0][1]:.3g}" for v in of]
        which = f"the {' and '.join(values)} checkpoints of {len(unreached)} row{'s' * (len(unreached) > 1)}"
        listed = ", ".join(dict.fromkeys(texts))
        lines.append(f"{name}: {which} were reached before the schedule ended: {name} {listed}")
    return lines


def objectives(rows: Sequence[Configuration], names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> list[str]:
    """Returns a line where a ranked metric is no likelihood."""
    titles_by_text: dict[str, list[str]] = {}
    for figure, title in names.items():
        if "likelihood" in rule(figure).agree:
            for i in rankings[figure].best:
                aspect = rows[i].runs[0].aspects["likelihood"]
                if str(aspect["log_likelihood_is"]).startswith("not a density"):
                    text = f"likelihood={aspect['likelihood']} is {aspect['log_likelihood_is']}"
                    titles_by_text.setdefault(text, []).append(title)
    return [
        f"{', '.join(dict.fromkeys(titles))}: ranked as values of an objective only: {text}"
        for text, titles in titles_by_text.items()
    ]


def codes_beside_elbo(rows: Sequence[Configuration], names: Mapping[str, str]) -> list[str]:
    """Returns a line where a codebook's rate + distortion might be taken for an ELBO."""
    elbo = "likelihood/elbo"
    without = [row for row in rows if elbo not in row.figures and "codebook/perplexity" in row.figures]
    if elbo not in names or not without:
        return []
    models = ", ".join(dict.fromkeys(str(row.settings.get("model")) for row in without))
    why = "its codes have no learned prior, and the rate depends on which one is assumed"
    return [f"elbo: model={models} has none; rate + distortion is not ranked against it: {why}"]


def heading(rows: Sequence[Configuration], split: str) -> str:
    """Returns the first line: how many runs are compared, and what they all have in common."""
    runs = sum(len(row.runs) for row in rows)
    settings = {key: [row.settings.get(key) for row in rows] for key in ALWAYS_SHOWN[:4]}
    common = [f"{key}={word(v[0])}" for key, v in settings.items() if v[0] is not None and all(x == v[0] for x in v)]
    counts = f"{runs} run{'s' * (runs > 1)} in {len(rows)} configuration{'s' * (len(rows) > 1)}"
    return ", ".join([f"{counts}: split={split}", *common])


def legend(rows: Sequence[Configuration], names: Mapping[str, str], rankings: Mapping[str, Ranking]) -> list[str]:
    """Explains the table's signs, as far as it has them."""
    sizes = {len(row.runs) for row in rows}
    letters = tables.sets_by_letter(names, rankings)
    parts = ["mean ± 95 % interval over n seeds (Student's t)"] if max(sizes) > 1 else []
    parts += ["n = 1 is a single seed: it has no interval"] if 1 in sizes else []
    best = "* best, where there are letters of the rows with its letter" if letters else "* best"
    parts += [best] if any(rankings[name].best for name in names) else []
    parts += ["~ not separated from it: the intervals overlap"] if any(rankings[name].tied for name in names) else []
    counts = [(row.figures[name].n, len(row.runs)) for row in rows for name in names if name in row.figures]
    parts += ["a number in brackets is a metric's own n"] if any(n < seeds for n, seeds in counts) else []
    parts += ["one configuration: there is nothing to rank"] if len(rows) == 1 else []
    shared: dict[str, set[str]] = {}
    for sets in (rankings[name].sets for name in names if len(rankings[name].sets) > 1):
        for members, what in sets:
            shared.setdefault(letters[tuple(members)], set()).add(what)
    known = "; ".join(f"{letter}: {min(texts, key=len)}" for letter, texts in sorted(shared.items()))
    return ["; ".join(parts), *([f"only rows with the same letter can be compared: {known}"] if known else [])]


def differing_too(keys: Sequence[str]) -> list[str]:
    """Returns a line for settings that differ but have no column; of nested ones the topmost."""
    top = [key for key in keys if not any(key.startswith(f"{other}.") for other in keys)]
    return [f"these differ, too, along with the columns: {', '.join(top)}"] if top else []


def unevaluated(rows: Sequence[Configuration], command: Callable[[str], str]) -> list[str]:
    """Returns lines that name the runs without an evaluation, or with an outdated one.

    command: evaluates a run, or the runs of a sweep, which it is given where none of these has an evaluation.
    """
    old = [run.name for row in rows for run in row.runs if run.outdated]
    none = [run.name for row in rows for run in row.runs if not run.evaluated and not run.outdated]
    texts = {
        "outdated, so ignored, as their best checkpoints are newer: evaluations of {}; to make one again: {}": old,
        "not evaluated, so only with metrics of training's end: {}; to evaluate: {}": none,
    }
    every = [run.name for row in rows for run in row.runs]
    return [text.format(_places(names), command(_whole(names, every))) for text, names in texts.items() if names]


def _whole(names: Sequence[str], every: Sequence[str]) -> str:
    """Returns the folder of the first run's sweep where all of its runs are among the names, else the first run."""
    sweep = sweep_of(Path(names[0]))
    jobs = [name for name in every if sweep_of(Path(name)) == sweep]
    return str(Path(names[0]).parent) if sweep and len(jobs) > 1 and set(jobs) <= set(names) else names[0]


def _places(names: Sequence[str]) -> str:
    """Names the runs, by their folder if they are many."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(str(Path(name).parent), []).append(name)
    some = [f"{len(n)} in {folder}" if len(n) > 3 else ", ".join(sorted(n)) for folder, n in sorted(folders.items())]
    return ", ".join(some)


def folded(lines: Sequence[str], width: int) -> list[str]:
    """Folds lines of prose at the width, and leaves tables, which have several lines, as they are."""
    fold = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line if "\n" in line else fold.fill(line) for line in lines]
