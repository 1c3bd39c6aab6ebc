"""`vaelab explain` shows the ideas behind a VAE, each as a figure and as numbers beside their known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from vaelab.commands import command
from vaelab.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = 10
"""Fewest independent estimates of each bound."""


class Explain(NamedTuple):
    """The keys of conf/explain.yaml, which explains them."""

    topic: Literal["kl", "reparameterisation", "bound", "capacity"] | None
    out: Annotated[str, Field(min_length=1)]
    mean: Annotated[float, Field(ge=-10, le=10)]
    std: Annotated[float, Field(ge=0.01, le=10)]
    samples: Annotated[int, Field(ge=100, le=5 * 10**6)]
    importance_samples: Annotated[int, Field(ge=1, le=10**5)]
    beta: Annotated[float, Field(ge=1e-6, le=1e6)]
    capacity: Annotated[float, Field(ge=1e-6, le=100)]
    gamma: Annotated[float, Field(ge=1e-6, le=1e6)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


def main(arguments: list[str]) -> int:
    """Runs `vaelab explain` with these arguments. Returns the exit code."""
    return command.single("explain", job, arguments)


def job(config: Any) -> list[Path]:
    """Hydra's job: computes each topic, prints its numbers and draws its figure. Returns the figures' paths."""
    from vaelab.core.config import options

    asked = options(Explain, config)
    out = Path(asked.out)
    names = [asked.topic] if asked.topic else list(TOPICS)
    _check(asked, out, names)
    import torch

    from vaelab.figures import style

    for name in names:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(asked.seed)  # each topic's numbers are the same, alone and among others
            lines, figure = TOPICS[name](asked)
        style.save(figure, out / f"{name}.png")
        print("\n".join([*lines, f"figure: {out / f'{name}.png'}", ""]), flush=True)
    return [out / f"{name}.png" for name in names]


def _check(asked: Explain, out: Path, names: list[str]) -> None:
    """Raises UserError for values that do not fit together, or a folder that cannot be written to."""
    if "bound" in names and asked.importance_samples * GROUPS > asked.samples:
        least = asked.importance_samples * GROUPS
        raise UserError(
            f"importance_samples={asked.importance_samples}: needs {GROUPS} estimates of as many draws: "
            f"samples={least} or more, not {asked.samples}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made ({error.strerror}): name a folder to write to") from error


def _kl(asked: Explain) -> tuple[list[str], Figure]:
    from vaelab.evaluation import teaching
    from vaelab.figures import teaching as figures

    found = teaching.gaussians(asked.mean, asked.std, asked.samples)
    lines = [
        f"kl: KL(q || p) of q = N({asked.mean:g}, {asked.std:g}^2) and p = N(0, 1), nats",
        f"  closed form     {found.closed_form:9.4f}   (mean^2 + std^2 - 1 - log std^2) / 2",
        f"  integral        {found.integral:9.4f}   of q log(q / p): {found.above:+.4f} where q > p,"
        f" {found.below:+.4f} where q < p",
        f"  {asked.samples:,} draws".ljust(18) + f"{_estimate(found.sampled)}   mean of log q(z) - log p(z)",
    ]
    return lines, figures.divergence(found, asked.mean, asked.std)


def _reparameterisation(asked: Explain) -> tuple[list[str], Figure]:
    from vaelab.evaluation import teaching
    from vaelab.evaluation.metrics.likelihood import mean_and_error
    from vaelab.figures import teaching as figures

    found = teaching.gradients(asked.mean, asked.std, asked.samples)
    ways = {"reparameterised": found.reparameterised, "score function": found.score}
    where = f"z ~ N({asked.mean:g}, {asked.std:g}^2), {asked.samples:,} draws"
    lines = [
        f"reparameterisation: gradient of E[(z - 1)^2], {where}",
        f"  {'':16} {'d/dmean':>9} {'d/dstd':>18}            variance of a draw (exact), of both",
        f"  {'truth':16} {found.exact.mean:9.4f} {found.exact.std:18.4f}",
    ]
    for (name, draws), known in zip(ways.items(), found.variances, strict=True):
        slopes = " ".join(f"{_estimate(mean_and_error(of)):18}" for of in draws)
        seen = ", ".join(f"{of.var().item():.2f} ({exact:.2f})" for of, exact in zip(draws, known, strict=True))
        lines.append(f"  {name:16} {slopes}   {seen}")
    right, wrong = found.sum_exact, found.sum_direct
    lines += [
        f"  {'direct':16} no gradient; backward() raises:",
        f"    {found.direct_error}",
        "  with KL(q || N(0, 1)) added to the loss nothing is raised, and direct sampling drops the first term:",
        f"  {'truth':16} {right.mean:9.4f} {right.std:18.4f}",
        f"  {'direct':16} {wrong.mean:9.4f} {wrong.std:18.4f}   the KL's gradient alone",
    ]
    return lines, figures.gradients(found)


def _bound(asked: Explain) -> tuple[list[str], Figure]:
    from vaelab.evaluation import teaching
    from vaelab.figures import teaching as figures

    found = teaching.bounds(asked.mean, asked.std, asked.importance_samples, asked.samples)
    away = f"{asked.mean:g} posterior std off, {asked.std:g} times as wide"
    lines = [
        f"bound: x = w z + noise, whose log p(x) and p(z|x) are known; q is {away}; nats",
        f"  {'log p(x)':16} {found.log_evidence:9.4f}",
        f"  {'ELBO':16} {found.elbo:9.4f}            in closed form",
        f"  {'gap':16} {found.log_evidence - found.elbo:9.4f}            KL(q || p(z|x)) = {found.gap:.4f}",
        f"  {'K':>8} {'L_K':>17} {'log p(x) - L_K':>23}",
    ]
    for count, bound in zip(found.counts, found.bounds, strict=True):
        lines.append(f"  {count:8}        {_estimate(bound)} {found.log_evidence - bound.mean:14.4f}")
    if math.isinf(found.chi_squared):
        why = "std is at most 0.7071: the weights have no finite variance"
        if asked.std > math.sqrt(0.5):
            why = "q is so far off that the variance of the weights is beyond 10^300"
        lines.append(f"  {why}, and the errors are not to be trusted")
    return lines, figures.bounds(found, asked.mean, asked.std)


def _capacity(asked: Explain) -> tuple[list[str], Figure]:
    from vaelab.evaluation import teaching
    from vaelab.figures import teaching as figures

    found = teaching.capacities(asked.beta, asked.capacity, asked.gamma)
    met = "at C" if found.capacity_best == asked.capacity else "not at C: gamma is below what a nat is worth there"
    lines = [
        f"capacity: a source with distortion {teaching.SNR:g} exp(-2 KL); where each objective is least",
        f"  beta KL          beta={asked.beta:g}: KL = {found.beta_best:.4f}, where one more nat saves beta nats",
        f"  gamma |KL - C|   gamma={asked.gamma:g}, C={asked.capacity:g}: KL = {found.capacity_best:.4f}, {met}",
        f"  at C one more nat saves {found.multiplier:.4f} nats: the multiplier, and the least gamma that holds C",
    ]
    return lines, figures.capacities(found, asked.beta, asked.capacity, asked.gamma)


def _estimate(found: Any) -> str:
    return f"{found.mean:9.4f} ± {found.error:.4f}"


TOPICS: dict[str, Callable[[Explain], tuple[list[str], Figure]]] = {
    "kl": _kl,
    "reparameterisation": _reparameterisation,
    "bound": _bound,
    "capacity": _capacity,
}
"""Topics in their order, each with the function that returns the lines to print and the figure."""
