"""Sections of an evaluation that need nothing but the model and its images.

A section measures one side of a model. It is a function of the subject, listed in `vaelab.commands.eval`,
and its metrics get its name as a prefix. It raises `Unsupported` where model or data have not what it
measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaelab.core.types import Shape
from vaelab.evaluation.metrics import fidelity
from vaelab.evaluation.metrics.anomaly import auroc, found_at, roc
from vaelab.evaluation.metrics.codes import Rate, code_histogram, codebook_use, rate_bits
from vaelab.evaluation.metrics.latents import active_dimensions, aggregate_kl
from vaelab.evaluation.metrics.likelihood import amortisation_gap, bits_per_dimension, mean_and_error
from vaelab.evaluation.subject import Section, Subject, Unsupported
from vaelab.nn.gaussian import kl_to_standard_normal
from vaelab.nn.priors import Prior

DRAWS = 10_000
"""Most draws of z for the split of the aggregate KL, and most posteriors that the aggregate is a mixture of."""
CACHE = 2**21
"""Bytes that the split of the aggregate KL works on at a time: more are not faster on a processor."""
CURVE = 101
"""Points of a ROC curve that are kept."""
GAP_STEPS, GAP_RATE, GAP_SAMPLES = 100, 0.03, 200
"""Settings of the amortisation gap: steps of Adam and their first rate, and draws that measure the outcome."""


def likelihood(subject: Subject) -> Section:
    """Measures ELBO and importance-weighted bound, or distortion and rate of discrete codes."""
    _require_density(subject.model.prior)
    if not subject.model.bounded:
        return _distortion(subject)
    bounds, samples = subject.bounds, subject.settings.importance_samples
    figures = {"importance_samples": float(samples)}
    for name in ("elbo", "log_p_hat", "reconstruction", "kl"):
        figures[name], figures[f"{name}_se"] = mean_and_error(bounds[name])
    figures["effective_samples"] = bounds["effective_samples"].quantile(0.5).item()
    meaning = subject.model.likelihood.density(subject.data.binary)
    prior = subject.model.require_prior()
    how = "in closed form" if subject.posterior.has_kl(prior) else "from the same draws"
    figures |= _bits(subject, figures["log_p_hat"])
    return Section(
        figures,
        f"The likelihood is {meaning}. ELBO: reconstruction from {samples:,} draws of z per image, KL {how}. "
        "log_p_hat: the importance-weighted bound of the same draws (Burda et al. 2016); effective_samples: its median "
        f"effective sample size. Standard errors are over images.{_estimated(prior, 'the bounds hold, but looser')}",
        per_image=bounds,
    )


def _require_density(prior: Prior | None) -> None:
    if prior is not None and not prior.density:
        raise Unsupported(f"{prior.words}: this has no density, and without one there is no bound on log p(x)")


def _estimated(prior: Prior, so: str) -> str:
    """Says for a protocol that log p(z) is not exact, and what follows, after a space; "" where it is."""
    return f" log p(z) is {prior.estimate}, at most log p(z) in expectation: {so}." if prior.estimate else ""


def _distortion(subject: Subject) -> Section:
    mean, error = mean_and_error(subject.distortion)
    figures = {"reconstruction": mean, "reconstruction_se": error}
    protocol = "Distortion: -log p(x|z) at the image's own code; without q(z|x) there is no bound on log p(x)."
    layout = subject.model.layout
    if layout.codes is not None:
        rates = [rate_bits(level, layout.codes) for level in layout.split(subject.codes)]
        figures |= {f"rate_{name}_bits": sum(getattr(rate, name) for rate in rates) for name in Rate._fields}
        protocol += (
            " Rate: bits for all codes of an image under the uniform prior, under the codes' frequencies, and under "
            "their frequencies at each position."
        )
    per_image = {"reconstruction": subject.distortion}
    prior = subject.model.prior
    if prior is not None and prior.discrete and not prior.placeholder:
        per_image["rate"] = _rate(subject, prior)
        figures["rate"], figures["rate_se"] = mean_and_error(per_image["rate"])
        figures["total"], figures["total_se"] = mean_and_error(per_image["rate"] + subject.distortion)
        figures |= _bits(subject, -figures["total"])
        given = ", given the label" * (prior.classes is not None or subject.model.conditional)
        protocol += (
            f" Under {prior.words}: rate: -log p(z) of the codes, nats per image; total: rate + reconstruction, which "
            f"-log p(x) is at most{given}."
        )
    return Section(figures, protocol, per_image=per_image)


def _rate(subject: Subject, prior: Prior) -> Tensor:
    """Computes -log p(z) of each image's codes under a prior of codes, [N], nats."""
    parts, labels = subject.in_batches(subject.posterior), subject.labels
    given = [None] * len(parts) if labels is None else labels.split(len(parts[0]))
    return -torch.cat([prior.log_prob(part.code, y).cpu().double() for part, y in zip(parts, given, strict=True)])


def _bits(subject: Subject, log_p: float) -> dict[str, float]:
    """Bits per dimension of a mean log p(x) or a bound on it, where the likelihood has them."""
    meaning = subject.model.likelihood.density(subject.data.binary)
    if meaning.startswith("not a density") or subject.data.fields is not None:
        return {}
    dimensions, is_density = subject.model.likelihood.dimensions(subject.model.shape), meaning == "a density on pixels"
    return {"bits_per_dim": bits_per_dimension(log_p, dimensions, subject.data.pixel_range, is_density)}


def latents(subject: Subject) -> Section:
    """Measures the KL of each dimension, active dimensions, what the KL is spent on, and the amortisation gap."""
    _require_density(subject.model.prior)
    if not subject.model.bounded:
        raise Unsupported("the model has no bound on log p(x)")
    posterior, prior = subject.posterior, subject.model.require_prior()
    codes, factors = posterior.code, posterior.factorised
    seen = subject.model.layout.onto(codes)  # of deviation 1 under the prior, on a sphere, too
    activity, chosen = active_dimensions(seen), subject.drawn(len(codes), DRAWS).to(codes.device)
    generator, count = torch.Generator(subject.device).manual_seed(subject.settings.seed), len(chosen)
    estimates, vectors = {}, {"variance_of_means": activity.variances}
    protocol = "Active: variance of the posterior means above 0.01 (Burda et al. 2016). "
    per_image = {"posterior_mean": codes}
    if factors is not None and prior.classes is None:
        mean, logvar = factors
        closed = posterior.has_kl(prior)
        log_prior = None if closed else lambda z: prior.log_prob(z.to(prior.place.device))
        spent = aggregate_kl(mean[chosen], logvar[chosen], count, generator, CACHE, log_prior)
        estimates = {
            "kl_index_code_mi": spent.index_code_mi,
            "kl_marginal": spent.marginal,
            "kl_total_correlation": spent.total_correlation,
            **({"kl_dimension_wise": spent.dimension_wise_kl} if spent.dimension_wise_kl else {}),
            "kl_aggregate": spent.kl,
        }
        protocol += (
            "kl_aggregate and its parts, kl_index_code_mi and kl_marginal = KL(q(z) || p(z)), which no other prior can "
            "gain more than (Hoffman & Johnson 2016); under N(0, I) that is kl_total_correlation + kl_dimension_wise. "
            f"Plain Monte Carlo, {count:,} draws, q(z) the exact mixture of {count:,} images' posteriors, so the "
            f"mutual information is at most log N = {math.log(count):.2f}. "
        )
        if closed:
            vectors = {"kl_per_dim": kl_to_standard_normal(mean, logvar).double().mean(0)} | vectors
        per_image["posterior_sigma"] = (0.5 * logvar).exp()
    else:
        protocol += "The KL has no parts here: they are of posteriors that are products of Gaussians. "
    gaps = [
        amortisation_gap(
            *(subject.model, batch.images, batch.labels),
            *(GAP_STEPS, GAP_RATE, GAP_SAMPLES, subject.settings.memory, generator),
        )
        for batch in subject.batches(subject.some(subject.own, subject.settings.gap_images), "amortisation gap")
    ]
    estimates["amortisation_gap"] = mean_and_error(torch.cat(gaps))
    figures = {
        "active": float(activity.active.sum()),
        "dimensions": float(codes.shape[1]),
        "images": float(count),
        **{name: estimate.mean for name, estimate in estimates.items()},
        **{f"{name}_se": estimate.error for name, estimate in estimates.items()},
    }
    return Section(
        figures,
        f"{protocol}Amortisation gap (Cremer et al. 2018): {GAP_STEPS} steps of Adam on the posteriors of "
        f"{sum(map(len, gaps)):,} images, measured with {GAP_SAMPLES} fresh draws."
        f"{_estimated(prior, 'kl_marginal is at most what is measured')}",
        vectors,
        per_image,
    )


def reconstruction(subject: Subject) -> Section:
    """Measures each reconstruction: squared error, PSNR, SSIM; mean, median, spread and extremes over images."""
    model, posterior = subject.model, subject.posterior
    table, missing = subject.data.fields is not None, subject.data.masked
    similarities = {} if table or missing else _similarities(model.shape)
    values: dict[str, list[Tensor]] = {}
    for batch, encoded in zip(subject.batches(bar="reconstructing"), subject.in_batches(posterior), strict=True):
        x, decoded = subject.unit(batch.images), {"": encoded.code}
        if encoded.density:
            decoded["sampled_"] = encoded.rsample(torch.randn_like(encoded.code))
        for draw, z in decoded.items():
            image = subject.unit(model.likelihood.mean(model.decode(z, batch.labels)))
            values.setdefault(f"{draw}mse", []).append((image - x).square().flatten(1).nanmean(1))
            if not draw:
                for name, similarity in similarities.items():
                    values.setdefault(name, []).append(similarity(image.clamp(0, 1), x.clamp(0, 1)))
    per_image = {name: torch.cat(parts).cpu().double() for name, parts in values.items()}
    source = "the code" if model.layout.codes is None else "the nearest codes"
    if posterior.density:
        source = "the code without noise (mse) and one draw of z (sampled_mse)"
    over = "the numbers of a row as the model sees them" if table else "pixels and channels scaled to [0, 1]"
    return Section(
        {f"{name}_{what}": value for name, all in per_image.items() for what, value in spread(all).items()},
        f"Mean squared error of each image, over {over}{', of those that are not missing' * missing}, of the mean "
        f"image decoded from {source}."
        + f" psnr (dB), ssim and ms_ssim (from {fidelity.LEAST_SIZE_OF_SCALES} pixels on) are of the former, cut to "
        "[0, 1]." * bool(similarities),
        per_image=per_image,
    )


def _similarities(shape: Shape) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Similarities of pictures, by name, that can be measured at this size."""
    least = {
        "psnr": (fidelity.psnr, 1),
        "ssim": (fidelity.ssim, fidelity.LEAST_SIZE),
        "ms_ssim": (fidelity.ms_ssim, fidelity.LEAST_SIZE_OF_SCALES),
    }
    return {name: function for name, (function, size) in least.items() if min(shape[1:]) >= size}


def spread(values: Tensor) -> dict[str, float]:
    """Describes a metric over images, [N]: mean, median, standard deviation, least and greatest."""
    figures = {
        "mean": values.mean(),
        "median": values.quantile(0.5),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
    }
    return {name: value.item() for name, value in figures.items()}


def codebook(subject: Subject) -> Section:
    """Measures the use of the codes over the whole split."""
    layout = subject.model.layout
    if layout.codes is None:
        raise Unsupported("the model has no codebook")
    counts = {
        level.name: code_histogram(part, layout.codes)
        for level, part in zip(layout.levels, layout.split(subject.codes), strict=True)
    }
    histogram = torch.stack([*counts.values()])
    figures = {name: float(value) for name, value in codebook_use(histogram, subject.model.books)._asdict().items()}
    figures["drawn"] = float(histogram.sum())
    vectors = {"histogram": histogram[0]}
    if len(counts) > 1:
        for level, own in counts.items():
            use = codebook_use(own)
            figures |= {f"perplexity_{level}": use.perplexity, f"usage_{level}": use.usage}
        vectors = {f"histogram_{level}": own for level, own in counts.items()}
    return Section(figures, f"All {subject.codes.numel():,} codes of the split.", vectors, {"indices": subject.codes})


def anomaly(subject: Subject) -> Section:
    """Measures how well the model's scores tell another data set's images from its own."""
    if subject.other is None:
        raise Unsupported("no other data set was given: ood=fashion_mnist, say, and no class was left out of training")
    if subject.model.conditional:
        raise Unsupported("a conditional model scores an image with its label, and these images have other labels")
    own, other = subject.own, subject.some(subject.other, len(subject.own))
    if subject.model.bounded:
        normal, anomalous = subject.bounds, subject.bounds_of(other)
        names = {"elbo": -1, "log_p_hat": -1, "reconstruction": 1}
    else:
        normal = {"reconstruction": subject.distortion}
        anomalous = {"reconstruction": subject.distortion_of(other, subject.encode(other))}
        names = {"reconstruction": 1}
    figures, vectors = {"images": float(len(other))}, {}
    for name, sign in names.items():
        scores = sign * normal[name], sign * anomalous[name]
        figures[f"auroc_{name}"], figures[f"auroc_{name}_se"] = auroc(*scores)
        vectors[f"roc_{name}"] = found_at(*roc(*scores), torch.linspace(0, 1, CURVE, dtype=torch.float64))
    return Section(
        figures,
        f"{len(own):,} images of {subject.part} against {len(other):,} test images of {subject.other.name}: area under "
        f"the ROC curve of -elbo, -log_p_hat (K = {subject.settings.importance_samples:,}) and reconstruction "
        "(-log p(x|z)) as scores of being an anomaly; 0.5 is chance. Standard errors by DeLong et al. 1988. roc_: "
        "the share of anomalies found where 0, 1, … 100 % of the own images are taken for some.",
        vectors,
    )
