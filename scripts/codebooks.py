"""Trains a VQ-VAE with each codebook on a folder of images, and tabulates what came of it.

    python scripts/codebooks.py cifar10_images                  the folder holds train/<class>/* and test/<class>/*
    python scripts/codebooks.py cifar10_images --codes 4096 --epochs 10
    python scripts/codebooks.py cifar10_images --only lfq "ema, rotation" --train network.hidden_dims=[32,64]

What follows `--train` goes to all runs. Prints a Markdown table and writes it to outputs/codebooks/K/table.md, beside
the runs; one that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
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
    """Writes a row of the table: use of the codes and errors on test images, and time."""
    summary, figures = (json.loads((run / f"{name}.json").read_text()) for name in ("summary", "evaluation"))
    found = figures["figures"]
    cells = [
        label,
        f"{found['codebook/usage']:.1%}",
        f"{found['codebook/perplexity']:.0f}",
        f"{found['reconstruction/mse_mean']:.5f}",
        f"{found['reconstruction/psnr_mean']:.2f}",
        f"{1000 * summary['seconds'] / summary['steps']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of images")
    parser.add_argument("--codes", type=int, default=512, choices=LEVELS, help="K (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of the rows")
    parser.add_argument("--train", nargs="+", default=[], metavar="KEY=VALUE", help="further arguments of all runs")
    options = parser.parse_args()
    rows = codebooks(options.codes)
    if unknown := set(options.only or ()) - rows.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    folder = OUTPUTS / str(options.codes)
    data = ["experiment=cifar10_vqvae", "dataset=folder", f"dataset.root={options.root.resolve()}", "report=false"]
    lines = [
        "| `codebook` | codes in use | perplexity | MSE | PSNR, dB | ms per step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, words in rows.items():
        run = folder / label.replace(", ", "_").replace(" ", "_")
        if label not in (options.only or rows):
            continue
        if not (run / "evaluation.json").exists():
            train = [*data, f"trainer.max_epochs={options.epochs}", f"run.dir={run}", *words, *options.train]
            evaluate = [f"run={run}", "sections=[reconstruction,codebook]"]
            for command in (["train", *train], ["eval", *evaluate]):
                subprocess.run([sys.executable, "-m", "vaelab", *command], check=True)
        lines.append(row(label, run))
    table = "\n".join(lines)
    (folder / "table.md").write_text(table + "\n")
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
