"""Measures whether generated images help a classifier that has few labelled ones, on MNIST.

    python scripts/augmentation_study.py --root data
    python scripts/augmentation_study.py --root data --labelled 100 --seeds 0

For each number of labelled images, as many of each class, and each seed: a conditional VAE is trained on these images
alone, `vaelab sample class_folders=true` writes 10,000 of its images, and a small classifier (that of `vaelab eval`,
500 steps of 128 images) is trained on the labelled images alone, on both, a half each, and on the labelled ones moved
by up to two pixels (`augment=shifts`). Prints its accuracy on the 10,000 test images as a Markdown table, mean and
range over the seeds, and writes it to OUT/table.md, beside the runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vaelab.cli import main as vaelab
from vaelab.datasets import MNIST
from vaelab.evaluation.metrics.judge import train_judge
from vaelab.nn.augment import Augment

EPOCHS = {100: 300, 1000: 100, 10_000: 20}
GENERATED = 10_000
SHOWN = 64_000
"""Images that the classifier is shown."""
SHIFT = 2
KINDS = ("labelled", "and generated", "shifted")


def mnist(root: Path) -> MNIST:
    """Reads MNIST, all 60,000 training images of it."""
    data = MNIST(
        root=str(root), download=False, batch_size=128, val_size=0, binarize="none", pixel_range=(0.0, 1.0),
        storage="resident", num_workers=0, seed=0, split_seed=0,
    )  # fmt: skip
    data.setup()
    return data


def labelled(labels: Tensor, count: int, seed: int) -> Tensor:
    """Chooses as many images of each class. Returns their indices."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][: count // 10] for label in range(10)])


def generated(images: Tensor, labels: Tensor, seed: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Trains a conditional VAE on images and draws others from it, by the folder that `vaelab sample` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labelled.npz").open("wb") as file:
        np.savez(file, x=images.numpy(), labels=labels.numpy(), test_x=images[:10].numpy(), test_labels=labels[:10])
    run, made = folder / f"run{len(images)}-{seed}", folder / f"made{len(images)}-{seed}"
    epochs = EPOCHS.get(len(images), max(1, 200_000 // len(images)))
    given = ["model=cvae", "dataset=arrays", f"dataset.root={folder}/labelled.npz", f"trainer.max_epochs={epochs}"]
    given += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "test=false", "report=false"]
    given += [f"seed={seed}", f"run.dir={run}"]
    if vaelab(["train", *given]) or vaelab(
        ["sample", f"run={run}", f"n={GENERATED}", f"seed={seed}", f"out={made}/", "class_folders=true", "device=cpu"]
    ):
        raise SystemExit("a command failed")
    files = sorted(made.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    return torch.from_numpy(pixels)[:, None], torch.tensor([int(file.parent.name) for file in files])


def accuracies(data: MNIST, count: int, seed: int, out: Path) -> dict[str, float]:
    """Measures the classifier on the test images, trained in each way."""
    everything, test = (part.batch(torch.arange(len(part))) for part in (data.train, data.test))
    chosen = labelled(everything.labels, count, seed)
    x, y = everything.images[chosen], everything.labels[chosen]
    made, classes = generated(x, y, seed, out)
    repeats = -(-len(made) // len(x))
    torch.manual_seed(seed)
    many = -(-SHOWN // len(x))
    shifted = Augment(flip=0.0, flip_vertical=0.0, crop=1.0, shift=SHIFT)(x.repeat(many, 1, 1, 1).float() / 255)
    sets = {
        "labelled": (x, y),
        "and generated": (torch.cat([x.repeat(repeats, 1, 1, 1)[: len(made)], made]),
                          torch.cat([y.repeat(repeats)[: len(made)], classes])),
        "shifted": (shifted, y.repeat(many)),
    }  # fmt: skip
    found = {}
    for kind, (images, labels) in sets.items():
        judge = train_judge(images, labels, 10, seed, progress=False)
        found[kind] = (judge.classify(test.images) == test.labels).double().mean().item()
    print(count, seed, found, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST lies (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/augmentation"), help="default: %(default)s")
    parser.add_argument("--labelled", type=int, nargs="+", default=list(EPOCHS), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    given = parser.parse_args()
    data = mnist(given.root)
    lines = [f"| labelled images | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for count in given.labelled:
        found = [accuracies(data, count, seed, given.out) for seed in given.seeds]
        cells = []
        for kind in KINDS:
            values = [100 * one[kind] for one in found]
            cells.append(f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {count:,} | {' | '.join(cells)} |")
    print("\n".join(lines))
    (given.out / "table.md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
