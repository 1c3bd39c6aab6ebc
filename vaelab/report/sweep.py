"""Builds the page of a sweep: its runs side by side, means over seeds, and pictures of each run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from vaelab import __version__
from vaelab.core.words import duration, number
from vaelab.evaluation.comparison import configurations as comparison
from vaelab.evaluation.comparison import notes, selection, tables
from vaelab.evaluation.comparison.rate_distortion import KNOBS, Point, rate_distortion
from vaelab.report import pictures, swept
from vaelab.report.build import Drawing
from vaelab.report.page import render, thumbnail
from vaelab.report.run import STATES, again
from vaelab.report.swept import Job
from vaelab.runs import Files

KINDS = {
    "rate_distortion": (
        "Rate and distortion",
        "What a configuration's codes cost against what its reconstructions miss, nats per image, means over "
        "seeds: lower left is better, a point that another one beats in both is dominated, and a line joins "
        "configurations that differ in β, C or the size of the codebook alone.",
    ),
    "parallel": (
        "All runs",
        "A line per finished run across what was swept and what came out, coloured by the metric in bold: where "
        "lines part by colour at an axis, what was swept there matters.",
    ),
    "against": (
        "Metrics against",
        "A metric against what was swept, means and 95 % intervals over seeds, a line for each set of the other "
        "settings: where intervals overlap, the seeds do not tell the values apart.",
    ),
    "overlaid": (
        "Training curves",
        "The curves of all finished runs on top of one another, a colour for each configuration: lines of one colour "
        "that part show what the seed does.",
    ),
}
"""Kinds of figures of a sweep, each with title and caption; a file's name may go on with the runs that it shows."""
ALBUMS = {"samples": "Samples", "reconstructions": "Reconstructions"}
"""Figures of each run that the page of a sweep shows side by side, with their headings."""


def build(folder: Path, place: Path | None = None) -> str:
    """Renders the page of the sweep in `folder`, from its runs' files. place: the folder of the page, if another."""
    jobs = swept.read(folder)
    keys, also = swept.differing(jobs)
    told = swept.told_apart(jobs) or {key: swept.values(jobs, key) for key in keys}
    place = place or folder
    columns, rows = _table(jobs, keys, place)
    return render(
        "sweep.html",
        kind="sweep",
        title=folder.resolve().name,
        facts=_facts(jobs),
        swept=[(key, ", ".join(values)) for key, values in told.items()],
        also=[key for key in [*keys, *also] if key not in told],
        failed=[_failure(job) for job in jobs if job.status != "finished"],
        columns=columns,
        rows=rows,
        means=_means(jobs),
        groups=pictures.groups(Files(folder).figures, _captions(Files(folder).figures)),
        albums=_albums(jobs, keys, place),
        commands=[again(job.config) for job in jobs if job.config],
        version=__version__,
    )


def draw(folder: Path, formats: tuple[str, ...] = ()) -> dict[str, Path]:
    """Draws the figures of a sweep into SWEEP/figures, in these formats beside PNG. Returns their paths.

    Runs on other data, or of another likelihood, get figures of their own: their metrics cannot be compared.
    """
    from vaelab.figures import sweeps, trends

    finished, drawn = [job for job in swept.read(folder) if job.run], {}
    groups = _comparable(finished)
    for name, jobs in groups.items():
        of, end = (f"{name}: ", f"-{name}") if name else ("", "")
        keys, rows = swept.differing(jobs)[0], swept.configurations(jobs)
        if families := [family for curve in rate_distortion(rows) for family in _families(curve, rows)]:
            named = comparison.columns([rows[p.index] for family in families for p in family])[0]
            labelled = [[(swept.label(rows[p.index].settings, named), *p[1:]) for p in family] for family in families]
            drawn[f"rate_distortion{end}"] = sweeps.rate_distortion(
                labelled, f"{of}rate and distortion" if of else "Rate and distortion"
            )
        metrics = _shown(rows, jobs)
        if len(jobs) > 1 and keys and metrics:
            cells = [[swept.cell(job, key) for key in keys] + [job.metrics.get(n) for n in metrics] for job in jobs]
            titles = [*swept.short(keys).values(), *metrics]
            drawn[f"parallel{end}"] = sweeps.parallel(titles, cells, len(keys), of)
        for key in (key for key in keys if key != "seed"):
            if panels := swept.against(rows, key, keys):
                drawn[f"against-{_as_file(key)}{end}"] = trends.against(
                    swept.short(keys)[key], panels, f"{of}metrics against {key}" if of else f"Metrics against {key}"
                )
        if len(jobs) > 1 and (panels := swept.curves(jobs, keys, metrics)):
            drawn[f"overlaid{end}"] = trends.overlaid(panels, f"{of}{len(jobs)} runs")
    for old in (path for kind in KINDS for path in Files(folder).figures.glob(f"{kind}*.png")):
        old.unlink()
    paths = {name: Files(folder).figure(name) for name in drawn}
    for name, path in paths.items():
        Drawing(formats).save(drawn[name], path)
    return paths


def _captions(figures: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns titles and captions of a sweep's figures, by name; a title says which runs a figure shows."""
    captions = {}
    for kind, (title, text) in KINDS.items():
        for name in sorted(path.stem for path in figures.glob(f"{kind}*.png")):
            of = name.removeprefix(kind).removeprefix("-")
            captions[name] = (f"{title}: {of}" if of else title, text)
    return {"The runs at a glance": captions}


def _comparable(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Groups jobs whose metrics are of the same images and likelihood, by what of these differs between the groups."""
    keys = [key for key in comparison.ALWAYS_SHOWN[1:5] if len({swept.word(job, key) for job in jobs}) > 1]
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        name = "-".join(swept.word(job, key) for key in keys)
        groups.setdefault(_as_file(name), []).append(job)
    return groups


def _as_file(words: str) -> str:
    return re.sub(r"[^\w.+-]", "_", words)


def _families(curve: Sequence[Point], rows: Sequence[comparison.Configuration]) -> list[list[Point]]:
    """Splits a curve into sets of points that differ in β, C or the size of the codebook alone: a line joins those."""
    families: dict[str, list[Point]] = {}
    for point in curve:
        fixed = {k: v for k, v in rows[point.index].settings.items() if k == "model" or k not in KNOBS}
        families.setdefault(repr(sorted(fixed.items())), []).append(point)
    return list(families.values())


def _shown(rows: Sequence[comparison.Configuration], jobs: Sequence[Job]) -> list[str]:
    """Returns the test metrics that at least half of the runs have, but for losses that do not compare or are -ELBO."""
    names = [name for name in swept.figures(jobs) if 2 * sum(name in job.metrics for job in jobs) >= len(jobs)]
    mirrored = all(math.isclose(job.metrics.get("test/loss", 0), -job.metrics.get("test/elbo", 1)) for job in jobs)
    shown = not mirrored and not comparison.rank(rows, "training/loss").refused
    return [name for name in names if name != "test/loss" or shown]


# --- the parts of the page --------------------------------------------------------------------


def _facts(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    states = [job.status for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    facts = [("runs", f"{len(jobs)} ({counts})")]
    for name, part in (("model", "model"), ("data", "data")):
        classes = dict.fromkeys(job.summary[part]["class"] for job in jobs if part in job.summary)
        facts += [(name, ", ".join(classes))] if classes else []
    seconds = sum(job.summary.get("seconds", 0) for job in jobs)
    return [*facts, ("times of the runs, added up", duration(seconds))]


def _failure(job: Job) -> dict[str, Any]:
    why = STATES.get(job.summary.get("status", ""), ("", ""))[1]
    title = f"{job.folder.name}: {job.status}"
    return {"kind": "bad", "title": title, "lines": job.error.strip().splitlines() or [why], "command": None}


def _table(jobs: Sequence[Job], keys: Sequence[str], at: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the columns of the table of runs, after that of their names, and its rows."""
    monitor, metrics, short = _monitor(jobs), swept.figures(jobs), swept.short(keys)
    evaluated = swept.evaluated(jobs)
    columns = [
        {"title": short[key], "number": all(isinstance(swept.cell(job, key), int | float | None) for job in jobs)}
        for key in keys
    ]
    columns += [{"title": "status", "number": False}, {"title": f"best {monitor}".strip(), "number": True}]
    columns += [{"title": name, "number": True} for name in metrics + evaluated]
    rows = []
    for place, job in enumerate(jobs):
        best = job.summary.get("best", {})
        values = [*(swept.cell(job, key) for key in keys), job.status]
        texts = ["" if value is None else comparison.word(value) for value in values]
        measured = [best.get("value"), *(job.metrics.get(name) for name in metrics)]
        measured += [job.run.figures.get(name) if job.run else None for name in evaluated]
        texts += ["" if value is None else number(value) for value in measured]
        cells = [
            {"value": value, "text": text, "number": column["number"], "note": ""}
            for value, text, column in zip(values + measured, texts, columns, strict=True)
        ]
        if not monitor:
            cells[len(values)]["note"] = best.get("by") or ""
        rows.append({"name": job.folder.name, "order": place, "link": _link(job, at), "cells": cells})
    return columns, rows


def _monitor(jobs: Sequence[Job]) -> str:
    """Returns the metric that the best checkpoints were chosen by, if all by the same."""
    names = {job.summary["best"]["by"] for job in jobs if job.summary.get("best", {}).get("by")}
    return names.pop() if len(names) == 1 else ""


def _link(job: Job, at: Path) -> str | None:
    """Returns the path of the run's own report, relative to the page; None if it has none."""
    from urllib.parse import quote

    return quote(relpath(Files(job.folder).report, at)) if Files(job.folder).report.is_file() else None


def _means(jobs: Sequence[Job]) -> dict[str, Any] | None:
    """Returns a row per configuration: each metric's mean and interval over seeds; None if no two differ by seed."""

    rows = swept.configurations(jobs)
    if not any(len(row.runs) > 1 for row in rows):
        return None
    labels = comparison.columns(rows)[0]
    known = sorted({n for row in rows for n in (*row.figures, *row.mixed)}, key=lambda n: (*selection.place(n), n))
    names = tables.titles(selection.figures_shown("main", known, "test"))
    rankings = {name: comparison.rank(rows, name) for name in names}
    texts = notes.legend(rows, names, rankings) + notes.mixed(rows, names) + notes.schedules(rows)
    if len(rows) > 1:
        texts += notes.refusals(names, rankings) + notes.objectives(rows, names, rankings)
    short = swept.short(labels)
    return {
        "labels": [short[key] for key in labels],
        "figures": list(names.values()),
        "rows": [
            {
                "labels": [comparison.word(row.settings.get(key)) for key in labels],
                "n": len(row.runs),
                "cells": [_mean(row, name, i, rankings[name]) for name in names],
            }
            for i, row in enumerate(rows)
        ],
        "notes": texts,
    }


def _mean(row: comparison.Configuration, name: str, place: int, ranking: comparison.Ranking) -> str:
    """Formats a metric as `mean ± half`, with the mark of its rank, and its n where that is less than the row's."""
    if name not in row.figures:
        return "mixed" if name in row.mixed else ""
    mean, low, _, n = row.figures[name]
    mark = " *" if place in ranking.best else " ~" if place in ranking.tied else ""
    half = "" if low is None else f" ± {number(mean - low)}"
    return number(mean) + half + (f" ({n})" if n < len(row.runs) else "") + mark


def _albums(jobs: Sequence[Job], keys: Sequence[str], at: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns thumbnails of the runs side by side, under the headings of ALBUMS."""
    albums = []
    for name, heading in ALBUMS.items():
        cards = [
            {
                "name": job.folder.name,
                "label": swept.label(job.settings, keys),
                "link": _link(job, at),
                "picture": thumbnail(Files(job.folder).figure(name)),
            }
            for job in jobs
            if Files(job.folder).figure(name).is_file()
        ]
        albums += [(heading, cards)] if cards else []
    return albums
