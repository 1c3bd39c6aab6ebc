"""Makes the pictures of docs/ from runs, as `vaelab report` draws them: nothing is picked.

python scripts/recipes.py mnist_vae mnist_cvae mnist_vqvae mnist_capacity mnist_capacity_l1 --root ../data
vaelab train model=ae dataset=mnist trainer.max_epochs=10 run.dir=outputs/recipes/mnist_ae
vaelab train experiment=beta_64 run.dir=outputs/recipes/beta_64
python scripts/docs_pictures.py --root ../data
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import Any

from recipes import OUTPUTS

from vaelab.figures import style
from vaelab.runs import read_metrics

IMAGES = Path("docs/images")
PICTURES = {
    "ae": ("mnist_ae", "interpolations"),
    "vae": ("mnist_vae", "kl_per_dim"),
    "beta": ("beta_64", "traversals"),
    "cvae": ("mnist_cvae", "classes"),
    "vqvae": ("mnist_vqvae", "code_maps"),
}
"""Run and figure that each page of docs/ shows."""
CONSTRAINTS = {"Lagrangian": ("mnist_capacity", style.BLUE), "l1, as published": ("mnist_capacity_l1", style.VERMILION)}


@style.styled
def capacities(runs: dict[str, tuple[Path, str]]) -> Any:
    """Draws KL with C, and reconstruction, of runs with different constraints, each in its colour."""
    figure, (left, right) = style.new(9, 3.2, 1, 2)
    for name, (run, colour) in runs.items():
        rows = [row for row in read_metrics(run) if "step/kl" in row]
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["step/kl"] for row in rows], color=colour, lw=1, label=f"KL, {name}")
        right.plot(steps, [row["step/reconstruction"] for row in rows], color=colour, lw=1, label=name)
        target = [row["step/capacity"] for row in rows]
    left.plot(steps, target, color=style.BLACK, ls=style.LINES["val"], lw=1, label="C")
    left.set(title="KL and C, nats per image", xlabel="step")
    right.set(title="reconstruction, nats per image", xlabel="step", ylim=(70, 260))
    left.legend()
    right.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where MNIST lies (default: %(default)s)")
    root = parser.parse_args().root
    for page, (name, figure) in PICTURES.items():
        run = OUTPUTS / name
        moved = [] if name == "beta_64" else [f"root={root}"]
        subprocess.run(["vaelab", "report", f"run={run}", *moved], check=True)
        shutil.copy(run / "figures" / f"{figure}.png", IMAGES / f"{page}.png")
    style.save(capacities({name: (OUTPUTS / run, colour) for name, (run, colour) in CONSTRAINTS.items()}),
               IMAGES / "capacity.png")  # fmt: skip


if __name__ == "__main__":
    main()
