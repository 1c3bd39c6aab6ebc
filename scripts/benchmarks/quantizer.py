"""Table "quantizer": the lab's codebooks beside other ways to quantise a feature map; time and memory.

    python scripts/benchmarks/quantizer.py

Forward and backward: nearest-code search, straight-through gradient, losses, and what a codebook learns without the
optimiser: moving averages, restarts. `vector_quantize_pytorch` is measured too if it can be imported.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import Row, arguments, clock, compare, fresh_process, interleave, parse, peak_memory, save
from torch import Tensor

from vaelab.nn.quantizers import Chosen, Codebook, EMACodebook, GradientCodebook
from vaelab.nn.quantizers.cosine import CosineCodebook
from vaelab.nn.quantizers.fsq import FSQ
from vaelab.nn.quantizers.lfq import LFQ
from vaelab.nn.quantizers.several import GroupedVQ, ResidualVQ
from vaelab.nn.quantizers.simvq import SimVQ

DIM = 64
SIZES = [((8, 32, 32), 512), ((128, 32, 32), 512), ((8, 32, 32), 8192), ((128, 32, 32), 8192)]
QUICK = [((8, 16, 16), 512), ((4, 8, 8), 8192)]
MATRIX = 4 * 2**30
"""Bytes of distances [N, K] from which on, of others' ways, torch.cdist alone is measured."""
LEVELS = {512: [8, 8, 8], 8192: [8, 8, 8, 4, 4]}
"""Levels of FSQ for each number of codes."""
Shape = tuple[int, int, int]
"""Batch size, height and width of a feature map: (B, h, w)."""
Output = tuple[Tensor, Tensor]
"""Output of a candidate: vectors [B, D, h, w], and a loss that is a scalar."""


def unchunked(flat: Tensor, codes: Tensor) -> Tensor:
    return torch.addmm(codes.square().sum(1), flat, -2 * codes.t()).argmin(1)


def cdist(flat: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(flat, codes).argmin(1)


def by_hand(search: Callable[[Tensor, Tensor], Tensor], codes: Tensor) -> Callable[[Tensor], Output]:
    """Makes a function that returns what GradientCodebook does, with another search."""

    def forward(z: Tensor) -> Output:
        flat = z.detach().movedim(1, -1).flatten(0, -2)
        indices = search(flat, codes.detach()).view(len(z), *z.shape[2:])
        chosen = F.embedding(indices, codes).movedim(-1, 1)
        loss = (z.detach() - chosen).square().sum() + 0.25 * (z - chosen.detach()).square().sum()
        return z + (chosen - z).detach(), loss

    return forward


def tutorial(codes: Tensor) -> Callable[[Tensor], Output]:
    """Makes a quantizer as tutorials do: all squares written out with their gradients, one-hot rows times the codes."""

    def forward(z: Tensor) -> Output:
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, DIM)
        distances = (flat**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * flat @ codes.t()
        one_hot = torch.zeros_like(distances).scatter_(1, distances.argmin(1)[:, None], 1)
        chosen = (one_hot @ codes).view(z.shape)
        loss = F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(chosen.detach(), z)
        return (z + (chosen - z).detach()).permute(0, 3, 1, 2).contiguous(), loss

    return forward


def lab(codebook: Codebook) -> Callable[[Tensor], Output]:
    def forward(z: Tensor) -> Output:
        quantized = codebook(z)
        codebook.learn([Chosen(quantized.rows, quantized.chosen, None, len(z))])
        return quantized.vectors, (quantized.codebook_loss + 0.25 * quantized.commitment).sum()

    return forward


def library(name: str, count: int, **options: int) -> Callable[[Tensor], Output]:
    """Makes a quantizer of vector_quantize_pytorch by the name of its class."""
    import vector_quantize_pytorch

    kind = getattr(vector_quantize_pytorch, name)
    module = kind(dim=DIM, codebook_size=count, commitment_weight=0.25, **options)

    def forward(z: Tensor) -> Output:
        vectors, _, loss = module(z.flatten(2).transpose(1, 2))
        return vectors.transpose(1, 2).view_as(z), loss.sum()  # of several stages, a loss each

    return forward


LAB = "lab, GradientCodebook"


def candidates(count: int) -> dict[str, Callable[[], Callable[[Tensor], Output]]]:
    """Maps the label of each candidate to a function that makes it, with `count` codes."""

    bits, ema = count.bit_length() - 1, partial(EMACodebook, restart_after=100, decay=0.99, epsilon=1e-5)

    def codes() -> Tensor:
        return torch.randn(count, DIM).requires_grad_()

    make: dict[str, Callable[[], Callable[[Tensor], Output]]] = {
        LAB: lambda: lab(GradientCodebook(count, DIM, restart_after=100)),
        "lab, EMACodebook": lambda: lab(ema(count, DIM)),
        "lab, EMACodebook, rotation": lambda: lab(ema(count, DIM, rotation=True)),
        "lab, ResidualVQ of 4 EMACodebooks": lambda: lab(ResidualVQ(count, DIM, ema, depth=4, shared=False, dropout=0)),
        "lab, GroupedVQ of 4 EMACodebooks": lambda: lab(GroupedVQ(count, DIM, ema, groups=4, shared=False)),
        "lab, CosineCodebook": lambda: lab(CosineCodebook(count, DIM, restart_after=100, decay=0.99)),
        "lab, SimVQ": lambda: lab(SimVQ(count, DIM)),
        "lab, FSQ": lambda: lab(FSQ(count, len(LEVELS[count]), LEVELS[count])),
        "lab, LFQ": lambda: lab(LFQ(count, bits, bits, entropy_weight=0.1, inverse_temperature=1.0)),
        "the same product in one piece": lambda: by_hand(unchunked, codes()),
        "torch.cdist": lambda: by_hand(cdist, codes()),
        "tutorial's expanded squares": lambda: tutorial(codes()),
    }
    with contextlib.suppress(ImportError):
        import vector_quantize_pytorch  # noqa: F401

        make["vector_quantize_pytorch (EMA)"] = lambda: library("VectorQuantize", count)
        make["vector_quantize_pytorch, 4 stages (EMA)"] = lambda: library("ResidualVQ", count, num_quantizers=4)
    return make


def feature_map(shape: Shape, channels: int) -> Tensor:
    return torch.randn(shape[0], channels, *shape[1:]).requires_grad_()


def channels(label: str, count: int) -> int:
    """Number of channels that a candidate quantises to `count` codes."""
    return {"lab, FSQ": len(LEVELS[count]), "lab, LFQ": count.bit_length() - 1}.get(label, DIM)


def step(forward: Callable[[Tensor], Output], z: Tensor) -> float:
    """Measures the seconds of forward and backward with ones as the gradient of the vectors."""
    z.grad, slope = None, torch.ones_like(z)
    started = clock()
    both_ways(forward, z, slope)
    return clock() - started


def both_ways(forward: Callable[[Tensor], Output], z: Tensor, slope: Tensor) -> None:
    vectors, loss = forward(z)
    ends = [vectors, loss] if loss.requires_grad else [vectors]  # FSQ has no loss
    torch.autograd.backward(ends, [slope, torch.ones_like(loss)][: len(ends)])


def extra_memory(label: str, shape: Shape, count: int) -> int:
    """Measures the bytes that a step adds to this process's resident memory. The gradient of z is there before."""
    forward = candidates(count)[label]()
    size = channels(label, count)
    step(forward, feature_map((1, 2, 2), size))  # libraries allocate some memory once, at the first step
    z = feature_map(shape, size)
    slope = torch.ones_like(z)
    z.grad = torch.zeros_like(z)
    gc.collect()
    before = peak_memory(anew=True)
    both_ways(forward, z, slope)
    return peak_memory() - before


def statistics(shape: Shape, count: int) -> dict[str, Callable[[], float]]:
    """Returns functions that time the sum and number of the vectors that chose each code, in two ways."""
    total = shape[0] * shape[1] * shape[2]
    flat, indices = torch.randn(total, DIM), torch.randint(count, (total,))

    def added() -> float:
        started = clock()
        torch.zeros(count, DIM).index_add_(0, indices, flat)
        torch.zeros(count).index_add_(0, indices, torch.ones(total))
        return clock() - started

    def product() -> float:
        started = clock()
        one_hot = torch.zeros(total, count).scatter_(1, indices[:, None], 1)
        _, _ = one_hot.t() @ flat, one_hot.sum(0)
        return clock() - started

    return {"lab, index_add_": added, "one-hot product": product}


def measure(shape: Shape, count: int, rounds: int) -> list[Row]:
    total = shape[0] * shape[1] * shape[2]
    group = f"N={total}, K={count}"
    makers = candidates(count)
    if 4 * total * count >= MATRIX:
        makers = {label: make for label, make in makers.items() if label.startswith("lab") or label == "torch.cdist"}
        rounds = min(rounds, 3)
    forwards = {label: make() for label, make in makers.items()}
    maps = {size: feature_map(shape, size) for size in {channels(label, count) for label in forwards}}
    runs = {label: partial(step, forward, maps[channels(label, count)]) for label, forward in forwards.items()}
    rows = compare(interleave(runs, rounds), LAB, group)
    code = "import sys, quantizer as q; print(q.extra_memory(sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])))"
    for row, label in zip(rows, forwards, strict=True):
        added = int(fresh_process(code, label, repr(shape), str(count), returning=True))
        row["extra"] = {"extra memory": f"{added / 2**20:,.1f} MiB"}
    reference, *_ = counters = statistics(shape, count)
    return rows + compare(interleave(counters, rounds), reference, f"{group}, EMA statistics")


def main() -> int:
    assert __doc__
    options = parse(arguments(__doc__, rounds=9))
    rows: list[Row] = []
    for shape, count in QUICK if options.quick else SIZES:
        rows += measure(shape, count, options.rounds)
    notes = """One step forward and backward on N vectors of 64 from a feature map, K codes. FSQ and LFQ
        take a map of as many channels as they have.
        The lab's codebooks also learn in it: averages, restarts. Ratios are to the lab's
        GradientCodebook. Extra memory: what the step adds to the resident memory of a process of its own, with
        everything that autograd keeps for the backward pass; freed memory is returned at once there. At the largest
        size, whose distances fill 4 GiB, there are three rounds, and of others' ways torch.cdist alone."""
    save("quantizer", rows, notes, keep=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
