"""Pictures of a trained model: what it makes of draws, images, and paths between their codes.

Functions of a model and tensors that give unit images: [N, C, H, W] float32 in [0, 1], on the processor.
Models work on batches of a bounded size, in eval mode and without gradients, and are left as they were.
Noise comes from generators of its own, on the processor: the global random state stays untouched, and a
seed gives the same draws on every device. `labels`, where a function takes them, are those of a conditional
model, and None for any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.pixels import to_unit
from vaelab.inference.batches import batch_size, evaluating
from vaelab.nn.gaussian import kl_to_standard_normal

Model = Any
"""One of `vaelab.models`: its `latents` says what codes it has."""
BLOCK = 256
"""Draws of the prior that are made together: draws do not depend on how many are asked for."""
PARALLEL = 1e-6
"""Sine of the angle below which two codes span no plane to turn in."""
Range = tuple[float, float]


# --- models -----------------------------------------------------------------------------------


def decode(model: Model, codes: Tensor, labels: Tensor | None, pixel_range: Range) -> Tensor:
    """Mean images of codes: z [N, d], or code indices [N, h, w]. labels: [N], or [1] for all."""
    labels = None if labels is None else labels.expand(len(codes))
    size, made = batch_size(model.shape), []
    with evaluating(model):
        for start in range(0, len(codes), size):
            part = slice(start, start + size)
            given = None if labels is None else labels[part].to(model.device)
            means = model.likelihood.mean(model.decode(codes[part].to(model.device), given))
            made.append(to_unit(means, pixel_range).cpu())
    return torch.cat(made)


def posterior(model: Model, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of q(z|x), [N, d] each, of a Gaussian model. x: as the model sees it."""
    mean, logvar = zip(*_encoded(model, x, labels), strict=True)
    return torch.cat(mean), torch.cat(logvar)


def codes(model: Model, x: Tensor, labels: Tensor | None) -> Tensor:
    """The code of each image: posterior means or points, [N, d], or code indices, [N, h, w].

    x: [N, C, H, W] as the model sees it, in its pixel range.
    """
    return posterior(model, x, labels)[0] if model.latents == "gaussian" else torch.cat(_encoded(model, x, labels))


def _encoded(model: Model, x: Tensor, labels: Tensor | None) -> list:
    """What `model.encode` gives of each batch, on the processor."""
    size, found = batch_size(model.shape), []
    with evaluating(model):
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            given = None if labels is None else labels[part].to(model.device)
            code = model.encode(x[part].to(model.device), given)
            found.append(tuple(c.cpu() for c in code) if isinstance(code, tuple) else code.cpu())
    return found


# --- draws ------------------------------------------------------------------------------------


def prior(model: Model, count: int, seed: int, temperature: float = 1.0) -> Iterator[Tensor]:
    """`count` draws from the prior of the codes, in blocks: z ~ N(0, temperature^2 I), or uniform indices.

    The first draws of a seed are the same however many are asked for. Raises UserError if there is no prior.
    """
    if not model.has_prior:
        raise UserError(f"{type(model).__name__} has no prior to draw samples from: use model=vae")
    noise = torch.Generator().manual_seed(seed)
    for start in range(0, count, BLOCK):
        if model.latents == "discrete":
            block = torch.randint(model.codebook.num_embeddings, (BLOCK, *model.map_size), generator=noise)
        else:
            block = torch.randn(BLOCK, model.latent_dim, generator=noise) * temperature
        yield block[: count - start]


def sample(model: Model, count: int, labels: Tensor | None, pixel_range: Range, seed: int) -> Tensor:
    """Mean images of `count` draws from the prior.

    labels: [count], or [1] for all; None is every class in turn, of a conditional model.
    Raises UserError if the model has no prior.
    """
    if labels is None and model.conditional:
        labels = torch.arange(count) % model.num_classes
    return decode(model, torch.cat(list(prior(model, count, seed))), labels, pixel_range)


def uncertainty(
    model: Model, x: Tensor, labels: Tensor | None, draws: int, pixel_range: Range, seed: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel over images decoded from draws of q(z|x), [N, C, H, W] each.

    x: [N, C, H, W] as the model sees it. draws: at least 2; the variance has draws - 1 degrees of freedom.
    It is the spread of the mean images that the code leaves open, without the noise of p(x|z).
    Raises ValueError for a model whose codes are no distributions.
    """
    if model.latents != "gaussian" or draws < 2:
        raise ValueError("uncertainty needs a Gaussian posterior and at least 2 draws of it")
    mean, logvar = posterior(model, x, labels)
    deviation, noise = (0.5 * logvar).exp(), torch.Generator().manual_seed(seed)
    average = squares = torch.zeros(len(x), *model.shape)
    for count in range(1, draws + 1):  # Welford's update: one draw of each image is held at a time
        images = decode(model, mean + deviation * torch.randn(mean.shape, generator=noise), labels, pixel_range)
        before, average = average, average + (images - average) / count
        squares = squares + (images - before) * (images - average)
    return average, (squares / (draws - 1)).sqrt()


# --- along dimensions -------------------------------------------------------------------------


def order(model: Model, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latent dimensions from the most to the least used, [d] int64, and how much each is, in that order, [d].

    The measure is the mean KL(q(z_j|x) || N(0, 1)) over the images in nats, or, of points, the variance of z_j.
    """
    if model.latents == "gaussian":
        used = kl_to_standard_normal(*posterior(model, x, labels)).mean(0)
    else:
        used = codes(model, x, labels).var(0, unbiased=False)
    used, dims = used.sort(descending=True, stable=True)
    return dims, used


def traverse(
    model: Model,
    start: Tensor,
    dims: list[int],
    values: Tensor,
    labels: Tensor | None,
    pixel_range: Range,
    scale: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Images of a code in which one dimension at a time takes each value: [R, S, C, H, W], a row per dimension.

    start: [1, d]. values: [S]; dimension j becomes centre_j + value * scale_j, both [d], or the value itself
    where they are None, as suits the prior N(0, 1). labels: [1] or None.
    """
    placed = start.cpu().repeat(len(dims), len(values), 1)
    for row, j in zip(placed, dims, strict=True):
        row[:, j] = values * (1 if scale is None else scale[j]) + (0 if centre is None else centre[j])
    return decode(model, placed.flatten(0, 1), labels, pixel_range).unflatten(0, placed.shape[:2])


# --- between codes ----------------------------------------------------------------------------


def line(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Equally spaced points of the segment from `a` to `b`, both included. a, b: [d]. Returns [steps, d]."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps, dtype=a.dtype)[:, None])


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points of the arc from `a` to `b`, both included, at equal angles. a, b: [d]. Returns [steps, d].

    Shoemake 1985, section 3.3; proposed for latent spaces by White 2016, section 2.1, because a line between
    draws of N(0, I) in many dimensions passes nearer to the origin than draws ever lie. Deviation from White,
    who applies the formula to the codes as they are: directions are turned, and the norm goes linearly from |a|
    to |b|. Where the two span no plane (parallel, opposite, or one of them 0), it is `line`.
    """
    first, second = a.double(), b.double()
    lengths = first.norm(), second.norm()
    if not all(lengths):
        return line(a, b, steps)
    first, second = first / lengths[0], second / lengths[1]
    angle = 2 * math.atan2((first - second).norm(), (first + second).norm())  # exact for small angles, too
    if math.sin(angle) < PARALLEL:
        return line(a, b, steps)
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    direction = (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / math.sin(angle)
    return (torch.lerp(*lengths, t) * direction).to(a.dtype)


def between_four(corners: Tensor, steps: int) -> Tensor:
    """Codes between four, bilinearly: [steps, steps, d]. corners: [4, d], top left and right, bottom left and right."""
    top, bottom = line(corners[0], corners[1], steps), line(corners[2], corners[3], steps)
    t = torch.linspace(0, 1, steps, dtype=corners.dtype)[:, None, None]
    return torch.lerp(top, bottom, t)


def interpolate(
    model: Model, a: Tensor, b: Tensor, steps: int, spherical: bool, labels: Tensor | None, pixel_range: Range
) -> Tensor:
    """Images along `line` or, if spherical, `slerp` between codes a and b, [d] each: [steps, C, H, W].

    labels: [1], which holds throughout, or [steps]; or None.
    """
    path = (slerp if spherical else line)(a.cpu(), b.cpu(), steps)
    return decode(model, path, labels, pixel_range)
