"""Prints what check.py has found as tables for docs/performance.md.

python scripts/gpu/tables.py results/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from work import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def lives(found: dict[str, Any]) -> str:
    """Writes a row per variant and precision: what failed, and how far like runs and a resumed one agree."""
    rows = []
    for model, precisions in found.items():
        for precision, life in precisions.items() if model != "failed" else ():
            failed = [name for name, step in life.items() if isinstance(step, dict) and step.get("code")]
            differences = [life.get(f"{which} by") for which in ("like runs differ", "a resumed run differs")]
            cells = ["–" if d is None else "no bit" if d == 0 else f"{d:.2g}" for d in differences]
            rows.append([model, precision, ", ".join(failed) or "nothing", *cells])
    return table(["variant", "precision", "failed", "like runs differ by", "a resumed run differs by"], rows)


def search(found: dict[str, dict[str, float]]) -> str:
    """Writes microseconds by the number of distances held at a time."""
    return table(["", *next(iter(found.values()))], [[name, *taken.values()] for name, taken in found.items()])


def benchmark(found: dict[str, Any]) -> str:
    """Writes the table of a script of scripts/benchmarks."""
    from common import as_markdown

    return as_markdown(found)


def sweeps(found: dict[str, Any]) -> str:
    """Writes a row per sweep."""
    columns = ("ms per step and job", "images per second", "peak memory, MiB")
    gain = "times as fast as one after the other (extrapolated)"
    rows = [
        [name, *(result.get(column, "–") for column in (*columns, gain))]
        if isinstance(result, dict)
        else [name, result]
        for name, result in found.items()
    ]
    return table(["", *columns, gain], rows)


def advice(found: dict[str, Any]) -> str:
    """Writes what each option makes of a step, by configuration."""
    rows = [
        [name, row["arguments"], f"{row['ms']['median']:.2f}", f"{row['ratio']['median']:.3f}"]
        for name, result in found.items()
        for row in result.get("rows", [])
    ]
    return table(["", "arguments", "ms per step", "ratio"], rows)


TABLES = {"variants": lives, "search": search, "training": benchmark, "images": benchmark}
TABLES |= {"sweeps": sweeps, "advice": advice}


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text())
    print(f"Measured on {report['about']['gpu'] or report['about']['cpu']}, torch {report['about']['torch']}.")
    for stage, write in TABLES.items():
        if report.get(stage):
            try:
                print(f"\n### {stage}\n\n{write(report[stage])}")
            except (KeyError, AttributeError) as lack:  # a stage that was cut off
                print(f"\n### {stage}\n\nincomplete: {lack!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
