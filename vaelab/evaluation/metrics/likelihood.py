"""Measures how well a model whose posterior has a density explains images: ELBO, tighter bounds, amortisation gap.

Everything is per image and in nats; results lie on the processor in float64, whatever the device that computes.
Whoever calls gives the generator of the noise: the same seed gives the same values, and torch's own is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vaelab.inference.batches import evaluation_mode
from vaelab.nn.conditions import again

if TYPE_CHECKING:
    from vaelab.models import Model
    from vaelab.nn.posteriors import Posterior
    from vaelab.nn.priors import Prior


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def mean_and_error(values: Tensor) -> Estimate:
    """Computes the mean over images and its standard error, std / sqrt(N) with N - 1 degrees of freedom.

    values: [N], one per image, at least two. Raises ValueError for fewer, another shape, or values that are not
    finite.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values: needs one value for each of two images or more, [N], not {list(values.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"values: {int((~values.isfinite()).sum())} of {len(values)} are NaN or infinite")
    values = values.cpu().double()
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


class Bound(NamedTuple):
    """Bounds on log p(x) of each image: [B] each, float64 on the processor, nats except `effective_samples`.

    log_p_hat: the importance-weighted bound. reconstruction: mean over the draws of -log p(x|z). kl: KL(q(z|x) || p(z))
    in closed form, or the mean over the draws where there is none. effective_samples: (sum w)^2 / sum w^2, from 1 (one
    draw decides) to K (all weigh alike, so the bound is tight); 1 / effective_samples - 1 / K is about the variance of
    log_p_hat.
    """

    log_p_hat: Tensor
    reconstruction: Tensor
    kl: Tensor
    effective_samples: Tensor

    @property
    def elbo(self) -> Tensor:
        """The ELBO, -(reconstruction + kl), [B], at beta = 1 whatever was minimised."""
        return -(self.reconstruction + self.kl)


@torch.no_grad()
def importance_weighted(
    model: Model, x: Tensor, labels: Tensor | None, samples: int, memory: int, generator: torch.Generator
) -> Bound:
    """Computes log p_hat_K = log 1/K sum_k w_k, w = p(x|z) p(z) / q(z|x), z ~ q(z|x) (Burda et al. 2016, eq. 8).

    Its expectation is the ELBO for K = 1, grows with K and tends to log p(x). The ELBO's parts come from the same
    draws, the KL in closed form where there is one.

    model: with a posterior that has a density, and a prior. x: images in the data's range, [B, C, H, W]; labels: [B],
    or None for a model without. samples: K. memory: bytes of decoded pixels that are held at a time, whatever K (a
    decoder's hidden layers come on top); on a processor 4 to 16 MiB, which its caches hold, are fastest. generator: of
    the draws, which do not depend on `memory`.
    The model is measured in evaluation mode and left in the mode it was in. Raises ValueError if samples < 1.
    """
    with evaluation_mode(model):
        posterior = model.encode(x, labels)
        highest = torch.full((len(x),), -math.inf, dtype=torch.float64)
        total, squares, reconstruction, by_draws = torch.zeros(4, len(x), dtype=torch.float64)
        for log_likelihood, log_ratio, kl in _draws(model, x, labels, posterior, samples, memory, generator):
            log_w = log_likelihood + log_ratio
            before, highest = highest, torch.maximum(highest, log_w.amax(0))
            w, shrink = (log_w - highest).exp(), (before - highest).exp()
            total = total * shrink + w.sum(0)
            squares = squares * shrink.square() + w.square().sum(0)
            reconstruction -= log_likelihood.sum(0)
            by_draws += kl.sum(0)
    return Bound(
        log_p_hat=highest + total.log() - math.log(samples),
        reconstruction=reconstruction / samples,
        kl=_kl(posterior, model.require_prior(), by_draws / samples),
        effective_samples=total.square() / squares,
    )


def _kl(posterior: Posterior, prior: Prior, by_draws: Tensor) -> Tensor:
    """Returns KL(q(z|x) || p(z)) of each image, [B] float64 on the processor: in closed form, or by the draws."""
    return posterior.kl(prior).total.cpu().double() if posterior.has_kl(prior) else by_draws


def amortisation_gap(
    model: Model,
    x: Tensor,
    labels: Tensor | None,
    steps: int,
    lr: float,
    samples: int,
    memory: int,
    generator: torch.Generator,
) -> Tensor:
    """Measures the ELBO that the encoder loses against posteriors fitted per image, [B] (Cremer et al. 2018, table 1).

    The posterior's own tensors (mean and log-variance) start at the encoder's output and take `steps` of Adam on the
    ELBO, whose rate falls linearly from `lr` to 0, with one draw per step and the gradient of Roeder et al. 2017, which
    has no noise at the exact posterior. Both posteriors are then measured with the same `samples` fresh draws, which
    the fit has not seen; so the value is unbiased for the posterior that was found, a lower estimate of the gap to the
    best one, and can be slightly negative. Deviation: the number of steps is fixed, not until the ELBO stops improving.
    (A VAE after three epochs of MNIST, lr=0.03: 50, 100 and 300 steps find 4.4, 4.7 and 4.8 nats; lr=0.003: 1.9, 2.8
    and 4.1.)

    x, labels, memory and generator: as in `importance_weighted`; the fit itself holds one decoding of all of x with
    its gradients. No weight of the model gets a gradient or changes. Raises ValueError if steps or samples < 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: needs at least 1")
    with evaluation_mode(model):
        with torch.no_grad():
            encoded = model.encode(x, labels)
        fitted = _fit_posterior(model, x, labels, encoded, steps, lr, generator)
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        elbo = []
        for posterior in encoded, fitted:
            noise = torch.Generator(generator.device).manual_seed(seed)
            elbo.append(_elbo(model, x, labels, posterior, samples, memory, noise))
    return elbo[1] - elbo[0]


def bits_per_dimension(log_p: float, dimensions: int, pixel_range: tuple[float, float], is_density: bool) -> float:
    """Computes bits per pixel and channel: -log2 p / D.

    log_p: log-likelihood of an image, nats. dimensions: D = C * H * W. is_density: False for a probability of binary
    images, which is used as it is. A density on pixels in `pixel_range` (low, high) is one on 256 levels after a
    change of variables, which adds log2(256 / (high - low)): a uniform density costs 8 bits. That is the convention
    for pixels (k + u) / 256 (Theis et al. 2016, section 3.1); for levels k / 255 it is 0.006 bits too many.

    A density on pixels without dequantisation noise u bounds no code length: it can grow without limit on pixels that
    take 256 values, so the bits can be too optimistic by any amount. Compare them only between models of the same data.
    """
    bits = -log_p / (dimensions * math.log(2))
    if is_density:
        low, high = pixel_range
        bits += math.log2(256 / (high - low))
    return bits


@torch.no_grad()
def _draws(
    model: Model,
    x: Tensor,
    labels: Tensor | None,
    posterior: Posterior,
    samples: int,
    memory: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields log p(x|z), log p(z) - log q(z|x) and an estimate of the KL of K = `samples` draws, [n, B] at a time.

    The noise is drawn one [B, d] at a time, so that it does not depend on n.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: needs at least 1")
    rows = max(1, memory // (4 * x[0].numel()))  # images decoded at a time
    count = min(samples, max(1, rows // len(x)))
    images, told = x.repeat(count, 1, 1, 1), again(labels, count)
    prior = model.require_prior()
    for start in range(0, samples, count):
        n = min(count, samples - start)
        noise = torch.stack([_noise(posterior.code, generator) for _ in range(n)])
        z, log_ratio = posterior.draw(noise, prior, labels)
        flat = z.flatten(0, 1)
        known = repeat(None) if told is None else told[: len(flat)].split(rows)
        log_likelihood = [
            model.likelihood.log_prob(model.decode(part, some), pixels)
            for part, pixels, some in zip(flat.split(rows), images[: len(flat)].split(rows), known, strict=False)
        ]
        kl = posterior.control_variate(noise, prior) - log_ratio
        yield torch.cat(log_likelihood).view(n, -1).cpu().double(), log_ratio.cpu().double(), kl.cpu().double()


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws standard normal noise, of the shape and on the device of `like`."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)


def _elbo(
    model: Model,
    x: Tensor,
    labels: Tensor | None,
    posterior: Posterior,
    samples: int,
    memory: int,
    generator: torch.Generator,
) -> Tensor:
    """Computes the ELBO of each image under a posterior, [B] float64."""
    log_likelihood, by_draws = torch.zeros(2, len(x), dtype=torch.float64)
    for part, _, kl in _draws(model, x, labels, posterior, samples, memory, generator):
        log_likelihood, by_draws = log_likelihood + part.sum(0), by_draws + kl.sum(0)
    return log_likelihood / samples - _kl(posterior, model.require_prior(), by_draws / samples)


@torch.enable_grad()
def _fit_posterior(
    model: Model,
    x: Tensor,
    labels: Tensor | None,
    posterior: Posterior,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Posterior:
    """Fits a posterior of the same kind to each image, from the given one on."""
    fitted, prior = posterior.map(lambda values: values.clone().requires_grad_()), model.require_prior()
    free = list(fitted.arrays.values())
    optimizer = torch.optim.Adam(free, lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        z = fitted.rsample(_noise(posterior.code, generator))
        # log q is differentiated through z alone: its own gradient is zero on average, and noise (Roeder et al. 2017)
        log_q = fitted.map(Tensor.detach).log_prob(z)
        log_likelihood = model.likelihood.log_prob(model.decode(z, labels), x)
        loss = -log_likelihood.sum() - (prior.log_prob(z, labels) - log_q).sum()
        for values, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
            values.grad = gradient
        optimizer.step()
    return fitted.map(Tensor.detach)
