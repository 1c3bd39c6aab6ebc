"""Diagnoses of a model from its figures: what is wrong, the evidence, the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

COLLAPSED_KL = 0.5
"""Nats below which a posterior says nothing of the image."""
MUCH_KL, LITTLE_EXPLAINED = 5.0, 1 / 3
"""Nats that must explain more than this part of the way from the mean picture to the images."""
DEAD_DIMENSION = 0.01
"""Nats below which a latent dimension is not used."""
CODEBOOK_COLLAPSE, CODEBOOK_HEALTHY = 0.10, (0.30, 0.70)
"""Fraction of the codes in use that counts as collapse, and the healthy range."""


class Finding(NamedTuple):
    """A diagnosis: a code that stays the same across runs, the figures it rests on, what to do."""

    code: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.evidence}. Remedy: {self.remedy}."


def diagnose_latents(
    figures: dict[str, float], kl_per_dim: Tensor | None, baseline: float, perfect: float, beta: float
) -> list[Finding]:
    """Health of a Gaussian posterior.

    figures: exact means in nats per image: `reconstruction`, `kl` and, for a constrained model,
    `capacity`. kl_per_dim: [d], nats. baseline: reconstruction term of the mean image; perfect: of
    the images themselves. beta: weight of the KL.

    KL is spent without information if it buys less than half of what any optimum would (at weight
    beta an optimal code gains at least beta nats per nat), or if many nats close little of the way
    from the mean picture to the images.
    """
    findings = []
    kl, gain = figures["kl"], baseline - figures["reconstruction"]
    explained = gain / max(baseline - perfect, 1e-9)
    capacity = figures.get("capacity")
    findings += diagnose_collapse(kl, capacity)
    if (kl > 1 and gain < 0.5 * min(1.0, beta) * kl) or (kl > MUCH_KL and explained < LITTLE_EXPLAINED):
        findings.append(
            Finding(
                "kl_without_information",
                f"KL is {kl:.3g} nats, but the reconstruction, {figures['reconstruction']:.4g}, is hardly better than "
                f"the mean picture's, if at all, {baseline:.4g} (perfect: {perfect:.4g})",
                "for model=capacity, model.constraint=lagrangian or a smaller model.gamma; else a lower optimizer.lr",
            )
        )
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
    if capacity is not None and abs(kl - capacity) > max(0.5, 0.05 * capacity):
        findings.append(
            Finding(
                "capacity_missed",
                f"KL is {kl:.4g} nats where C is {capacity:.4g}",
                "a slower ramp (schedule.capacity.over), or a larger model.penalty or model.gamma",
            )
        )
    return findings


def diagnose_collapse(kl: float, capacity: float | None) -> list[Finding]:
    """Does the posterior say anything of the image? kl: nats per image; capacity: C in nats, None if there is none."""
    if kl >= COLLAPSED_KL or (capacity is not None and capacity <= 1):
        return []
    return [
        Finding(
            "posterior_collapse",
            f"KL is {kl:.3g} nats: the codes say next to nothing of the images",
            "lower beta or warm it up (schedule=warmup or cyclical), or take a less noisy likelihood",
        )
    ]


def diagnose_codebook(usage: float, perplexity: float, num_embeddings: int) -> list[Finding]:
    """Health of a codebook from the fraction of its codes in use and their perplexity over a whole epoch."""
    if usage >= CODEBOOK_COLLAPSE:
        return []
    return [
        Finding(
            "codebook_collapse",
            f"{usage:.1%} of {num_embeddings} codes are in use (perplexity {perplexity:.3g}); healthy is "
            f"{CODEBOOK_HEALTHY[0]:.0%} to {CODEBOOK_HEALTHY[1]:.0%}",
            "codebook=ema with restart_after, more model.commitment_cost, a lower optimizer.lr, or fewer codes",
        )
    ]


def diagnose_output(reconstructions: Tensor, images: Tensor) -> list[Finding]:
    """Health of decoded pictures, [B, C, H, W]: are they blank?"""
    contrast, wanted = reconstructions.std().item(), images.std().item()
    if contrast >= 0.01 * wanted:
        return []
    return [
        Finding(
            "blank_output",
            f"decoded pictures are of one colour (standard deviation {contrast:.2g}, the images' {wanted:.2g})",
            "a lower optimizer.lr; check that dataset.pixel_range and likelihood belong together",
        )
    ]
