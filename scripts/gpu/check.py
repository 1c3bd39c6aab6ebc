"""Checks everything of the lab that needs a GPU, in one go: correctness, then speed. Writes one JSON file.

    python scripts/gpu/check.py --out results                            all of it
    python scripts/gpu/check.py --out results --stages tests variants    some of it
    python scripts/gpu/check.py --out results --cpu                      a rehearsal, tiny, on the CPU
    python scripts/gpu/tables.py results/results.json                    the results as tables

Stages: tests (`pytest -m gpu`), variants (each trains in three precisions, resumes, is evaluated, exported and drawn),
devices (two processes with NCCL), search (chunk sizes of the code search), training (the lab beside other loops, and
with options), images (images per second of every variant), sweeps (many jobs by a launcher, and one after the other),
advice (what `vaelab bench advise=true` finds). A stage has its share of the time that is left; it saves its results as
it goes, and one that fails or runs out of time leaves the others theirs. No network is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import correctness
import speed
import torch
from work import BENCHMARKS, ROOT, Work

sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

STAGES: dict[str, tuple[Callable[[Work], None], int]] = {
    "tests": (correctness.tests, 60),
    "variants": (correctness.variants, 80),
    "devices": (correctness.devices, 20),
    "search": (speed.search, 15),
    "training": (speed.training, 90),
    "images": (speed.images, 70),
    "sweeps": (speed.sweeps, 180),
    "advice": (speed.advice, 45),
}
"""Each stage, and the weight of its share of the time."""


def about() -> dict[str, object]:
    from common import machine

    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return machine() | {"gpu_memory": memory, "cuda": torch.version.cuda}


def perform(work: Work, stages: list[str], seconds: float) -> None:
    """Runs the stages in turn; what one leaves of its share goes to those after it."""
    end = time.monotonic() + seconds
    for number, stage in enumerate(stages):
        function, weight = STAGES[stage]
        started = time.monotonic()
        share = weight / sum(STAGES[name][1] for name in stages[number:])
        work.until, work.found = started + share * (end - started), {}
        work.report[stage] = work.found
        try:
            function(work)
        except Exception:
            work.keep("failed", traceback.format_exc()[-3000:])
        work.report[f"{stage}, seconds"] = round(time.monotonic() - started, 1)
        work.save()
        print(f"{stage}: {work.report[f'{stage}, seconds']} s", flush=True)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for results.json and the runs")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES), metavar="NAME")
    parser.add_argument("--seconds", type=float, help="for all stages together (default: 460, of a rehearsal 280)")
    parser.add_argument(
        "--variants", nargs="*", default=["vae", "vae_conv", "vqvae"], metavar="NAME", help="what training measures"
    )
    parser.add_argument(
        "--with",
        nargs="*",
        default=["cuda_graph=true", "compile=true"],
        metavar="KEY=VALUE",
        dest="options",
        help="options of the lab that training measures, one by one (default: %(default)s)",
    )
    parser.add_argument("--launcher", default="vectorized", help="of the sweeps (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=16, help="variants at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the timed programs (default: 4, of a rehearsal 1)")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal on the CPU, with tiny sizes")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU: --cpu rehearses without one")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = Work(
        out,
        options.cpu,
        options.threads or (1 if options.cpu else 4),
        options.jobs,
        options.launcher,
        options.variants,
        options.options,
        report={"about": about()},
    )
    perform(work, options.stages, options.seconds or (280 if options.cpu else 460))
    return 0


if __name__ == "__main__":
    sys.exit(main())
