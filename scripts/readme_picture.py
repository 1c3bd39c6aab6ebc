"""Makes docs/images/mnist.png from the recipes' runs, with the first draws of seed 0: nothing is picked.

python scripts/recipes.py mnist_vae mnist_cvae --root ../data
python scripts/readme_picture.py --root ../data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from recipes import OUTPUTS

import vaelab
from vaelab.core.config import build
from vaelab.figures.pixels import grid, pairs, save_png
from vaelab.runs import read_config

GAP = 24
"""Width of the white gap between the two halves, in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where MNIST lies (default: %(default)s)")
    config = read_config(OUTPUTS / "mnist_vae")["dataset"] | {"root": parser.parse_args().root}
    data = build(config)
    data.setup()
    labels = data.test.labels
    # the first and the second test image of each class
    first = torch.cat([(labels == c).nonzero()[rank] for rank in range(2) for c in range(10)])
    x = data.as_model_sees(data.test.batch(first)).images
    left = pairs(x, vaelab.load(OUTPUTS / "mnist_vae").reconstruct(x), 10)
    cvae = vaelab.load(OUTPUTS / "mnist_cvae")
    torch.manual_seed(0)
    z = torch.randn(4, cvae.latent_dim).repeat_interleave(10, 0)  # a draw per row, a class per column
    with torch.no_grad():
        right = grid(cvae.likelihood.mean(cvae.decode(z, torch.arange(10).repeat(4))), 10)
    white = torch.full((left.shape[0], GAP, 3), 255, dtype=torch.uint8)
    save_png(torch.cat([left, white, right], 1), Path("docs/images/mnist.png"))


if __name__ == "__main__":
    main()
