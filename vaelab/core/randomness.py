"""Random numbers as a function of a seed and a place, and global generators left as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def seed_of(seed: int, *place: int | str) -> int:
    """Computes the seed of a place: (seed, rank, epoch, batch) in training, (seed, section, batch) in an evaluation.

    What is drawn at a place is thus the same whatever was drawn before it. Words count by their
    letters, as Python's hash of a word differs between processes.
    """
    if all(isinstance(part, int) for part in place):
        return hash((seed, *place)) % 2**63
    return sum(ord(letter) * 257**i for i, letter in enumerate(f"{seed} {place}")) % 2**63


def seed_global(seed: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of `device`.

    It takes the place of torch.manual_seed, which without a GPU formats and keeps a traceback at every call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators of the CPU and of `device`, and restores both afterwards."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([]) if on_cpu else torch.random.fork_rng([device.index or 0], device_type=device.type):
        seed_global(seed, device)
        yield


class Generators:
    """Where torch's global generators of the CPU and of `device` are, without waiting for the device."""

    def __init__(self, device: torch.device):
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[device.index or 0])
        self.keep()

    def keep(self) -> None:
        """Keeps where they are now."""
        self.states = [generator.get_state() for generator in self.generators]

    def restore(self) -> None:
        """Puts them back where they were."""
        for generator, state in zip(self.generators, self.states, strict=True):
            generator.set_state(state)


@contextlib.contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restores torch's global generators of the CPU and of `device` after the block."""
    before = Generators(device)
    try:
        yield
    finally:
        before.restore()
