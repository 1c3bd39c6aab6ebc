"""A prior fitted afterwards: the latents of many images, and what a prior of them is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vaelab.core.randomness import seed_of, seeded
from vaelab.inference.batches import batch_size, evaluating
from vaelab.nn.posteriors import Posterior

if TYPE_CHECKING:
    from vaelab.nn.priors import Prior
    from vaelab.runs.trained import Trained

BLOCK = 4096
"""Latents whose density is computed at a time."""
Of = Literal["means", "draws"]
"""What stands for an image: its code, which is the posterior's mean, or a draw of z ~ q(z|x)."""


def posterior(trained: Trained, split: str, most: int, seed: int) -> Posterior:
    """`encode` of at most `most` images of a split, with a progress bar.

    The images are drawn at random by the seed, as is what is random of them. Raises UserError for a split without
    images.
    """
    from tqdm import tqdm

    model, size = trained.model, len(trained.split(split))
    place = seed_of(seed, "fit", split)
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(place))[:most].sort().values
    parts, found = chosen.split(batch_size(model.shape)), []
    with evaluating(model), seeded(place, model.device):
        for part in tqdm(parts, f"encoding {split}", unit="batch", delay=2, leave=False, disable=None):
            batch = trained.batch(split, part)
            found.append(model.encode(batch.images, batch.labels))
    return Posterior.cat(found)


@torch.no_grad()
def latents(codes: Posterior, of: Of | None, seed: int) -> Tensor:
    """What stands for each image, its code where `of` is None: [N, d]. seed: of the draws, one of each image."""
    if of != "draws":
        return codes.code
    generator = torch.Generator().manual_seed(seed_of(seed, "draws"))
    return codes.rsample(torch.randn(codes.code.shape, generator=generator).to(codes.code.device))


@torch.no_grad()
def mean_log_prob(prior: Prior, z: Tensor) -> float:
    """The mean of log p(z) over latents, [N, d], nats."""
    parts = [prior.log_prob(part.to(prior.place.device)).double().cpu() for part in z.split(BLOCK)]
    return torch.cat(parts).mean().item()
