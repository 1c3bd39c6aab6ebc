"""Images to codes and codes to images: what a trained model makes of images and of draws from its prior.

Functions of a model and tensors that give unit images: [N, C, H, W] float32 in [0, 1], on the CPU.
Models work on batches of a bounded size, in eval mode and without gradients, and are left as they were.
Noise comes from generators of its own, on the CPU: the global random state stays untouched, and a
seed gives the same draws on every device. `labels`, where a function takes them, are those of a conditional
model; any other does not look at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.pixels import to_unit
from vaelab.inference.batches import batch_size, evaluating
from vaelab.nn.conditions import for_all
from vaelab.nn.posteriors import Posterior

if TYPE_CHECKING:
    from vaelab.models import Model
    from vaelab.nn.priors import Prior

BLOCK = 256
"""Number of draws from the prior that are made together: draws do not depend on how many are asked for."""
Range = tuple[float, float]
"""The values of black and white, as a model sees them."""


def posterior(model: Model, x: Tensor, labels: Tensor | None) -> Posterior:
    """Encodes x, [N, C, H, W] as the model sees it, in its pixel range, to posteriors on the model's device."""
    size, posteriors = batch_size(model.shape), []
    with evaluating(model):
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            given = None if labels is None else labels[part].to(model.device)
            posteriors.append(model.encode(x[part].to(model.device), given))
    return Posterior.cat(posteriors)


@torch.no_grad()
def codes(model: Model, x: Tensor, labels: Tensor | None) -> Tensor:
    """Encodes each image to its code, on the CPU: [N, d], or code indices, [N, h, w].

    x: [N, C, H, W] as the model sees it, in its pixel range.
    """
    return posterior(model, x, labels).code.cpu()


@torch.no_grad()
def decode(model: Model, codes: Tensor, labels: Tensor | None, pixel_range: Range, levels: int | None = None) -> Tensor:
    """Decodes codes to mean images: z [N, d], or code indices [N, h, w]. labels: [N] or [N, A], or one for all.

    levels: how many of several levels of codes count, from the first on; None for all.
    """
    means = map(model.likelihood.mean, raw(model, codes, labels, levels))
    return torch.cat([to_unit(mean, pixel_range).cpu() for mean in means])


def raw(model: Model, codes: Tensor, labels: Tensor | None, levels: int | None = None) -> Iterator[Tensor]:
    """Decodes codes to raw parameters of the likelihood, a batch at a time. The arguments are those of `decode`."""
    fewer = {} if levels is None else {"levels": levels}
    labels, size = None if labels is None else for_all(labels, len(codes)), batch_size(model.shape)
    for start in range(0, len(codes), size):
        part = slice(start, start + size)
        given = None if labels is None else labels[part].to(model.device)
        with evaluating(model):
            decoded = model.decode(codes[part].to(model.device), given, **fewer)
        yield decoded


def draws(
    model: Model,
    count: int,
    seed: int,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    top_k: int | None = None,
) -> Iterator[Tensor]:
    """Makes `count` draws from the prior of the codes, in blocks: z of N(0, temperature^2 I), or uniform indices, say.

    The first draws of a seed are the same however many are asked for. labels: [count] or [count, A], or one for
    all; None takes labels in turn, where samples are of one. top_k: as `Prior.sample` takes it.
    Raises UserError if there is no prior.
    """
    prior, noise = model.require_prior(), torch.Generator().manual_seed(seed)
    labels = model.in_turn(count) if labels is None else for_all(labels, count)
    for start in range(0, count, BLOCK):
        given = None if labels is None else labels[start : start + BLOCK]
        if given is not None and len(given) < BLOCK:
            given = torch.cat([given, for_all(given[-1:], BLOCK - len(given))])
        yield prior.sample(BLOCK, given, noise, temperature, top_k)[: count - start]


@torch.no_grad()
def share_rows(prior: Prior, codes: Tensor, above: int, columns: int) -> Tensor:
    """Gives draws from a stepwise prior, [N, d], the same first `above` axes in each row of `columns`.

    So a row shows what the levels after those axes add to the levels before. Each row has those of one of the first
    draws.
    """
    rows = -(-len(codes) // columns)
    shared = codes[:rows, :above].repeat_interleave(columns, 0)[: len(codes)]
    return torch.cat([prior.below(*part) for part in zip(codes.split(BLOCK), shared.split(BLOCK), strict=True)])


def sample(model: Model, count: int, labels: Tensor | None, pixel_range: Range, seed: int) -> Tensor:
    """Decodes `count` draws from the prior to mean images.

    labels: [count] or [count, A], or one for all; None takes labels in turn, where samples are of one.
    Raises UserError if the model has no prior.
    """
    labels = model.in_turn(count) if labels is None else labels
    return decode(model, torch.cat(list(draws(model, count, seed, labels=labels))), labels, pixel_range)


@torch.no_grad()
def uncertainty(
    model: Model, x: Tensor, labels: Tensor | None, draws: int, pixel_range: Range, seed: int
) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of each pixel over draws of q(z|x), decoded, [N, C, H, W] each.

    x: [N, C, H, W] as the model sees it. draws: at least 2; the variance has draws - 1 degrees of freedom.
    The deviation is the spread of the mean images that the code leaves open, without the noise of p(x|z).
    Raises ValueError for a model whose codes are no distributions.
    """
    encoded = posterior(model, x, labels)
    if not encoded.density or draws < 2:
        raise ValueError("uncertainty needs a posterior with a density and at least 2 draws of it")
    noise = torch.Generator().manual_seed(seed)
    average = squares = torch.zeros(len(x), *model.shape)
    for count in range(1, draws + 1):  # Welford's update: one draw of each image is held at a time
        z = encoded.rsample(torch.randn(encoded.code.shape, generator=noise).to(model.device))
        images = decode(model, z, labels, pixel_range)
        before, average = average, average + (images - average) / count
        squares = squares + (images - before) * (images - average)
    return average, (squares / (draws - 1)).sqrt()
