"""Figures of the small problems of `vaelab explain`: each takes the arrays of one and draws nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaelab.evaluation.teaching import Bounds, Capacities, Gaussians, Gradients, Slopes, kl
from vaelab.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND = 0.2
"""Opacity of a filled area."""
GROUP = 100
"""Draws in each estimate of a gradient, as in a batch."""


@style.styled
def divergence(found: Gaussians, mean: float, std: float) -> Figure:
    """Draws prior and posterior, the integrand of their KL with its signed areas, and the KL against mean and std."""
    figure, axes = style.new(9, 6, 2, 2)
    _densities(axes[0, 0], found, mean, std)
    _integrand(axes[0, 1], found, mean, std)
    means = torch.linspace(min(-3, mean - 1), max(3, mean + 1), 201, dtype=torch.float64)
    stds = torch.linspace(min(0.05, std / 2), max(3, 1.2 * std), 400, dtype=torch.float64)
    _along(axes[1, 0], means, kl(means, std), mean, found.closed_form, f"KL against μ, at σ = {std:g}", "μ")
    _along(axes[1, 1], stds, kl(mean, stds), std, found.closed_form, f"KL against σ, at μ = {mean:g}", "σ")
    top = max(4.0, 1.3 * found.closed_form)
    for axis in axes[1]:
        axis.set_ylim(0, top)
    axes[1, 0].set_ylabel("KL, nats")
    return figure


@style.styled
def gradients(found: Gradients) -> Figure:
    """Draws histograms of gradient estimates by mean and std, GROUP draws each, and the gradients that three ways
    give of a loss with two terms."""
    figure, axes = style.new(11, 3.5, 1, 3)
    size = max(1, min(GROUP, found.score.shape[1] // GROUP))
    for i, (axis, of) in enumerate(zip(axes, "μσ", strict=False)):
        exact, estimates = found.exact[i], [_averaged(draws[i], size) for _, draws, _ in _ways(found)]
        low, high = torch.cat(estimates).quantile(torch.tensor([0.001, 0.999], dtype=torch.float64)).tolist()
        edges = torch.linspace(min(low, exact - 0.1), max(high, exact + 0.1), 81).tolist()
        for (name, _, colour), values, variances in reversed(
            [*zip(_ways(found), estimates, found.variances, strict=True)]
        ):
            label = f"{name}\nvariance of a draw {variances[i]:.3g}"
            axis.hist(values.numpy(), edges, density=True, color=colour, alpha=0.6, label=label)
        axis.axvline(exact, ymax=0.66, color=style.BLACK, lw=1.2, label=f"truth {exact:.3g}".replace("-", "−"))
        axis.set(title=f"∂/∂{of} of E[(z − 1)²] from {size} draws", xlabel="estimate", yticks=[])
        axis.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.55 * axis.get_ylim()[1]))
        axis.locator_params(axis="x", nbins=6)
        axis.legend(fontsize=8, loc="upper left")
    _handed_on(axes[2], found)
    return figure


@style.styled
def bounds(found: Bounds, mean: float, std: float) -> Figure:
    """Draws an inexact q beside the true posterior, the bounds L_K up to log p(x), and how fast the gap closes."""
    figure, axes = style.new(11, 3.5, 1, 3)
    left, middle, right = axes
    z = found.z.numpy()
    for name, density, colour in (("p(z|x)", found.posterior, style.BLUE), ("q(z|x)", found.q, style.VERMILION)):
        left.plot(z, density.numpy(), color=colour, label=name)
        left.fill_between(z, density.numpy(), color=colour, alpha=BAND, lw=0)
    left.set(title=f"KL(q ‖ p(z|x)) = {found.gap:.4f} nats", xlabel="z", ylabel="density")
    left.set_ylim(0, 1.35 * float(torch.stack([found.posterior, found.q]).max()))
    left.legend(loc="upper right", ncols=2)
    counts, means, errors = found.counts, [b.mean for b in found.bounds], [2 * b.error for b in found.bounds]
    low, high = found.spread.T.numpy()
    middle.fill_between(counts, low, high, color=style.SKY, alpha=BAND, lw=0, label="90 % of single estimates")
    middle.errorbar(counts, means, errors, color=style.BLUE, marker="o", ms=3, lw=1.2, label="$L_K$ ± 2 std. errors")
    middle.axhline(found.log_evidence, color=style.BLACK, lw=1, label="log p(x)")
    middle.axhline(found.elbo, color=style.VERMILION, lw=1, ls=style.LINES["val"], label="ELBO")
    bottom = found.elbo - 1.6 * max(found.gap, 1e-3)
    middle.set(title="The bound tightens with K", xlabel="K draws of z", ylabel="nats", xscale="log")
    middle.set_ylim(bottom, found.log_evidence + max(0.6 * found.gap, 1e-3))
    middle.legend(loc="lower right", fontsize=8)
    _gaps(right, found)
    return figure


@style.styled
def capacities(found: Capacities, beta: float, capacity: float, gamma: float) -> Figure:
    """Draws the terms that are added to the distortion, and the objectives with their least values."""
    figure, (left, right) = style.new(9, 3.5, 1, 2)
    rate, distortion = found.rate.numpy(), found.distortion.numpy()
    ways = (
        (f"β KL, β = {beta:g}", found.beta_term.numpy(), style.VERMILION, found.beta_best),
        (f"γ |KL − C|, γ = {gamma:g}, C = {capacity:g}", found.capacity_term.numpy(), style.GREEN, found.capacity_best),
    )
    left.plot(rate, distortion, color=style.BLUE, label="distortion")
    for name, term, colour, best in ways:
        left.plot(rate, term, color=colour, label=name)
        label = f"distortion + {name.partition(',')[0]}: least at KL = {best:.3f}"
        right.plot(rate, distortion + term, color=colour, label=label)
        least = (distortion + term)[int((found.rate - best).abs().argmin())]
        right.plot([best, best], [0, least], "o:", color=colour, markevery=[1], lw=1)
    top = float(found.distortion[0])
    left.set(title="The terms", xlabel="KL, nats", ylabel="nats", ylim=(0, 2 * top), xlim=(0, rate[-1]))
    right.set(title="The objectives", xlabel="KL, nats", ylim=(0, 2.8 * top), xlim=(0, rate[-1]))
    left.legend(fontsize=8, loc="upper center")
    right.legend(fontsize=8, loc="upper center")
    return figure


def _densities(axis: Any, found: Gaussians, mean: float, std: float) -> None:
    z = found.z.numpy()
    names = (f"q(z|x) = N({mean:g}, {std:g}²)", found.q, style.VERMILION), ("p(z) = N(0, 1)", found.p, style.BLUE)
    for name, density, colour in names:
        axis.plot(z, density.numpy(), color=colour, label=name)
        axis.fill_between(z, density.numpy(), color=colour, alpha=BAND, lw=0)
    top = float(torch.stack([found.q, found.p]).max())
    axis.set(title="Posterior and prior", xlabel="z", ylabel="density", xlim=_seen(mean, std), ylim=(0, 1.35 * top))
    axis.legend(loc="upper right", fontsize=8)


def _integrand(axis: Any, found: Gaussians, mean: float, std: float) -> None:
    z, values = found.z.numpy(), found.integrand.numpy()
    axis.fill_between(
        z, values, where=values >= 0, color=style.VERMILION, alpha=0.45, lw=0, label=f"{found.above:+.4f}"
    )
    axis.fill_between(z, values, where=values <= 0, color=style.SKY, alpha=0.6, lw=0, label=f"−{-found.below:.4f}")
    axis.plot(z, values, color=style.BLACK, lw=1)
    axis.axhline(0, color=style.GREY, lw=0.8)
    axis.set(title=f"q log(q / p): the areas sum to KL = {found.closed_form:.4f} nats", xlabel="z", ylabel="nats")
    axis.set_xlim(mean - 4.5 * std, mean + 4.5 * std)
    axis.legend(title="area, nats", loc="upper right", fontsize=8)


def _along(axis: Any, at: Tensor, values: Tensor, here: float, value: float, title: str, label: str) -> None:
    axis.plot(at.numpy(), values.numpy(), color=style.COLOURS["kl"])
    axis.plot(here, value, "o", color=style.BLACK)
    axis.annotate(f"{value:.4f}", (here, value), (0, 12), textcoords="offset points", ha="center")
    axis.set(title=title, xlabel=label, xlim=(float(at[0]), float(at[-1])))


def _handed_on(axis: Any, found: Gradients) -> None:
    """Draws the gradient of E[(z - 1)^2] + KL that the optimiser gets: bars of both derivatives."""
    alone = Slopes(found.sum_exact.mean - found.exact.mean, found.sum_exact.std - found.exact.std)
    bars = [
        ("truth", found.sum_exact, style.BLACK),
        *(
            (name, Slopes(*(float(g.mean()) + k for g, k in zip(draws, alone, strict=True))), colour)
            for name, draws, colour in _ways(found)
        ),
        ("direct: the KL's alone", found.sum_direct, style.VERMILION),
    ]
    for i, (name, slopes, colour) in enumerate(bars):
        places = [at + 0.2 * (i - 1.5) for at in (0, 1)]
        axis.bar(places, slopes, 0.18, color=colour, label=name, alpha=0.85)
        for place, value in zip(places, slopes, strict=True):
            axis.annotate(
                f"{value:.2f}".replace("-", "−"),
                (place, value),
                (0, 3 if value >= 0 else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if value >= 0 else "top",
                fontsize=7,
            )
    low, high = min(0.0, *(min(b[1]) for b in bars)), max(0.0, *(max(b[1]) for b in bars))
    axis.axhline(0, color=style.BLACK, lw=0.8)
    axis.set(title="Gradient of E[(z − 1)²] + KL", xticks=[0, 1], xticklabels=["∂/∂μ", "∂/∂σ"])
    axis.set_ylim(low - 0.15 * (high - low), high + 0.75 * (high - low))
    axis.legend(fontsize=8, loc="upper left")


def _gaps(axis: Any, found: Bounds) -> None:
    """Draws log p(x) - L_K against K, with what it tends to, Var(w / p(x)) / 2K for importance weights w."""
    counts = torch.tensor(found.counts, dtype=torch.float64)
    gaps = torch.tensor([found.log_evidence - b.mean for b in found.bounds], dtype=torch.float64)
    errors = torch.tensor([2 * b.error for b in found.bounds], dtype=torch.float64)
    seen = gaps > 0
    axis.errorbar(
        counts[seen].numpy(), gaps[seen].numpy(), errors[seen].numpy(), color=style.BLUE, marker="o", ms=3, lw=1.2
    )
    axis.axhline(found.gap, color=style.VERMILION, lw=1, ls=style.LINES["val"], label="KL(q ‖ p(z|x))")
    if math.isfinite(found.chi_squared) and found.chi_squared > 0:
        limit = (found.chi_squared / (2 * counts)).numpy()
        axis.plot(
            counts.numpy(), limit, color=style.GREY, lw=1, ls=":", label="Var(w / p(x)) / 2K,\nw: importance weight"
        )
    axis.set(title="Its gap to log p(x)", xlabel="K draws of z", ylabel="log p(x) − $L_K$, nats", xscale="log")
    if seen.any() and found.gap > 0:
        axis.set_yscale("log")
        axis.set_ylim(0.3 * float(gaps[seen].min()), 5 * found.gap)
    axis.legend(fontsize=8, loc="lower left")


def _averaged(draws: Tensor, size: int) -> Tensor:
    """Averages draws in groups of `size`."""
    return draws[: len(draws) // size * size].view(-1, size).mean(1)


def _ways(found: Gradients) -> tuple[tuple[str, Tensor, str], ...]:
    """Returns name, derivatives of the draws [2, n] and colour of the two unbiased estimators."""
    return ("reparameterised", found.reparameterised, style.BLUE), ("score function", found.score, style.ORANGE)


def _seen(mean: float, std: float) -> tuple[float, float]:
    """Returns the limits of z within which q or N(0, 1) is more than nothing."""
    return min(-3.5, mean - 3.5 * std), max(3.5, mean + 3.5 * std)
