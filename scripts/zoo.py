"""Trains every variant on MNIST with one budget, measures it, and tabulates what came of it.

    python scripts/zoo.py DATA                          DATA is the folder of dataset=mnist
    python scripts/zoo.py DATA --epochs 30 --only vae "iwae, K = 5"

Binarised images, an MLP of 512 and 256, 20 latents, one seed. What follows `--train` goes to all runs. Prints a
Markdown table and writes it to outputs/zoo/table.md, beside the runs; one that is there already is not trained again.
The time is a training step's as a multiple of the `vae`'s: the quickest of each, in rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
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


def row(label: str, run: Path, time: float) -> str:
    """Writes a row of the table; what a variant does not have is a dash."""
    figures = json.loads((run / "evaluation.json").read_text())["figures"]
    cells = [f"{figures[name]:{form}}" if name in figures else "–" for name, form in COLUMNS.values()]
    return f"| {' | '.join([label, *cells, f'{time:.2f}'])} |"


def times(labels: list[str], data: list[str], rounds: int) -> dict[str, float]:
    """Measures a step of each row as a multiple of the first one's: the quickest of all rounds, in turns.

    Whatever else the machine does makes a step longer, never shorter.
    """
    first = next(iter(ROWS))
    best = dict.fromkeys([first, *labels], math.inf)
    for _ in range(rounds):
        for label in best:
            best[label] = min(best[label], step(ROWS[label], data))
    return {label: best[label] / best[first] for label in labels}


def step(words: list[str], data: list[str]) -> float:
    """Measures a training step in the run's own loop, milliseconds, the quickest of six times 30."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "bench.json")
        length = ["bench.steps=30", "bench.rounds=6", f"bench.output={output}"]
        command = [sys.executable, "-m", "vaelab", "bench", *words, *data, *length]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(output.read_text())["lab_ms"]["least"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of MNIST")
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of the rows")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of times; default: %(default)s")
    parser.add_argument("--train", nargs="+", default=[], metavar="KEY=VALUE", help="further arguments of all runs")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    data = ["dataset=mnist", f"dataset.root={options.root.resolve()}", "dataset.binarize=dynamic", "report=false"]
    data += ["network=mlp_512_256", f"trainer.max_epochs={options.epochs}"]
    labels = [label for label in ROWS if label in (options.only or ROWS)]
    runs = {label: OUTPUTS / "".join(c if c.isalnum() else "_" for c in label) for label in labels}
    for label, run in runs.items():
        if not (run / "evaluation.json").exists():
            evaluate = [f"run={run}", "sections=[likelihood,latents,samples]", "importance_samples=100", "gap_images=8"]
            command = [sys.executable, "-m", "vaelab"]
            subprocess.run([*command, "train", *ROWS[label], *data, f"run.dir={run}", *options.train], check=True)
            subprocess.run([*command, "eval", *evaluate], check=False)  # 2 where a variant lacks one of the sections
    taken = times(labels, [*data, *options.train], options.rounds)
    lines = [f"| variant | {' | '.join(COLUMNS)} | time |", f"|---|{'---:|' * (len(COLUMNS) + 1)}"]
    table = "\n".join([*lines, *(row(label, run, taken[label]) for label, run in runs.items())])
    (OUTPUTS / "table.md").write_text(table + "\n")
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
