"""Trains every variant on MNIST with one budget, measures it, and tabulates what came of it.

    python scripts/zoo.py DATA                          DATA is the folder of dataset=mnist
    python scripts/zoo.py DATA --epochs 30 --only vae "iwae, K = 5"

Binarised images, an MLP of 512 and 256, 20 latents, one seed. What follows `--train` goes to all runs. Prints a
Markdown table and writes it to outputs/zoo/table.md, beside the runs; one that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

OUTPUTS = Path("outputs/zoo")
GAUSSIAN = ["model.latent_dim=20"]
ROWS = {
    "vae": ["model=vae", *GAUSSIAN],
    "vae, free bits 0.5": ["model=vae", *GAUSSIAN, "model.free_bits=0.5"],
    "beta, β = 4": ["model=beta", *GAUSSIAN, "schedule=constant"],
    "capacity, C = 20": ["model=capacity", *GAUSSIAN, "model.capacity=20"],
    "controlvae, C = 20": ["model=controlvae", *GAUSSIAN],
    "geco, 80 nats": ["model=geco", *GAUSSIAN, "model.target=80"],
    "tcvae, β = 6": ["model=tcvae", *GAUSSIAN],
    "factor, γ = 10": ["model=factor", *GAUSSIAN],
    "dip": ["model=dip", *GAUSSIAN],
    "infovae": ["model=infovae", *GAUSSIAN],
    "wae, points": ["model=wae", *GAUSSIAN],
    "wae, draws": ["model=wae", *GAUSSIAN, "model.encoder=gaussian"],
    "iwae, K = 5": ["model=iwae", *GAUSSIAN, "model.estimator=iwae"],
    "iwae, K = 5, DReG": ["model=iwae", *GAUSSIAN],
    "cvae": ["model=cvae", *GAUSSIAN],
    "svae": ["model=svae", *GAUSSIAN],
    "hierarchical": ["model=hierarchical", *GAUSSIAN, "schedule=warmup"],
    "ae": ["model=ae", *GAUSSIAN],
}
"""The words that choose the variant of each row."""
COLUMNS = {
    "log p̂, nats": ("likelihood/log_p_hat", ".2f"),
    "± se": ("likelihood/log_p_hat_se", ".2f"),
    "reconstruction": ("likelihood/reconstruction", ".1f"),
    "KL": ("likelihood/kl", ".1f"),
    "active": ("latents/active", ".0f"),
    "Fréchet": ("samples/frechet", ".1f"),
}
"""Each column's metric and format."""


def row(label: str, run: Path) -> str:
    """Writes a row of the table; what a variant does not have is a dash."""
    summary, found = (json.loads((run / f"{name}.json").read_text()) for name in ("summary", "evaluation"))
    figures = found["figures"]
    cells = [f"{figures[name]:{form}}" if name in figures else "–" for name, form in COLUMNS.values()]
    seconds = summary["seconds"] / summary["epochs"]
    return f"| {' | '.join([label, *cells, f'{seconds:.1f}'])} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of MNIST")
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of the rows")
    parser.add_argument("--train", nargs="+", default=[], metavar="KEY=VALUE", help="further arguments of all runs")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    data = ["dataset=mnist", f"dataset.root={options.root.resolve()}", "dataset.binarize=dynamic", "report=false"]
    data += ["network=mlp_512_256", f"trainer.max_epochs={options.epochs}"]
    lines = [f"| variant | {' | '.join(COLUMNS)} | s per epoch |", f"|---|{'---:|' * (len(COLUMNS) + 1)}"]
    for label, words in ROWS.items():
        run = OUTPUTS / "".join(c if c.isalnum() else "_" for c in label)
        if label not in (options.only or ROWS):
            continue
        if not (run / "evaluation.json").exists():
            evaluate = [f"run={run}", "sections=[likelihood,latents,samples]", "importance_samples=100", "gap_images=8"]
            command = [sys.executable, "-m", "vaelab"]
            subprocess.run([*command, "train", *words, *data, f"run.dir={run}", *options.train], check=True)
            subprocess.run([*command, "eval", *evaluate], check=False)  # 2 where a variant lacks one of the sections
        lines.append(row(label, run))
    table = "\n".join(lines)
    (OUTPUTS / "table.md").write_text(table + "\n")
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
