"""Tables "scaling" and "memory": what an image costs when something grows tenfold, and what a run holds in memory.

    python scripts/benchmarks/scaling.py

Time: `vaelab train` on ten times the images, latent dimensions or codes, beside the arithmetic that was
added. Memory: the peak of a run, in a process of its own, over the sum of what it cannot do without.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Row, arguments, compare, fresh_process, interleave, parse, peak_memory, save
from lab import noise_set, train
from torch.utils.flop_counter import FlopCounterMode

from vaelab.core.batch import Batch
from vaelab.models import VAE, VQVAE, Model
from vaelab.nn.likelihoods import Bernoulli, GaussianLearned
from vaelab.nn.networks import MLP, Conv
from vaelab.nn.quantizers import EMACodebook

SHAPE, BATCH = (1, 28, 28), 128


def vae(latent_dim: int) -> Model:
    """Makes the model of `model=vae`."""
    return VAE(SHAPE, 10, MLP([400, 400], "relu", False), Bernoulli(), latent_dim)


def vae_conv() -> Model:
    return VAE(SHAPE, 10, Conv([32, 64], "relu", False, 0), Bernoulli(), 20)


def vqvae(num_embeddings: int) -> Model:
    """Makes the model of `model=vqvae`."""
    codebook = partial(EMACodebook, restart_after=100, decay=0.99, epsilon=1e-5)
    network, likelihood = Conv([32, 64], "relu", False, 0), GaussianLearned(1.0)
    return VQVAE(SHAPE, 10, network, likelihood, codebook, num_embeddings, 64, 0.25)


def flops(model: Model) -> float:
    """Counts floating-point operations of matrix products and convolutions per image, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        model.objective(model.terms(Batch(torch.rand(BATCH, *SHAPE)), model.noise(BATCH))).backward()
    return counter.get_total_flops() / BATCH


def activations(model: Model) -> int:
    """Counts the bytes that autograd keeps of one batch for the backward pass, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.objective(model.terms(Batch(torch.rand(BATCH, *SHAPE)), model.noise(BATCH))).backward()
    return sum(kept.values())


def per_image(choices: list[str], images: int) -> Callable[[], float]:
    """Returns a function that trains for an epoch and returns its seconds per image."""
    return lambda: train(["accelerator=cpu", *noise_set(images), *choices], 1)[0] / images


def scaling(rounds: int, quick: bool) -> list[Row]:
    few, some, many = (256, 512, 2560) if quick else (12_800, 60_000, 600_000)
    cases: dict[str, list[tuple[str, list[str], int, Callable[[], Model]]]] = {
        "vae": [
            (f"{some:,} images", [], some, partial(vae, 20)),
            (f"{many:,} images", [], many, partial(vae, 20)),
        ],
        "vae, latent_dim": [
            ("20", [], some, partial(vae, 20)),
            ("200", ["model.latent_dim=200"], some, partial(vae, 200)),
        ],
        "vqvae, num_embeddings": [
            ("512", ["model=vqvae"], few, partial(vqvae, 512)),
            ("5120", ["model=vqvae", "model.num_embeddings=5120"], few, partial(vqvae, 5120)),
        ],
    }
    rows: list[Row] = []
    for group, settings in cases.items():
        runs = {label: per_image(choices, images) for label, choices, images, _ in settings}
        compared = compare(interleave(runs, rounds), settings[0][0], group)
        base = flops(settings[0][-1]())
        for row, (*_, make) in zip(compared, settings, strict=True):
            count = flops(make())
            row["extra"] = {
                "arithmetic per image": f"{count / 1e6:.1f} MFLOP",
                "its ratio": f"{count / base:.3f}",
                "rate": f"{count / statistics.median(row['seconds']) / 1e9:.1f} GFLOP/s",
            }
        rows += compared
    return rows


def imports_only() -> int:
    """Measures the peak bytes of a process that imports what training imports."""
    import pytorch_lightning  # noqa: F401

    return peak_memory()


def peak_of_run(choices: list[str]) -> int:
    """Measures the peak bytes of this process after `vaelab train` for an epoch."""
    train(["accelerator=cpu", *choices], 1)
    return peak_memory()


def memory(quick: bool) -> list[Row]:
    some, many = (2560, 25_600) if quick else (60_000, 600_000)
    cases: list[tuple[str, list[str], int, Callable[[], Model]]] = [
        (f"vae, {some:,} images", [], some, partial(vae, 20)),
        (f"vae, {many:,} images", [], many, partial(vae, 20)),
        (f"vae, conv, {some:,} images", ["network=conv"], some, vae_conv),
        (f"vqvae, {some:,} images", ["model=vqvae"], some, partial(vqvae, 512)),
    ]
    bare = int(fresh_process("import scaling; print(scaling.imports_only())"))
    rows: list[Row] = []
    for label, choices, images, make in cases:
        choices = [*choices, *noise_set(images), "trainer.limit_train_batches=50"]
        peak = int(fresh_process("import sys, scaling; print(scaling.peak_of_run(sys.argv[1:]))", *choices))
        model: Any = make()
        parameters = sum(p.numel() for p in model.parameters())
        data = int(1.2 * images) * (SHAPE[0] * SHAPE[1] * SHAPE[2] + 8)  # a fifth more to test on; int64 labels
        parts = {
            "imports": bare,
            "data": data,
            "weights, gradients, Adam": 4 * 4 * parameters,
            "activations": activations(model),
        }
        needed = sum(parts.values())
        cells = {name: f"{size / 2**20:,.1f} MiB" for name, size in (parts | {"sum": needed, "peak": peak}).items()}
        rows.append({"label": label, "extra": cells | {"peak / sum": f"{peak / needed:.3f}"}})
    return rows


def main() -> int:
    assert __doc__
    options = parse(arguments(__doc__, rounds=5))
    notes = f"""`vaelab train` on random images of 1x28x28, batch {BATCH}: seconds of an epoch by its images, with logs
        and checkpoints. Ratios are to the first row of each group. Arithmetic: matrix products and convolutions,
        forward and backward, by torch.utils.flop_counter."""
    save("scaling", scaling(options.rounds, options.quick), notes, keep=not options.quick)
    notes = f"""Peak resident memory of a process that runs `vaelab train`, batch {BATCH}. Imports: the peak of a
        process that only imports the same. Data: training and test images and labels, as they stay resident.
        Activations: what autograd keeps of one batch."""
    save("memory", memory(options.quick), notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
