"""Table "options": precision, compilation and memory layout beside the default, float32 as it comes.

    python scripts/benchmarks/options.py

Forward, backward and optimiser step of the lab's VAE on one batch, in a plain loop.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
from common import Row, arguments, clock, compare, interleave, parse, save
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.models import VAE
from vaelab.nn.likelihoods import Bernoulli
from vaelab.nn.networks import MLP, Burgess, Conv, Network

CASES: dict[str, tuple[Callable[[], Network], tuple[int, int, int], int]] = {
    "MLP 784-400-400-20, batch 128": (lambda: MLP([400, 400], "relu", False), (1, 28, 28), 128),
    "Conv, 3x32x32, batch 128": (lambda: Conv([32, 64], "relu", False, 0), (3, 32, 32), 128),
    "Burgess, 1x64x64, batch 64": (Burgess, (1, 64, 64), 64),
}
DEFAULT = "float32"


def run(
    network: Network, shape: tuple[int, int, int], batch: int, chosen: tuple[str, ...], steps: int
) -> Callable[[], float]:
    """Returns a function that makes `steps` steps and returns the seconds of one.

    chosen: those of bfloat16, compile and channels_last that are on.
    """
    torch.manual_seed(0)
    model = VAE(shape, None, network, Bernoulli(), latent_dim=20)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    x = torch.rand(batch, *shape)
    if "channels_last" in chosen:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def loss_of(x: Tensor) -> Tensor:
        return model.objective(model.terms(Batch(x), model.noise(len(x))))

    loss = torch.compile(loss_of, dynamic=False) if "compile" in chosen else loss_of

    def loop() -> float:
        started = clock()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if "bfloat16" in chosen else nullcontext():
                value = loss(x)
            value.backward()
            optimizer.step()
        return (clock() - started) / steps

    return loop


def measure(case: str, steps: int, rounds: int, quick: bool) -> list[Row]:
    make, shape, batch = CASES[case]
    torch.compiler.reset()  # forgets what was compiled for the case before
    switches = ["bfloat16", "compile"] if case.startswith("MLP") else ["bfloat16", "compile", "channels_last"]
    sizes = range(1, 2 if quick else len(switches) + 1)
    chosen = {" + ".join(names): names for size in sizes for names in itertools.combinations(switches, size)}
    runs = {DEFAULT: run(make(), shape, batch, (), steps)}
    for label, names in chosen.items():
        loop = run(make(), shape, batch, names, steps)
        try:
            loop()
        except Exception as error:  # no compiler, or an operation that the option lacks
            print(f"{case}: {label} is left out: {str(error).strip().splitlines()[0]}", file=sys.stderr)
            continue
        runs[label] = loop
    return compare(interleave(runs, rounds), DEFAULT, case)


def main() -> int:
    assert __doc__
    options = parse(arguments(__doc__, rounds=9))
    rows: list[Row] = []
    for case in CASES:
        rows += measure(case, 2 if options.quick else 30, options.rounds, options.quick)
    notes = "Seconds per step of the lab's VAE on the CPU; ratios are to float32, compiled by nothing."
    save("options", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
