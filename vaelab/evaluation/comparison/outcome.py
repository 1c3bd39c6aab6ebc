"""Makes the outcome of a comparison: its text for the terminal, and the content of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vaelab.core.files import write_text
from vaelab.evaluation.comparison import configurations, notes, tables
from vaelab.evaluation.comparison.rate_distortion import rate_distortion
from vaelab.evaluation.comparison.selection import figures_shown
from vaelab.evaluation.comparison.sources import gather, measure
from vaelab.runs import SweepFiles


def answer(sweep: Path) -> str:
    """Writes sweep.csv and sweep.json into a sweep's folder: all metrics of its configurations, over seeds.

    Returns tables of the main metrics, of validation images if the test was left out. Empty if no run is finished.
    """
    for split in ("test", "val", "train"):
        rows, known, left_out = gather([sweep], split)
        if rows and known:
            written = content(rows, known, split, left_out)
            for path in (SweepFiles(sweep).table, SweepFiles(sweep).content):
                export(path, written)
            asked = {"split": split, "figures": "main"}
            width = shutil.get_terminal_size((100, 24)).columns
            return text(rows, figures_shown("main", known, split), asked, left_out, width)
    return ""


def export(path: Path, content: dict[str, Any]) -> None:
    """Writes the content of a comparison as CSV or JSON, as the suffix says."""
    text = json.dumps(content, indent=2) if path.suffix == ".json" else tables.as_csv(content["configurations"])
    write_text(path, text.rstrip() + "\n")


def content(rows: Any, figures: list[str], split: str, left_out: dict[str, str]) -> dict[str, Any]:
    """Returns the content of a comparison's JSON file."""
    labels = [key for keys in configurations.columns(rows) for key in keys]
    rankings = {figure: configurations.rank(rows, figure) for figure in figures}
    return {
        "split": split,
        "interval": "95 %, Student's t over seeds",
        "configurations": tables.records(rows, labels, figures, rankings),
        "not_ranked": notes.refusals({figure: figure for figure in figures}, rankings),
        "outdated": [run.name for row in rows for run in row.runs if run.outdated],
        "left_out": left_out,
    }


def text(rows: Any, chosen: list[str], config: dict[str, Any], left_out: dict[str, str], width: int) -> str:
    """Returns the printed text: the tables, and the lines that say how to read them."""
    labels, also = configurations.columns(rows)
    names = tables.titles(chosen)
    rankings = {figure: configurations.rank(rows, figure) for figure in names}
    lines = [notes.heading(rows, config["split"]), "", tables.figures_table(rows, labels, names, rankings, width), ""]
    lines += notes.legend(rows, names, rankings) + notes.differing_too(also)
    lines += notes.mixed(rows, names) + notes.schedules(rows)
    if len(rows) > 1:
        lines += notes.refusals(names, rankings) + notes.objectives(rows, names, rankings)
        lines += notes.codes_beside_elbo(rows, names)
    for curve in rate_distortion(rows) if config["figures"] in ("main", "all") else []:
        lines += ["", tables.curve_heading(rows, curve), "", tables.curve_table(rows, curve, width)]
    lines += [""] + [f"left out: {name}: {why}" for name, why in sorted(left_out.items())]
    lines += notes.unevaluated(rows, lambda run: measure(run, config["split"]))
    return "\n".join(notes.folded(lines, width)).rstrip()
