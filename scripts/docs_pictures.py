"""Makes the pictures of docs/ from runs, as `vaelab report` draws them: nothing is picked.

python scripts/recipes.py mnist_vae mnist_cvae mnist_vqvae mnist_capacity mnist_capacity_l1 mnist_m2 --root ../data
vaelab train experiment=mnist_quadrants model.drop=0.1 run.dir=outputs/recipes/mnist_quadrants
vaelab sample run=outputs/recipes/mnist_quadrants level=z
python scripts/zoo.py ../data --epochs 8 --only "controlvae, C = 20" "wae, points" "iwae, K = 5, DReG" "geco, 80 nats"
python scripts/zoo.py ../data --epochs 8 --only infovae
vaelab train model=ae dataset=mnist trainer.max_epochs=10 run.dir=outputs/recipes/mnist_ae
vaelab train model=vqvae2 dataset=mnist trainer.max_epochs=3 run.dir=outputs/recipes/mnist_vqvae2
vaelab train experiment=mnist_vqvae codebook=fsq trainer.max_epochs=3 run.dir=outputs/recipes/mnist_fsq
vaelab train experiment=beta_64 run.dir=outputs/recipes/beta_64
vaelab train experiment=beta_64 model=tcvae run.dir=outputs/recipes/sprites_tcvae
vaelab train experiment=sprites_factor seed=0 run.dir=outputs/recipes/sprites_factor
vaelab train experiment=sprites_dip seed=0 run.dir=outputs/recipes/sprites_dip
python scripts/docs_pictures.py --root ../data                  all pages, or those that are named
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
    "ae": ("recipes/mnist_ae", "interpolations"),
    "vae": ("recipes/mnist_vae", "kl_per_dim"),
    "beta": ("recipes/beta_64", "traversals"),
    "tcvae": ("recipes/sprites_tcvae", "traversals"),
    "factor": ("recipes/sprites_factor", "traversals"),
    "dip": ("recipes/sprites_dip", "traversals"),
    "cvae": ("recipes/mnist_cvae", "classes"),
    "vqvae": ("recipes/mnist_vqvae", "code_maps"),
    "vqvae2": ("recipes/mnist_vqvae2", "code_levels"),
    "fsq": ("recipes/mnist_fsq", "code_maps"),
    "quadrants": ("recipes/mnist_quadrants", "sample"),
    "geco": ("zoo/geco__80_nats", "schedule"),
    "controlvae": ("zoo/controlvae__C___20", "schedule"),
    "wae": ("zoo/wae__points", "real_and_generated"),
    "iwae": ("zoo/iwae__K___5__DReG", "real_and_generated"),
    "infovae": ("zoo/infovae", "real_and_generated"),
    "m2": ("recipes/mnist_m2", "classes"),
}
"""Run, in outputs/, and figure that each page of docs/ shows."""
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
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"all by default: {', '.join(PICTURES)}, capacity")
    parser.add_argument("--root", default="data", help="where MNIST lies (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.pages) - {*PICTURES, "capacity"}:
        parser.error(f"no such page: {', '.join(sorted(unknown))}")
    for page, (name, figure) in PICTURES.items():
        if page in (options.pages or PICTURES):
            run = OUTPUTS.parent / name
            moved = [] if figure == "traversals" else [f"root={options.root}"]  # of sprites, which have no files
            subprocess.run(["vaelab", "report", f"run={run}", *moved], check=True)
            shutil.copy(run / "figures" / f"{figure}.png", IMAGES / f"{page}.png")
    if "capacity" in (options.pages or ["capacity"]):
        curves = capacities({name: (OUTPUTS / run, colour) for name, (run, colour) in CONSTRAINTS.items()})
        style.save(curves, IMAGES / "capacity.png")


if __name__ == "__main__":
    main()
