"""Diagnoses of a run from the metrics of its evaluation. docs/doctor.md explains each code.

Pure functions of numbers: nothing is read, drawn or trained here. A metric that is missing or not finite is not judged.
"""

from __future__ import annotations

import math
from typing import Any

from vaelab.core.words import ANY_CODEBOOK, Finding, Remedy
from vaelab.evaluation.findings.curves import diagnose_schedules, diagnose_training
from vaelab.evaluation.findings.health import (
    CODEBOOK_COLLAPSE,
    CODEBOOK_HEALTHY,
    COLLAPSED_KL,
    diagnose_codebook,
    diagnose_collapse,
)

__all__ = ["diagnose_evaluation", "diagnose_schedules", "diagnose_training", "verdicts"]

BIASED = 0.1
"""Nats per image from which on log p_hat is reported as too low. With E effective samples of K it is so by about
(1 / E - 1 / K) / 2, half the variance of log p_hat, or more: a few samples underestimate the spread of the weights."""
MI_MARGIN, MI_PART, MI_REACHED = 3.0, 0.8, 0.5
"""Nats below log N, and fraction of log N, from which on the mutual information with N images misses what more of
them would show, a few tenths of a nat or more, and the total correlation is too large by as much. The fraction keeps
small sets from being called saturated whatever their codes. Within the last, in nats, the bound is reached."""
LARGE_GAP, LARGE_GAP_NATS = 0.1, 1.0
"""Amortisation gap that is reported as large: a tenth of the KL, which the encoder is to spend well, and one nat."""
DRAWN_PER_CODE = 10
"""Draws needed per code of the codebook: with fewer, codes in rare use look dead, and frequencies uneven."""
UNEVEN_CODES = 0.7
"""Fraction of log2 K bits per code below which the uniform prior wastes what a learned one saves. A third of the codes
in even use, the low end of the healthy range, comes to 0.8 of 9 bits."""
WEAK_JUDGE = 0.5
"""Fraction of the way from chance to certainty on test images below which a judge cannot judge pictures."""
LABEL_FOLLOWED = 0.2
"""Fraction of the way from chance to the judge's own accuracy below which the label is ignored: a decoder that ignores
it stays at 0, one that uses it goes most of the way."""
LABEL_LEFT = 0.5
"""Fraction of the way from chance to the judge's accuracy on images at which a probe's reading shows the label in z."""
Z_VISIBLE = 0.01
"""Change by another image's code, in units of the reconstruction error, below which z is ignored: exactly 0 for a
decoder that ignores z, above 1 for one that uses it."""
MEMORISED = 0.5
"""Ratio of the samples' distance to training images to that of real unseen images below which they count as copies.
Soft pictures alone reach 0.7, since a smooth image is near to every other; copies reach 0."""


def diagnose_evaluation(figures: dict[str, float], subject: dict[str, Any]) -> list[Finding]:
    """Diagnoses what is wrong with a model, from the metrics of its evaluation.

    figures, subject: as in evaluation.json. `latents/images`, the number N of
    images that the aggregate posterior was made of, gives the mutual information its bound; without it, `images` of
    the subject does.
    """
    f = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    return [
        *_diagnose_likelihood(f),
        *_diagnose_latents(f, subject),
        *_diagnose_codes(f, Remedy(**subject["remedy"]) if "remedy" in subject else ANY_CODEBOOK),
        *_diagnose_condition(f),
        *_diagnose_samples(f),
    ]


def verdicts(figures: dict[str, float], findings: list[Finding]) -> dict[str, str]:
    """Judges the codebook, the label and z in a word or a few, where their sections were measured.

    figures: as in evaluation.json. findings: what `diagnose_evaluation` makes of them. Returns some of `codebook`
    (collapse, sparse, healthy, full, too few images to tell), `label` (used, ignored, the judge cannot tell) and
    `z` (used, ignored).
    """
    codes, words = {finding.code for finding in findings}, {}
    if "codebook/usage" in figures:
        usage = figures["codebook/usage"]
        use = next((use for use in ("collapse", "sparse") if f"codebook_{use}" in codes), None)
        use = use or ("full" if usage > CODEBOOK_HEALTHY[1] else "healthy")
        words["codebook"] = use if _enough_codes(figures) else "too few images to tell"
    if "conditional/sample_accuracy" in figures:
        told = _has(figures, "conditional/chance", "conditional/classifier_accuracy") and "weak_judge" not in codes
        told = told and figures["conditional/classifier_accuracy"] > figures["conditional/chance"]
        use = "ignored" if "label_ignored" in codes else "used"
        words["label"] = use if told else "the judge cannot tell"
        words["z"] = "ignored" if "z_ignored" in codes else "used"
    return words


def _has(figures: dict[str, float], *names: str) -> bool:
    return all(name in figures for name in names)


def _diagnose_likelihood(f: dict[str, float]) -> list[Finding]:
    effective, samples = f.get("likelihood/effective_samples", 0.0), f.get("likelihood/importance_samples", 0.0)
    if effective <= 0 or samples <= 0 or (bias := 0.5 * (1 / effective - 1 / samples)) < BIASED:
        return []
    evidence = (
        f"{effective:.3g} of {samples:.0f} importance samples carry the weight: log p_hat is too low by {bias:.2g} "
        "nats or more"
    )
    if _has(f, "likelihood/elbo", "latents/amortisation_gap", "likelihood/log_p_hat"):
        missing = f["likelihood/elbo"] + f["latents/amortisation_gap"] - f["likelihood/log_p_hat"]
        if missing > 0:
            evidence += f"; at least {missing:.3g} are missing, since the ELBO of fitted posteriors is higher"
    remedy = "more importance samples, and quote log p_hat as the lower bound that it is"
    return [Finding("few_effective_samples", evidence, remedy)]


def _diagnose_latents(f: dict[str, float], subject: dict[str, Any]) -> list[Finding]:
    kl, capacity = f.get("likelihood/kl", math.inf), subject.get("scheduled", {}).get("capacity")
    findings = diagnose_collapse(kl, capacity, subject.get("conditional", False))
    # a low C closes dimensions on purpose, and a collapse closes all of them
    if not findings and capacity is None and _has(f, "latents/active", "latents/dimensions"):
        active, dimensions = int(f["latents/active"]), int(f["latents/dimensions"])
        if 2 * active <= dimensions:
            evidence = f"{active} of {dimensions} latent dimensions are active"
            remedy = "a smaller model.latent_dim does the same; for more of them in use, lower beta or warm it up"
            findings.append(Finding("dead_dimensions", evidence, remedy))
    findings += _diagnose_information(f, subject)
    gap = f.get("latents/amortisation_gap", 0.0)
    if kl < math.inf and gap > max(LARGE_GAP_NATS, LARGE_GAP * kl):
        evidence = f"fitting the posterior to each image gains {gap:.3g} nats beside a KL of {kl:.3g}"
        remedy = "a larger or longer trained encoder (network.hidden_dims, network=conv); log p_hat suffers less"
        findings.append(Finding("amortisation_gap", evidence, remedy))
    return findings


def _diagnose_information(f: dict[str, float], subject: dict[str, Any]) -> list[Finding]:
    """Diagnoses a mutual information that is bounded by the number of images."""
    images, mi = f.get("latents/images", subject.get("images")), f.get("latents/kl_index_code_mi", -math.inf)
    if images is None or images < 2 or mi <= max(math.log(images) - MI_MARGIN, MI_PART * math.log(images)):
        return []
    bound = math.log(images)
    reached = "nearly every code gives its image away, and " if mi > bound - MI_REACHED else ""
    evidence = (
        f"index-code mutual information is {mi:.3g} nats of at most log N = {bound:.3g} for N = {images:,.0f} images: "
        f"{reached}more images would show more"
    )
    remedy = "take it as a lower bound of the information, and the total correlation as an upper bound"
    return [Finding("mutual_information_saturated", evidence, remedy)]


def _enough_codes(figures: dict[str, float]) -> bool:
    """Whether enough codes were drawn to judge their frequencies."""
    drawn, codes = figures.get("codebook/drawn", 0.0), figures.get("codebook/codes", math.inf)
    return drawn >= DRAWN_PER_CODE * codes > 0


def _diagnose_codes(f: dict[str, float], remedy: Remedy) -> list[Finding]:
    findings = []
    if not _enough_codes(f):
        return []
    if _has(f, "codebook/usage", "codebook/perplexity"):
        usage, perplexity, codes = (f[f"codebook/{name}"] for name in ("usage", "perplexity", "codes"))
        levels = sum(name.startswith("codebook/usage_") for name in f) or 1
        findings += diagnose_codebook(f, "codebook/usage", "codebook/perplexity", int(codes) // levels, remedy)
        low, _ = CODEBOOK_HEALTHY
        if not findings and CODEBOOK_COLLAPSE <= usage < low:
            used = f"{usage:.1%} of {codes:.0f} codes are in use (perplexity {perplexity:.3g})"
            what = f"fewer codes ({remedy.fewer}) do the same; for more in use: {remedy.livelier}"
            findings.append(Finding("codebook_sparse", f"{used}: no collapse, but below {low:.0%}", what))
    if _has(f, "likelihood/rate_uniform_bits", "likelihood/rate_empirical_bits"):
        uniform, empirical = f["likelihood/rate_uniform_bits"], f["likelihood/rate_empirical_bits"]
        if empirical < UNEVEN_CODES * uniform:
            findings.append(
                Finding(
                    "rate_below_uniform",
                    f"codes cost {empirical:.4g} bits per image by their frequencies, {uniform:.4g} under the uniform "
                    "prior that the model samples from",
                    f"do not judge its samples; fewer codes ({remedy.fewer}), or for more even use: {remedy.livelier}",
                )
            )
    return findings


def _diagnose_condition(f: dict[str, float]) -> list[Finding]:
    """Diagnoses a conditional model from its audit: whether z and the label decide what is drawn."""
    if not _has(f, "conditional/chance", "conditional/classifier_accuracy"):
        return []
    findings = []
    kl, swap = f.get("likelihood/kl", math.inf), f.get("conditional/latent_swap_ratio", math.inf)
    if kl < COLLAPSED_KL or swap < Z_VISIBLE:
        shown = f"KL is {kl:.3g} nats" if kl < COLLAPSED_KL else f"another code changes {swap:.2g} of the error"
        remedy = "lower beta or warm it up (schedule=warmup or cyclical), or take a less noisy likelihood"
        findings.append(Finding("z_ignored", f"{shown}: within a class, z says next to nothing of the picture", remedy))
    chance, judge = f["conditional/chance"], f["conditional/classifier_accuracy"]
    if chance >= 1:  # one class: nothing to judge
        return findings
    if judge < chance + WEAK_JUDGE * (1 - chance):
        evidence = f"the classifier that judges is right on {judge:.1%} of the test images (chance {chance:.1%})"
        return [*findings, Finding("weak_judge", evidence, "do not trust the audit of the label, nor samples/ metrics")]

    def part(accuracy: float) -> float:
        """Returns the fraction of the way from chance to the judge's accuracy."""
        return (accuracy - chance) / (judge - chance)

    empty = bool(findings)  # z, which can then neither hold the class nor hold less
    if part(f.get("conditional/sample_accuracy", math.inf)) < LABEL_FOLLOWED:
        smaller = "a smaller model.latent_dim or a larger beta, so that z cannot hold the class; more condition.dim"
        findings.append(
            Finding(
                "label_ignored",
                f"{f['conditional/sample_accuracy']:.1%} of the samples show the class asked for (test "
                f"images: {judge:.1%}, chance: {chance:.1%})",
                "longer training; more condition.dim" if empty else smaller,
            )
        )
    in_z, guessed = f.get("conditional/label_in_z_accuracy", 0.0), f.get("conditional/label_in_z_chance", chance)
    if not empty and in_z > guessed + LABEL_LEFT * max(judge - guessed, 0.0):
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
