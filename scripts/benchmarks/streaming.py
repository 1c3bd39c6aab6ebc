"""Tables "streaming" and "orders": training from a file beside training from memory, and what orders of reading cost.

    python scripts/benchmarks/streaming.py --images cifar10_images    a folder of images, as dataset=folder takes it
    python scripts/benchmarks/streaming.py                            made-up images of the same size

Before each cold round the file's pages are dropped from the system's cache, which is as if the file were
much larger than the memory: in an epoch nearly every page is read once.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import Row, arguments, compare, fresh_process, interleave, parse, save
from lab import train

from vaelab.datasets import Folder, Prepared
from vaelab.datasets.loaders import epoch_order
from vaelab.datasets.prepared import PreparedSplit, block_order
from vaelab.datasets.prepared.file import MIB, PARTS, read_header

BATCH, SIDE = 128, 32


class Timed:
    """A loader that adds up how long the trainer waited for its batches."""

    waited = 0.0

    def __init__(self, loader: Any):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        started = time.perf_counter()
        for batch in self.loader:
            Timed.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


class _Waiting:
    """Mixin of a data set whose training loader is timed."""

    def train_dataloader(self) -> Timed:
        return Timed(super().train_dataloader())  # type: ignore[misc]


@dataclass(kw_only=True, eq=False)
class TimedPrepared(_Waiting, Prepared):
    pass


@dataclass(kw_only=True, eq=False)
class TimedFolder(_Waiting, Folder):
    pass


def drop(path: Path) -> None:
    """Has the system forget the pages of a file, or of all files in a folder, that it holds."""
    for file in [path] if path.is_file() else path.glob("**/*.*"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epochs(path: Path, cold: bool, choices: list[str]) -> tuple[float, float]:
    """Measures the seconds of an epoch of `vaelab train`, and those of them that it waited. For a process of its own.

    It is the less disturbed of two epochs after the first, which starts the workers.
    """
    kind = "folder" if path.is_dir() else "prepared"
    waited: list[float] = []

    def between(_: Any) -> None:
        waited.append(Timed.waited)
        if cold:
            drop(path)

    chosen = [f"dataset={kind}", f"dataset._target_=streaming.Timed{kind.title()}", f"dataset.root='{path}'"]
    chosen += ["accelerator=cpu", f"dataset.batch_size={BATCH}", "likelihood=gaussian", *choices]
    seconds = train(chosen, 3, between)
    waits = [after - before for before, after in pairwise([*waited, Timed.waited])]
    return min(zip(seconds[1:], waits[1:], strict=True))


def timed_epochs(path: Path, cold: bool, choices: list[str], waits: list[float]) -> float:
    """Runs `epochs` in a process of its own; adds the share of the epoch that it waited to `waits`."""
    code = "import json, sys, pathlib, streaming\n"
    code += "print(json.dumps(streaming.epochs(pathlib.Path(sys.argv[1]), sys.argv[2] == 'True', sys.argv[3:])))"
    seconds, waited = json.loads(fresh_process(code, str(path), str(cold), *choices))
    waits.append(waited / seconds)
    return seconds


def training(file: Path, folder: Path | None, rounds: int) -> list[Row]:
    images = read_header(file)["parts"]["train"]["count"]
    cases: dict[str, tuple[Path, bool, list[str]]] = {
        "one file, held in memory": (file, False, ["dataset.storage=resident"]),
        "one file, streamed": (file, False, ["dataset.storage=stream"]),
        "one file, streamed, cold": (file, True, ["dataset.storage=stream"]),
        "one file, streamed, cold, order=random": (file, True, ["dataset.storage=stream", "dataset.order=random"]),
    }
    if folder is not None:
        cases["folder of JPEG files, streamed"] = (folder, False, ["dataset.storage=stream", f"dataset.size={SIDE}"])
    waits: dict[str, list[float]] = {name: [] for name in cases}
    runs: dict[str, Callable[[], float]] = {
        name: partial(timed_epochs, *case, waits[name]) for name, case in cases.items()
    }
    rows = compare(interleave(runs, rounds), "one file, held in memory")
    for row in rows:
        row["extra"] = {
            "images per second": f"{images / statistics.median(row['seconds']):,.0f}",
            "the trainer waits": f"{100 * statistics.median(waits[row['label']][1:]):.1f} %",
        }
    return rows


def read_bytes() -> int:
    """Returns the bytes that this process has had read from the disk."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


def one_pass(path: Path, order: torch.Tensor, block: int, ahead: bool, advice: int, taken: list[int]) -> float:
    """Measures the seconds to read the training images once in this order, in this process, from a cold file."""
    drop(path)
    header = read_header(path)
    split = PreparedSplit(path, header, "train")
    if ahead:
        split = split.read_ahead(block, 1 << 30)
    split._open()
    split._map.madvise(advice)
    before, started = read_bytes(), time.perf_counter()
    for index in order.split(BATCH):
        split.batch(index)
    seconds = time.perf_counter() - started
    taken.append(read_bytes() - before)
    return seconds


def orders(file: Path, rounds: int) -> list[Row]:
    header = read_header(file)
    count, image = header["parts"]["train"]["count"], math.prod(header["shape"])
    block, window = MIB // image, 64 * MIB // image
    at_random, in_blocks = epoch_order(count, 0, 0), block_order(count, block, window, 0, 0)
    straight = torch.arange(count)
    page, usual = mmap.MADV_RANDOM, mmap.MADV_NORMAL
    cases: dict[str, tuple[torch.Tensor, int, bool, int]] = {
        "order=blocks, blocks asked for": (in_blocks, block, True, page),
        "order=blocks, page by page": (in_blocks, block, False, page),
        "order=random, page by page": (at_random, block, False, page),
        "order=random, the system reading ahead": (at_random, block, False, usual),
        "as the images lie": (straight, block, True, page),
    }
    taken: dict[str, list[int]] = {name: [] for name in cases}
    runs: dict[str, Callable[[], float]] = {n: partial(one_pass, file, *case, taken[n]) for n, case in cases.items()}
    rows = compare(interleave(runs, rounds), "order=blocks, blocks asked for")
    for row in rows:
        row["extra"] = {
            "images per second": f"{count / statistics.median(row['seconds']):,.0f}",
            "bytes read / bytes of images": f"{statistics.median(taken[row['label']][1:]) / (count * image):.2f}",
        }
    return rows


@contextlib.contextmanager
def prepared(folder: Path | None, count: int) -> Iterator[Path]:
    """Yields a prepared file of the folder's images, or of made-up ones."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        file = Path(place) / "images.vaelab"
        chosen = ["dataset=fake", f"dataset.image_shape=[3,{SIDE},{SIDE}]", f"dataset.size={count}"]
        if folder is not None:
            chosen = ["dataset=folder", f"dataset.root={folder}", f"dataset.size={SIDE}"]
        command = [sys.executable, "-m", "vaelab", "data", "prepare", *chosen, f"out={file}"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        total = sum(read_header(file)["parts"][part]["count"] for part in PARTS)
        print(f"prepared {total:,} images in {time.perf_counter() - started:.0f} s", flush=True)
        yield file


def main() -> int:
    assert __doc__
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--images", metavar="FOLDER", help="a folder of images (default: made-up ones)")
    options = parse(parser)
    folder = Path(options.images).absolute() if options.images else None
    with prepared(folder, 2560 if options.quick else 50_000) as file:
        count = read_header(file)["parts"]["train"]["count"]
        what = f"{count:,} {'images of ' + folder.name if folder else 'made-up images'}, {SIDE}x{SIDE} RGB"
        notes = f"""{what}, batches of {BATCH}, in this process, from a file of which nothing is in the system's cache.
            Ratios are of seconds, to the first row. This file fits the memory: where the system reads ahead, a few
            random batches bring all of it into its cache; of a larger file they would bring megabytes per image."""
        save("orders", orders(file, options.rounds), notes, keep=not options.quick)
        notes = f"""`vaelab train likelihood=gaussian` (vae, mlp) on {what}, batches of {BATCH}, 2 workers where images
            are streamed. Seconds of an epoch; ratios are to the first row, within each round. The trainer waits: share
            of the epoch's seconds spent in the loader's `next`; in memory that is the making of the batch itself.
            Cold: the file's pages are dropped from the system's cache before each epoch."""
        save("streaming", training(file, folder, options.rounds), notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
