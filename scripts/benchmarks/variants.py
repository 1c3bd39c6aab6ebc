"""Table "variants": the training step of every variant beside a loop of the same model without Lightning.

    python scripts/benchmarks/variants.py --root data                       MNIST from ./data; without it, random images
    python scripts/benchmarks/variants.py --variants capacity beta          some of conf/model
    python scripts/benchmarks/variants.py --accelerator gpu                 on a GPU

By `vaelab bench`: the run's own loop and the bare one take turns, `--steps` steps each, in every round.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import HERE, Row, arguments, parse, peak_memory, save, store
from lab import noise_set

from vaelab.cli import main as vaelab

MODELS = sorted(path.stem for path in (HERE.parents[1] / "conf" / "model").glob("*.yaml"))
DATA = {"m2": ["dataset.labelled=100"]}
"""What a variant needs of the data beside the images."""
BATCH = 128


class MeasureError(Exception):
    """A variant could not be measured. Not a SystemExit: that is how a signal ends the lab, and this script with it."""


def fresh() -> None:
    """Frees what a former variant has left, and starts the peak of memory anew."""
    gc.collect()
    peak_memory(anew=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(model: str, options: Any) -> list[Row]:
    """Measures a variant: the median of a step of each loop, and the ratios of their rounds."""
    data = noise_set(60_000)
    if options.root:
        data = ["dataset=mnist", f"dataset.root={options.root}", f"dataset.batch_size={BATCH}"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "bench.json")
        length = [f"bench.steps={options.steps}", f"bench.rounds={max(2, options.rounds)}", f"bench.output={output}"]
        fresh()
        chosen = [f"model={model}", *data, *DATA.get(model, []), f"accelerator={options.accelerator}"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = vaelab(["bench", *chosen, *length])
        if code:
            raise MeasureError(f"{said.getvalue()}\nvaelab bench model={model} failed")
        found = json.loads(output.read_text())
    ratio, rows = found["ratio"], []
    for name, key in (("lab", "lab_ms"), ("bare loop", "bare_ms")):
        taken = found[key]
        rows.append(
            {
                "label": f"{model}: {name}",
                "seconds": [taken[at] / 1e3 for at in ("least", "median", "greatest")],
                "ratios": [ratio[at] for at in ("least", "median", "greatest")],
                "reference": key == "bare_ms",
                "extra": {"images/s": f"{1e3 * found['batch_size'] / taken['median']:,.0f}"},
            }
        )
    rows[0]["extra"]["peak memory"] = f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB"
    return rows


def main() -> int:
    assert __doc__
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--root", help="where MNIST lies, as torchvision puts it")
    parser.add_argument("--steps", type=int, default=50, help="of each loop in a round (default: %(default)s)")
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu (default: %(default)s)")
    parser.add_argument("--variants", nargs="*", default=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    options = parse(parser)
    if unknown := set(options.variants) - set(MODELS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if options.quick:
        options.steps, options.variants = 2, options.variants[:3]
    images = "MNIST" if options.root else "Random images of 1x28x28"
    notes = f"""{images}, batch {BATCH}, accelerator={options.accelerator}, {options.rounds} rounds of {options.steps}
        steps. A training step by `vaelab bench`: in the run's own loop with its logging, callbacks and progress bar,
        and in a loop of the same model without Lightning. Ratios are of neighbouring rounds: median, least and
        greatest."""
    rows: list[Row] = []
    for model in options.variants:
        try:
            rows += measure(model, options)
        except MeasureError as failure:
            print(f"left out: {model}: {' '.join(str(failure).split())[-300:]}", file=sys.stderr, flush=True)
            continue
        store("variants", rows, notes, keep=not options.quick)
        print(f"measured: {model}", file=sys.stderr, flush=True)
    save("variants", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
