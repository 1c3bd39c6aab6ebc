"""How a prior learns by steps of Adam: a plain loop, which stops early and goes on exactly where it was."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.randomness import seed_of, seeded
from vaelab.core.types import PositiveFloat, PositiveInt
from vaelab.nn.priors.base import Kept, Latents, Prior

HELD_OUT = 20
"""One in so many training images is held out, where there are no validation images."""
WARM_UP, STEEPEST = 100, 1.0
"""Steps in which the learning rate rises, a tenth of all at most, and the norm that gradients are clipped to."""

BLOCK = 4096
"""Latents whose density is computed at a time where nothing is learned from them."""


class Gradual(Prior):
    """Base class of the priors whose `fit` maximises log p(z), or a bound on it, by gradients.

    epochs, batch_size, lr, patience: of `fit`; see `learn`. A subclass sets `parts`, the number of latents of an image,
    and what one is called: nats are told of each.
    """

    afterwards = True
    parts: int
    part: str

    def __init__(self, epochs: PositiveInt, batch_size: PositiveInt, lr: PositiveFloat, patience: PositiveInt):
        super().__init__()
        self.epochs, self.batch_size, self.lr, self.patience = epochs, batch_size, lr, patience

    def objective(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes what `fit` maximises the mean of, [N], nats: log p(z) of each image, or a bound on it.

        Noise comes of torch's global generators. Arguments are those of `log_prob`.
        """
        return self.log_prob(z, labels)

    @property
    def reference(self) -> str:
        """Words after the nats that a fit has reached: what to hold them against."""
        return ""

    def fit(
        self,
        z: Tensor,
        seed: int,
        labels: Tensor | None = None,
        held_out: Latents | None = None,
        kept: Kept | None = None,
    ) -> str:
        """Maximises log p(z) by Adam, epoch after epoch; see `learn`. z: [N, ...]."""
        return learn(self, Latents(z, labels), held_out, seed, kept)


def learn(prior: Gradual, known: Latents, held_out: Latents | None, seed: int, kept: Kept | None) -> str:
    """Maximises the mean log p(z) by Adam, whose rate falls along a cosine, and leaves the best epoch's weights.

    The best is that of the least nats on what is held out; the untrained prior counts as epoch 0, since on codes
    without any structure nothing beats it. It stops after `patience` epochs without a better one. After each epoch all
    of its state is saved: an epoch's draws come of its seed, so a fit that goes on is the one left alone.

    known: what is learned from. held_out: what the epochs are compared on; one in HELD_OUT of the known if None.
    Prints a line per epoch. Returns how it went, in words. Raises UserError for too few images.
    """
    if held_out is None:
        known, held_out = _split(known, seed)
        print(f"no validation images: {len(held_out.z):,} of the training images are held out to compare epochs on")
    steps = math.ceil(len(known.z) / prior.batch_size)
    optimizer = torch.optim.Adam(prior.parameters(), prior.lr)
    state = (kept.load() if kept else {}) or {"epoch": 0, "best": 0, "least": _nats(prior, held_out), "nats": []}
    if state["epoch"]:
        prior.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"goes on after epoch {state['epoch']}")
    best = state.get("best_weights") or copy.deepcopy(prior.state_dict())
    while state["epoch"] < prior.epochs and state["epoch"] - state["best"] < prior.patience:
        epoch = state["epoch"]
        with seeded(seed_of(seed, "epoch", epoch), prior.place.device):
            learned = _epoch(prior, optimizer, known, epoch * steps, prior.epochs * steps, f"epoch {epoch + 1}")
        nats = _nats(prior, held_out)
        if not math.isfinite(nats):
            raise UserError(f"prior.lr={prior.lr}: the fit has diverged in epoch {epoch + 1}: lower it")
        print(_line(prior, epoch + 1, learned, nats), flush=True)
        if nats < state["least"]:
            state |= {"least": nats, "best": epoch + 1}
            best = copy.deepcopy(prior.state_dict())
        state |= {"epoch": epoch + 1, "nats": [*state["nats"], nats]}
        if kept:
            kept.save(
                {**state, "weights": prior.state_dict(), "best_weights": best, "optimizer": optimizer.state_dict()}
            )
    prior.load_state_dict(best)
    found = f"{state['least'] / prior.parts:.4f} nats per {prior.part}{prior.reference}"
    if state["best"] == 0:
        return f"none of {state['epoch']} epochs is better than the untrained prior, which is kept: {found}"
    return f"epoch {state['best']} of {state['epoch']} is the best: {found}"


def _split(known: Latents, seed: int) -> tuple[Latents, Latents]:
    """Parts the latents at random into those to learn from and those that are held out."""
    if len(known.z) < 2:
        raise UserError("max_images: a prior is fitted to 2 images at least")
    order = torch.randperm(len(known.z), generator=torch.Generator().manual_seed(seed_of(seed, "held out")))
    count = max(1, len(order) // HELD_OUT)
    parts = order[count:].sort().values, order[:count].sort().values
    first, second = (Latents(known.z[part], None if known.labels is None else known.labels[part]) for part in parts)
    return first, second


def _epoch(
    prior: Gradual, optimizer: torch.optim.Optimizer, known: Latents, done: int, total: int, words: str
) -> float:
    """Takes a step per batch, in an order of the global generator's. Returns the mean nats per image on the way.

    done, total: steps before this epoch, and of the whole fit.
    """
    from tqdm import tqdm

    prior.train()
    warm_up = max(1, min(WARM_UP, total // 10))
    device, sums = prior.place.device, []
    batches = torch.randperm(len(known.z)).split(prior.batch_size)
    for step, batch in enumerate(tqdm(batches, words, unit="batch", delay=2, leave=False, disable=None), done):
        for group in optimizer.param_groups:
            group["lr"] = prior.lr * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / total)))
        labels = None if known.labels is None else known.labels[batch].to(device)
        nats = -prior.objective(known.z[batch].to(device), labels)
        optimizer.zero_grad()
        (nats.mean() / prior.parts).backward(inputs=list(prior.parameters()))  # and not a frozen encoder's
        torch.nn.utils.clip_grad_norm_(prior.parameters(), STEEPEST)
        optimizer.step()
        sums.append(nats.detach().sum())
    prior.eval()
    return torch.stack(sums).cpu().double().sum().item() / len(known.z)


@torch.no_grad()
def _nats(prior: Gradual, latents: Latents) -> float:
    """The mean of -log p(z), nats per image."""
    prior.eval()
    place, labels = prior.place.device, latents.labels
    nats = [
        -prior.log_prob(part.to(place), None if labels is None else labels[start : start + BLOCK].to(place)).cpu()
        for start, part in zip(range(0, len(latents.z), BLOCK), latents.z.split(BLOCK), strict=True)
    ]
    return torch.cat(nats).double().mean().item()


def _line(prior: Gradual, epoch: int, learned: float, nats: float) -> str:
    on_the_way, after = learned / prior.parts, nats / prior.parts
    return (
        f"epoch {epoch}/{prior.epochs}: nats per {prior.part} {on_the_way:.4f} while learning, {after:.4f} held out; "
        f"per image {nats:.3f}"
    )
