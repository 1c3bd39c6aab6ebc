"""Diagnoses of a run from its figures. docs/doctor.md explains each code.

Pure functions of numbers: nothing is read, drawn or trained here. A figure that is missing or not finite is not judged.
"""

from __future__ import annotations

import math
from typing import Any

from vaelab.evaluation.curves import diagnose_schedules, diagnose_training
from vaelab.health import CODEBOOK_COLLAPSE, CODEBOOK_HEALTHY, COLLAPSED_KL, DEAD_DIMENSION, Finding, diagnose_codebook

__all__ = ["diagnose_evaluation", "diagnose_schedules", "diagnose_training"]

FEW_EFFECTIVE_SAMPLES = 5.0
"""Effective samples E below which log p_hat is off: its bias is about -1 / (2 E), here 0.1 nats per image."""
MI_MARGIN = 3.0
"""Nats below log N within which the mutual information with N images misses what more of them would show, a few
tenths of a nat at the border, and the total correlation is too large by as much."""
LARGE_GAP, LARGE_GAP_NATS = 0.1, 1.0
"""Amortisation gap that is large: a tenth of the KL, which the encoder is to spend well, and a nat at the least."""
UNEVEN_CODES = 0.7
"""Part of log2 K bits per code below which the uniform prior wastes what a learned one saves. A third of the codes in
even use, the low end of the healthy range, comes to 0.8 of 9 bits."""
WEAK_JUDGE = 0.5
"""A judge that goes less than this part of the way from chance to certainty on test images cannot judge pictures."""
LABEL_FOLLOWED = 0.2
"""Part of the way from chance to the judge's own accuracy: a decoder that ignores the label stays at 0, one that uses
it goes most of it."""
LABEL_LEFT = 0.5
"""z holds the label if a probe reads it this part of the way from chance to the judge's accuracy on images."""
Z_VISIBLE = 0.01
"""Change by another image's code, in units of the reconstruction error: exactly 0 for a decoder that ignores z, above
1 for one that uses it."""
MEMORISED = 0.5
"""Samples this much nearer to training images than real unseen images are. Soft pictures alone reach 0.7, since a
smooth image is near to every other; copies reach 0."""


def diagnose_evaluation(
    figures: dict[str, float], vectors: dict[str, list[float]], subject: dict[str, Any]
) -> list[Finding]:
    """What is wrong with a model, from the figures of its evaluation.

    figures, vectors, subject: as in evaluation.json. `latents/images`, the number N of images that the aggregate
    posterior was made of, gives the mutual information its bound; without it, `images` of the subject does.
    """
    f = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    return [
        *_diagnose_likelihood(f, subject),
        *_diagnose_latents(f, vectors, subject),
        *_diagnose_codes(f),
        *_diagnose_condition(f),
        *_diagnose_samples(f),
    ]


def verdicts(figures: dict[str, float], findings: list[Finding]) -> dict[str, str]:
    return {}


def _has(figures: dict[str, float], *names: str) -> bool:
    return all(name in figures for name in names)


def _diagnose_likelihood(f: dict[str, float], subject: dict[str, Any]) -> list[Finding]:
    findings = []
    meaning = str(subject.get("log_likelihood_is", ""))
    if meaning.startswith("not a density") and "likelihood/log_p_hat" in f:
        findings.append(
            Finding(
                "not_a_density",
                f"log p_hat, {f['likelihood/log_p_hat']:.5g}, is no log-likelihood: {meaning.partition(': ')[2]}",
                "dataset.binarize=dynamic or static, or likelihood=continuous_bernoulli; until then compare it only "
                "with runs of the same data and likelihood, and quote no bits",
            )
        )
    if _has(f, "likelihood/effective_samples", "likelihood/importance_samples"):
        effective, samples = f["likelihood/effective_samples"], f["likelihood/importance_samples"]
        if effective < FEW_EFFECTIVE_SAMPLES:
            findings.append(
                Finding(
                    "few_effective_samples",
                    f"{effective:.3g} of {samples:.0f} importance samples carry the weight: log p_hat is too low by "
                    f"about {0.5 / effective:.2g} nats or more",
                    "more importance samples, and quote log p_hat as the lower bound that it is",
                )
            )
    return findings


def _diagnose_latents(f: dict[str, float], vectors: dict[str, list[float]], subject: dict[str, Any]) -> list[Finding]:
    findings = []
    kl, capacity = f.get("likelihood/kl", math.inf), subject.get("capacity")
    if kl < COLLAPSED_KL and (capacity is None or capacity > 1):
        findings.append(
            Finding(
                "posterior_collapse",
                f"KL is {kl:.3g} nats: the codes say nothing of the images",
                "lower beta or warm it up (schedule=warmup or cyclical), or take a less noisy likelihood",
            )
        )
    # a low C closes dimensions on purpose, and a collapse closes all of them
    elif capacity is None and _has(f, "latents/active", "latents/dimensions"):
        active, dimensions = int(f["latents/active"]), int(f["latents/dimensions"])
        if 2 * active <= dimensions:
            idle = sum(kl < DEAD_DIMENSION for kl in vectors.get("latents/kl_per_dim", []))
            findings.append(
                Finding(
                    "dead_dimensions",
                    f"{active} of {dimensions} latent dimensions are active"
                    + (f"; {idle} carry less than {DEAD_DIMENSION} nats" if idle else ""),
                    "a smaller model.latent_dim does the same; for more of them in use, lower beta or warm it up",
                )
            )
    images = f.get("latents/images", subject.get("images"))
    mi = f.get("latents/kl_index_code_mi", -math.inf)
    if images and mi > math.log(images) - MI_MARGIN:
        findings.append(
            Finding(
                "mutual_information_saturated",
                f"index-code mutual information is {mi:.3g} nats, and N = {images:.0f} images allow log N = "
                f"{math.log(images):.3g} at most: nearly every code gives its image away",
                "take it as a lower bound of the information, and the total correlation as an upper bound",
            )
        )
    gap = f.get("latents/amortisation_gap", 0.0)
    if kl < math.inf and gap > max(LARGE_GAP_NATS, LARGE_GAP * kl):
        findings.append(
            Finding(
                "amortisation_gap",
                f"fitting the posterior to each image gains {gap:.3g} nats beside a KL of {kl:.3g}",
                "a larger or longer trained encoder (network.hidden_dims, network=conv); log p_hat suffers less",
            )
        )
    return findings


def _diagnose_codes(f: dict[str, float]) -> list[Finding]:
    findings = []
    if _has(f, "codebook/usage", "codebook/perplexity", "codebook/codes"):
        usage, perplexity, codes = (f[f"codebook/{name}"] for name in ("usage", "perplexity", "codes"))
        low, high = CODEBOOK_HEALTHY
        findings += diagnose_codebook(usage, perplexity, int(codes))
        used = f"{usage:.1%} of {codes:.0f} codes are in use (perplexity {perplexity:.3g})"
        if CODEBOOK_COLLAPSE <= usage < low:
            remedy = "fewer codes (model.num_embeddings) do the same; for more in use, codebook=ema with restart_after"
            findings.append(Finding("codebook_sparse", f"{used}: no collapse, but below {low:.0%}", remedy))
        elif usage > high:
            remedy = "nothing is wrong with it; more codes (model.num_embeddings) may lower the distortion"
            findings.append(Finding("codebook_full", f"{used}: above the usual {low:.0%} to {high:.0%}", remedy))
    if _has(f, "likelihood/rate_uniform_bits", "likelihood/rate_empirical_bits"):
        uniform, empirical = f["likelihood/rate_uniform_bits"], f["likelihood/rate_empirical_bits"]
        if empirical < UNEVEN_CODES * uniform:
            findings.append(
                Finding(
                    "rate_below_uniform",
                    f"codes cost {empirical:.4g} bits per image by their frequencies, {uniform:.4g} under the uniform "
                    "prior that the model samples from",
                    "do not judge its samples; fewer codes, or codebook=ema with restart_after, for more even use",
                )
            )
    return findings


def _diagnose_condition(f: dict[str, float]) -> list[Finding]:
    """The conditional audit: who decides what is drawn, z or the label?"""
    if not _has(f, "conditional/chance", "conditional/classifier_accuracy"):
        return []
    findings = []
    kl, swap = f.get("likelihood/kl", math.inf), f.get("conditional/latent_swap_ratio", math.inf)
    if kl < COLLAPSED_KL or swap < Z_VISIBLE:
        shown = f"KL is {kl:.3g} nats" if kl < COLLAPSED_KL else f"another code changes {swap:.2g} of the error"
        remedy = "lower beta or warm it up (schedule=warmup or cyclical), or take a less noisy likelihood"
        findings.append(Finding("z_ignored", f"{shown}: the pictures of a class are all the same", remedy))
    chance, judge = f["conditional/chance"], f["conditional/classifier_accuracy"]
    if judge < chance + WEAK_JUDGE * (1 - chance):
        evidence = f"the classifier that judges is right on {judge:.1%} of the test images (chance {chance:.1%})"
        return [*findings, Finding("weak_judge", evidence, "do not trust the audit of the label, nor samples/ figures")]

    def part(accuracy: float) -> float:
        """Of the way from chance to the judge's accuracy."""
        return (accuracy - chance) / (judge - chance)

    if part(f.get("conditional/sample_accuracy", math.inf)) < LABEL_FOLLOWED:
        findings.append(
            Finding(
                "label_ignored",
                f"{f['conditional/sample_accuracy']:.1%} of the samples show the class asked for (test "
                f"images: {judge:.1%}, chance: {chance:.1%})",
                "a smaller model.latent_dim or a larger beta, so that z cannot hold the class; more model.label_dim",
            )
        )
    in_z, guessed = f.get("conditional/label_in_z_accuracy", 0.0), f.get("conditional/label_in_z_chance", chance)
    if in_z > guessed + LABEL_LEFT * (judge - guessed):
        findings.append(
            Finding(
                "label_in_z",
                f"a probe reads the label off z with {in_z:.1%} (chance {guessed:.1%})",
                "a larger beta or fewer latents, if z is to hold style alone",
            )
        )
    return findings


def _diagnose_samples(f: dict[str, float]) -> list[Finding]:
    if not _has(f, "samples/nearest_generated", "samples/nearest_real"):
        return []
    generated, real = f["samples/nearest_generated"], f["samples/nearest_real"]
    if generated >= MEMORISED * real:
        return []
    evidence = f"samples lie {generated:.3g} from the nearest training image, real unseen images {real:.3g}"
    return [Finding("memorisation", evidence, "more training data, a smaller network, or a larger beta")]
