"""Table "sweeps": whole sweeps whose jobs train as one, beside the same jobs one after the other.

    python scripts/benchmarks/sweeps.py --root data      MNIST from ./data; without it, random images

Each sweep is a command of its own, from its start to its end; the launchers take turns.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HERE, Row, arguments, compare, interleave, parse, save
from lab import noise_set

SMALL = ["network.hidden_dims=[32]", "model.latent_dim=4", "dataset.batch_size=64"]
MIDDLE = ["network.hidden_dims=[256]", "model.latent_dim=16"]
BETAS, SEEDS = ("model=beta", "model.beta"), ("model=vae", "seed")
SWEEPS = {
    "8 values of beta, 784-32-4": (BETAS, 8, SMALL),
    "16 values of beta, 784-32-4": (BETAS, 16, SMALL),
    "8 seeds, 784-32-4": (SEEDS, 8, SMALL),
    "16 seeds, 784-32-4": (SEEDS, 16, SMALL),
    "4 seeds, 784-256-16": (SEEDS, 4, MIDDLE),
    "8 seeds, 784-256-16": (SEEDS, 8, MIDDLE),
}
"""What is swept, how many jobs, and of which sizes."""


LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "vectorized": ["hydra/launcher=vectorized"],
    "vectorized, exact=false": ["hydra/launcher=vectorized", "hydra.launcher.exact=false"],
}


def sweep(launcher: str, swept: tuple[str, str], jobs: int, options: list[str]) -> float:
    """Runs a sweep, and returns the seconds that it took."""
    model, key = swept
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # of the random images
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    values = ",".join(str(1 + job) for job in range(jobs))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vaelab", "train", "-m", *LAUNCHERS[launcher], f"sweep.dir={folder}"]
        command += [model, f"{key}={values}", *options, "accelerator=cpu", "trainer.enable_progress_bar=false"]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\n{' '.join(command)} failed")
        return time.perf_counter() - started


def main() -> int:
    assert __doc__
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--root", help="where MNIST lies, as torchvision puts it")
    parser.add_argument("--epochs", type=int, default=1, help="of each job (default: %(default)s)")
    options = parse(parser)
    data = noise_set(256 if options.quick else 60_000)
    if options.root:
        data = ["dataset=mnist", f"dataset.root={Path(options.root).resolve()}"]
    given = [*data, "dataset.val_size=0", "test=false", "report=false", f"trainer.max_epochs={options.epochs}"]
    images = "MNIST" if options.root else "Random images of 1x28x28"
    notes = f"""{images}, epochs: {options.epochs}. Whole commands, with their start of some four seconds, in
        {options.rounds} rounds of all; a ratio below 1 is a gain."""
    rows: list[Row] = []
    for name, (swept, jobs, sizes) in list(SWEEPS.items())[: 1 if options.quick else None]:
        runs = {launcher: functools.partial(sweep, launcher, swept, jobs, [*given, *sizes]) for launcher in LAUNCHERS}
        rows += compare(interleave(runs, options.rounds), "basic", name)
        save("sweeps", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
