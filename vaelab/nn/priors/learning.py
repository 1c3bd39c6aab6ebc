"""How an autoregressive prior over codes learns: a plain loop, which stops early and goes on exactly where it was."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

from vaelab.core.errors import UserError
from vaelab.core.randomness import seed_of, seeded
from vaelab.nn.priors.base import Kept, Latents

if TYPE_CHECKING:
    from vaelab.nn.priors.autoregressive import Autoregressive

HELD_OUT = 20
"""One in so many training images is held out, where there are no validation images."""
WARM_UP, STEEPEST = 100, 1.0
"""Steps in which the learning rate rises, a tenth of all at most, and the norm that gradients are clipped to."""


def learn(prior: Autoregressive, known: Latents, held_out: Latents | None, seed: int, kept: Kept | None) -> str:
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
    each, alike = state["least"] / prior.positions, math.log(prior.codes)
    found = f"{each:.4f} nats per code, where ln K = {alike:.4f}"
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
    prior: Autoregressive, optimizer: torch.optim.Optimizer, known: Latents, done: int, total: int, words: str
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
        nats = -prior.log_probs(known.z[batch].to(device), labels).sum(1)
        optimizer.zero_grad()
        (nats.mean() / prior.positions).backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), STEEPEST)
        optimizer.step()
        sums.append(nats.detach().sum())
    prior.eval()
    return torch.stack(sums).cpu().double().sum().item() / len(known.z)


@torch.no_grad()
def _nats(prior: Autoregressive, latents: Latents) -> float:
    """The mean of -log p(z), nats per image."""
    prior.eval()
    return -prior.log_prob(latents.z, latents.labels).cpu().double().mean().item()


def _line(prior: Autoregressive, epoch: int, learned: float, nats: float) -> str:
    each = prior.positions
    return (
        f"epoch {epoch}/{prior.epochs}: nats per code {learned / each:.4f} while learning, {nats / each:.4f} held out; "
        f"per image {nats:.3f}"
    )
