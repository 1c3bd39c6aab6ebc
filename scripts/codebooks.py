"""Trains a VQ-VAE with each codebook on a folder of images, and tabulates what came of it.

    python scripts/codebooks.py cifar10_images                  the folder holds train/<class>/* and test/<class>/*
    python scripts/codebooks.py cifar10_images --codes 4096 --epochs 10
    python scripts/codebooks.py cifar10_images --only lfq "ema, rotation" -- network.hidden_dims=[32,64]

What follows `--` goes to all runs. Prints a Markdown table and writes it to outputs/codebooks/CODES.md. A run whose
folder is already there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

OUTPUTS = Path("outputs/codebooks")
LEVELS = {64: [8, 8], 512: [8, 8, 8], 4096: [8, 8, 8, 8], 16384: [8, 8, 8, 8, 4]}
"""Levels of fsq for each number of codes."""


def codebooks(codes: int) -> dict[str, list[str]]:
    """Maps the label of each row to the words that choose it."""
    learned, size = "codebook.restart_after", f"model.num_embeddings={codes}"
    return {
        "gradient, no restarts": ["codebook=gradient", f"{learned}=null", size],
        "gradient": ["codebook=gradient", size],
        "ema, no restarts": ["codebook=ema", f"{learned}=null", size],
        "ema": ["codebook=ema", size],
        "ema, rotation": ["codebook=ema", "codebook.rotation=true", size],
        "cosine": ["codebook=cosine", size],
        "simvq": ["codebook=simvq", size],
        "simvq, rotation": ["codebook=simvq", "codebook.rotation=true", size],
        "fsq": ["codebook=fsq", f"codebook.levels={LEVELS[codes]}".replace(" ", "")],
        "lfq": ["codebook=lfq", f"codebook.bits={codes.bit_length() - 1}"],
    }


def row(label: str, run: Path) -> str:
    """Writes a row of the table from a run's summary."""
    summary = json.loads((run / "summary.json").read_text())
    found = summary["metrics"]
    mse = found["test/mse"]
    return (
        f"| {label} | {found['test/codebook_usage']:.1%} | {found['test/perplexity']:.0f} | {mse:.5f} | "
        f"{-10 * math.log10(mse):.2f} | {1000 * summary['seconds'] / summary['steps']:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of images")
    parser.add_argument("--codes", type=int, default=512, choices=LEVELS, help="K (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of the rows")
    parser.add_argument("further", nargs="*", help="further arguments of all runs, after --")
    options = parser.parse_args()
    rows = codebooks(options.codes)
    if unknown := set(options.only or ()) - rows.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    print(rows, row, subprocess, OUTPUTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
