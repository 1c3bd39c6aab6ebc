"""Diagnoses of a model from its metrics: what is wrong, the evidence, the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vaelab.core.metrics import DEAD_DIMENSION
from vaelab.core.words import Finding, Remedy

if TYPE_CHECKING:
    from torch import Tensor

LEAST_STEPS, MOST_STEPS = 200, 1000
"""Steps before which no model is judged, and after which every model is: one that has just begun always looks ill."""
COLLAPSED_KL = 0.5
"""Nats of KL below which a posterior has collapsed: it says nothing of the image."""
MUCH_KL, LITTLE_EXPLAINED = 5.0, 1 / 3
"""Nats of KL that count as much, and fraction of the way from the mean picture to the images that they must explain."""
CODEBOOK_COLLAPSE, CODEBOOK_HEALTHY = 0.10, (0.30, 0.70)
"""Fraction of the codes in use that counts as collapse, and the healthy range."""

LITTLE_USED = 0.1
"""Part of an equal share of a mixture's weight, 1/K, below which a component is not used."""


def judged_from(steps: float) -> float:
    """Returns the step from which on a run of so many steps is judged: after a fifth of it, within the limits."""
    return min(MOST_STEPS, max(LEAST_STEPS, 0.2 * steps))


def findings_of(summary: dict[str, Any]) -> Any:
    """Returns the findings of training in the content of summary.json, [] if nothing was found; None if it was not
    judged. (Version 0.1 wrote [] of a run that was too short to be judged.)
    """
    findings = summary.get("findings")
    return None if not findings and summary.get("steps", LEAST_STEPS) < LEAST_STEPS else findings


def not_judged(summary: dict[str, Any]) -> str:
    """Says why training was not judged, as a sentence."""
    steps = f" of {summary['steps']:,} steps" if "steps" in summary else ""
    return (
        f"No health check has looked at this training{steps}: they begin after a fifth of a run, not before "
        f"{LEAST_STEPS} steps and after {MOST_STEPS:,} at the latest."
    )


def diagnose_latents(
    figures: dict[str, float],
    kl_per_dim: Tensor | None,
    baseline: float,
    perfect: float,
    beta: float,
    constraint: str | None = None,
    conditional: bool = False,
) -> list[Finding]:
    """Diagnoses a Gaussian posterior.

    figures: exact means in nats per image: `reconstruction`, `kl` and, for a constrained model,
    `capacity`. kl_per_dim: [d], nats. baseline: reconstruction term of the mean image; perfect: of
    the images themselves. beta: weight of the KL. constraint: how a constrained model meets its
    capacity. conditional: whether labels enter the decoder beside z.
    """
    kl, capacity = figures["kl"], figures.get("capacity")
    findings = diagnose_collapse(kl, capacity, conditional)
    findings += _diagnose_information(kl, figures["reconstruction"], baseline, perfect, beta, constraint)
    if kl_per_dim is not None and kl >= COLLAPSED_KL and capacity is None:  # a low C closes dimensions on purpose
        dead = int((kl_per_dim < DEAD_DIMENSION).sum())
        if 2 * dead >= len(kl_per_dim) and dead:
            findings.append(
                Finding(
                    "dead_dimensions",
                    f"{dead} of {len(kl_per_dim)} latent dimensions carry less than {DEAD_DIMENSION} nats",
                    "a smaller model.latent_dim does the same; for more of them in use, lower beta or warm it up",
                )
            )
    return findings


def diagnose_collapse(kl: float, capacity: float | None, conditional: bool = False) -> list[Finding]:
    """Diagnoses a posterior that says nothing of the image.

    kl: nats per image. capacity: C in nats, None if there is none. conditional: whether the label, which may
    say enough, enters the decoder beside z.
    """
    if kl >= COLLAPSED_KL or (capacity is not None and capacity <= 1):
        return []
    evidence = f"KL is {kl:.3g} nats: the codes say next to nothing of the images"
    remedy = "lower beta or warm it up (schedule=warmup or cyclical), or take a less noisy likelihood"
    if conditional:
        evidence += " beside their labels"
        remedy = f"none if the labels say most that there is to say; else {remedy}"
    return [Finding("posterior_collapse", evidence, remedy)]


def _diagnose_information(
    kl: float, reconstruction: float, baseline: float, perfect: float, beta: float, constraint: str | None
) -> list[Finding]:
    """Diagnoses a KL that buys too little reconstruction.

    It is spent without information if it buys less than half of what any optimum would (at weight
    beta an optimal code gains at least beta nats per nat), or if many nats close little of the way
    from the mean picture to the images.

    A Lagrangian that closes much of the way has done its work: more nats were asked for than the
    images need. The l1 penalty spends nats badly at any C, so that it says nothing of the need.
    """
    gain = baseline - reconstruction
    explained = gain / max(baseline - perfect, 1e-9)
    cheap = kl > 1 and gain < 0.5 * min(1.0, beta) * kl
    if not cheap and (kl <= MUCH_KL or explained >= LITTLE_EXPLAINED):
        return []
    evidence = (
        f"KL is {kl:.3g} nats for {gain:.3g} nats of reconstruction, {explained:.0%} of the way from the mean "
        f"picture's {baseline:.4g} to a perfect {perfect:.4g}"
    )
    if constraint == "lagrangian" and explained >= LITTLE_EXPLAINED:
        remedy = f"a smaller model.capacity: this reconstruction pays for {gain:.2g} nats of KL at most"
        return [Finding("capacity_beyond_need", evidence, remedy)]
    remedies = {
        "l1": "model.constraint=lagrangian, or a smaller model.gamma",
        "lagrangian": "a smaller model.capacity or a slower ramp (schedule.capacity.over); else a lower optimizer.lr",
    }
    other = "a lower optimizer.lr; if train/reconstruction is much lower, more images or a smaller network"
    return [Finding("kl_without_information", evidence, remedies.get(constraint or "", other))]


def diagnose_codebook(
    figures: Mapping[str, float], usage: str, perplexity: str, num_embeddings: int, remedy: Remedy
) -> list[Finding]:
    """Diagnoses a codebook from the fraction of its codes in use and their perplexity over a whole epoch.

    Of several levels each is looked at. figures: with both metrics, and those of each level as `name_level`. usage,
    perplexity: their names. num_embeddings: codes of a level. remedy: what the codebook says of itself.
    """
    levels = [name.removeprefix(usage) for name in figures if name.startswith(f"{usage}_")] or [""]
    dead = [level for level in levels if figures[usage + level] < CODEBOOK_COLLAPSE]
    if not dead:
        return []
    uses = [
        f"{figures[usage + level]:.1%} of {num_embeddings} codes are in use{level.replace('_', ' at ', 1)} (perplexity "
        f"{figures[perplexity + level]:.3g})"
        for level in dead
    ]
    healthy = f"healthy is {CODEBOOK_HEALTHY[0]:.0%} to {CODEBOOK_HEALTHY[1]:.0%}"
    what = f"{remedy.livelier}, or fewer codes ({remedy.fewer})"
    return [Finding("codebook_collapse", f"{', '.join(uses)}; {healthy}", what)]


def diagnose_mixture(weights: Tensor) -> list[Finding]:
    """Diagnoses a mixture as the prior that does without many of its components. weights: [K], which sum to 1."""
    count, unused = len(weights), int((weights * len(weights) < LITTLE_USED).sum())
    if 2 * unused < count:
        return []
    evidence = f"{unused} of {count} components of the prior have less than a tenth of their share of the weight"
    return [Finding("unused_components", evidence, "a smaller prior.components does the same, and faster")]


def diagnose_output(reconstructions: Tensor, images: Tensor) -> list[Finding]:
    """Diagnoses decoded pictures, [B, C, H, W], that are blank; values that are missing, NaN, are not looked at."""
    contrast, wanted = reconstructions.std().item(), images[~images.isnan()].std().item()
    if contrast >= 0.01 * wanted:
        return []
    return [
        Finding(
            "blank_output",
            f"decoded pictures are of one colour (standard deviation {contrast:.2g}, the images' {wanted:.2g})",
            "a lower optimizer.lr; check that dataset.pixel_range and likelihood belong together",
        )
    ]
