"""Batches of a trained model at work on many images: how large they are, and in which mode it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def batch_size(shape: tuple[int, ...]) -> int:
    """Chooses how many images to handle at a time: up to 512, fewer large ones, so that memory stays bounded."""
    return max(1, min(512, 2**20 // torch.Size(shape).numel()))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode and every part of it back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread of the processor: sums of several round otherwise, as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode without gradients; afterwards each of its parts is in the mode it was in."""
    with evaluation_mode(model), torch.no_grad():
        yield
