"""Table "training": an epoch of `vaelab train` beside hand-written loops and other programs, interleaved in one run.

    python scripts/benchmarks/training.py --root data                   MNIST from ./data; without it, random images
    python scripts/benchmarks/training.py --all                         the tutorial's loop for every variant
    python scripts/benchmarks/training.py --pythae ../env/bin/python    beside pythae 0.1.2 in another environment
    python scripts/benchmarks/training.py --with compile=true           and the lab with that option

The lab is the real command with its log files, progress bar and checkpoints. Between two of its epochs
the other loops train as many steps, on the same data.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from common import HERE, Row, arguments, compare, parse, save, store
from lab import noise_set, train
from loops import LAB, Data, Loop, bare, graphed, lightning, tutorial

BATCH = 128


class Pythae:
    """pythae's trainer in another interpreter, which waits while it is not its turn."""

    def __init__(self, python: str, data: Data, folder: Path):
        self.python, self.file, self.folder = python, folder / "images.pt", folder / "pythae"
        self.images, self.log, self.process = data.images, folder / "pythae.log", None

    def __call__(self, steps: int) -> float:
        if self.process is None:
            torch.save(self.images[: steps * BATCH].cpu(), self.file)
            command = [self.python, HERE / "pythae_epochs.py", self.file, self.folder, str(BATCH)]
            command.append(str(torch.get_num_threads()))
            with self.log.open("w") as log:
                pipe = subprocess.PIPE
                self.process = subprocess.Popen([*map(str, command)], stdin=pipe, stdout=pipe, stderr=log, text=True)
        say, hear = self.process.stdin, self.process.stdout
        assert say is not None
        assert hear is not None
        with contextlib.suppress(BrokenPipeError):
            say.write("go\n")
            say.flush()
        for line in hear:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"{self.log.read_text()}\npythae ended early")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def rivals(variant: str, data: Data, options: Any, stack: ExitStack) -> dict[str, Loop]:
    """Makes the loops that are measured beside the lab's."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    loops = {"bare loop": bare(variant, data)}
    if data.images.is_cuda:
        loops["bare loop as a CUDA graph"] = graphed(variant, data)
    if (variant == "vae" or options.all) and options.tutorial:
        loops["tutorial's loop"] = tutorial(variant, data)
    if variant == "vae":
        loops["Lightning with its defaults"] = lightning(variant, data, folder)
    if variant == "vae" and options.pythae:
        other = Pythae(options.pythae, data, folder)
        stack.callback(other.close)
        loops["pythae"] = other
    return loops


def measure(variant: str, option: str | None, options: Any) -> list[Row]:
    """Measures one variant: the median of an epoch, and ratios to the bare loop.

    option: a further argument of the lab; it is then measured beside the bare loop alone.
    """
    if options.root:
        chosen = ["dataset=mnist", f"dataset.root={options.root}", f"dataset.batch_size={BATCH}"]
    else:
        chosen = noise_set(options.images)
    chosen += [option] if option else []
    limit = ["trainer.limit_train_batches=20"] if options.quick else []
    others: dict[str, list[float]] = {}
    loops: dict[str, Loop] = {}
    steps = 0

    def between(trainer: pl.Trainer) -> None:
        nonlocal steps
        if not loops:
            split, device = trainer.datamodule.train, trainer.strategy.root_device  # type: ignore[attr-defined]
            steps = int(trainer.num_training_batches)
            data = Data(split.images.to(device), split.labels.to(device), BATCH)
            loops.update({"bare loop": bare(variant, data)} if option else rivals(variant, data, options, stack))
            others.update({name: [] for name in loops})
        epoch, names = trainer.current_epoch, list(loops)
        start = epoch % len(names)
        for name in names[start:] + names[:start]:
            others[name].append(loops[name](steps))

    with ExitStack() as stack:
        epochs = options.rounds + 1  # the first epoch warms up
        lab_seconds = train([*LAB[variant], *chosen, *limit, f"accelerator={options.accelerator}"], epochs, between)
    lab = f"lab, {option}" if option else "lab"
    seconds = {name: taken[1:] for name, taken in ({lab: lab_seconds} | others).items()}
    rows = compare(seconds, "bare loop", variant)
    for row in rows:
        step = statistics.median(row["seconds"]) / steps
        row["extra"] = {"per step": f"{1e3 * step:.2f} ms", "images/s": f"{BATCH / step:,.0f}"}
    return rows[:1] if option else rows


def main() -> int:
    assert __doc__
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--root", help="where MNIST lies, as torchvision puts it")
    parser.add_argument("--all", action="store_true", help="the tutorial's loop for every variant, not for vae alone")
    parser.add_argument("--pythae", metavar="PYTHON", help="a Python with pythae 0.1.2")
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu (default: %(default)s)")
    parser.add_argument("--variants", nargs="*", default=list(LAB), metavar="NAME", help=f"of {', '.join(LAB)}")
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="random ones, where there is no --root")
    parser.add_argument(
        "--with",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="options",
        help="options of vaelab train: the lab with each of them, too; one that it refuses is left out",
    )
    parser.add_argument("--no-tutorial", action="store_false", dest="tutorial", help="without the tutorial's loop")
    options = parse(parser)
    if unknown := set(options.variants) - set(LAB):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if options.pythae and options.accelerator != "cpu":
        parser.error("--pythae is measured on the CPU only")
    images = "MNIST" if options.root else f"{options.images:,} random images of 1x28x28"
    notes = f"""An epoch of {images}, batch {BATCH}, accelerator={options.accelerator}.
        Lab: `vaelab train` with log files, progress bar and checkpoints, from the start of an epoch to the start of
        the next. Bare: the same network, the objective by hand, fused Adam, nothing logged; its VQ-VAE does not
        restart idle codes. Ratios are of neighbouring epochs to the bare loop's."""
    if options.pythae:
        code = "from importlib.metadata import version; print('pythae', version('pythae'), 'torch', version('torch'))"
        command = [options.pythae, "-c", code]
        notes += f" Beside it: {subprocess.run(command, capture_output=True, text=True).stdout.strip()}."
    rows: list[Row] = []
    for option, variant in itertools.product([None, *options.options], options.variants):
        name = f"{variant}, {option}" if option else variant
        try:
            rows += measure(variant, option, options)
        except SystemExit as refusal:
            if option is None or not isinstance(refusal.code, str):  # a signal's has a number
                raise
            print(f"left out: {name}: {' '.join(str(refusal).split())[-300:]}", file=sys.stderr, flush=True)
            continue
        store("training", rows, notes, keep=not options.quick)  # what is measured is kept if the rest is cut off
        print(f"measured: {name}", file=sys.stderr, flush=True)
    save("training", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
