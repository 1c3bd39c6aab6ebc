"""Table "runs": whole runs. What bfloat16 does to the result, and what all but the training steps takes.

    python scripts/benchmarks/runs.py --root data    MNIST from ./data; without it, scikit-learn's digits

Ten epochs of `vaelab train` with its defaults: validation, checkpoints, health and pictures as always.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import Row, arguments, parse, save
from lab import Shares

from vaelab.cli import main as vaelab

RUNS = {
    "vae": [],
    "vae, precision=bf16-mixed": ["trainer.precision=bf16-mixed"],
    "vqvae": ["model=vqvae"],
}


def measure(label: str, choices: list[str], epochs: int) -> tuple[Row, float]:
    """Measures a run: its row, and the test metric that selects the best checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["accelerator=cpu", f"trainer.max_epochs={epochs}", f"run.dir={folder}/run"]
        if vaelab(["train", "+callbacks.shares._target_=lab.Shares", *overrides, *choices]):
            raise SystemExit(f"vaelab train {' '.join(choices)} failed")
        metrics = json.loads((Path(folder) / "run" / "summary.json").read_text())["metrics"]
    name = "test/elbo" if "test/elbo" in metrics else "test/reconstruction"
    extra = {
        "training steps of an epoch": f"{statistics.median(Shares.steps):.2f} s",
        "validation": f"{sum(Shares.validation) / Shares.fit:.1%}",
        "all else": f"{1 - (sum(Shares.steps) + sum(Shares.validation)) / Shares.fit:.1%}",
        "test figure": f"{name} {metrics[name]:.2f}",
    }
    return {"label": label, "extra": extra}, metrics[name]


def main() -> int:
    assert __doc__
    parser = arguments(__doc__, rounds=10)
    parser.add_argument("--root", help="where MNIST lies, as torchvision puts it")
    options = parse(parser)
    data = ["dataset=mnist", f"dataset.root={options.root}"] if options.root else ["dataset=digits"]
    rows, metrics = [], {}
    for label, choices in RUNS.items():
        row, metrics[label] = measure(label, [*data, *choices], options.rounds)
        rows.append(row)
    plain, narrow = metrics["vae"], metrics["vae, precision=bf16-mixed"]
    notes = f"""{options.rounds} epochs of {"MNIST" if options.root else "digits"} with the defaults of `vaelab train`.
        Validation, and all else (checkpoints, health, pictures): shares of the fit. bfloat16 changes the test ELBO by
        {narrow - plain:+.2f} nats."""
    save("runs", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
