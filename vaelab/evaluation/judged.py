"""The sections of an evaluation that hold codes and pictures against labels, factors or a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vaelab.evaluation import disentanglement as metrics
from vaelab.evaluation.conditional import class_accuracy, label_in_codes, swap_effects
from vaelab.evaluation.judge import FEATURES, Judge, cached_judge
from vaelab.evaluation.probes import knn_accuracy, label_information, linear_probe
from vaelab.evaluation.samples import as_data, frechet_distance, generate, nearest_neighbours, precision_recall
from vaelab.evaluation.subject import Section, Subject, Unsupported

PROBED = 10_000
"""Images that probes learn from, or that disentanglement is measured on, at most."""
NEIGHBOURS, BALL = 10, 3
"""Neighbours that vote on a label; neighbours that a ball of precision and recall reaches to."""
JUDGED = 60_000
"""Training images that the judge learns from and neighbours are sought among, at most."""
SOUGHT = 2_000
"""Images whose nearest training image is sought, at most."""
AUDITED, PER_CLASS = 2_000, 100
"""Images whose label is swapped, at most; images generated of each class."""


def _vectors(subject: Subject) -> Tensor:
    if subject.latents == "discrete":
        raise Unsupported("a map of discrete codes is no code vector")
    return subject.codes[0]


def disentanglement(subject: Subject) -> Section:
    """Code vectors against the data's ground-truth factors."""
    codes = _vectors(subject)
    if subject.factors is None:
        raise Unsupported("the data set has no ground-truth factors")
    generator = torch.Generator().manual_seed(subject.settings.seed)
    chosen = torch.randperm(len(codes), generator=generator)[:PROBED]
    factors, seed = subject.factors[chosen].numpy(), subject.settings.seed
    return Section(*metrics.disentanglement(codes.cpu()[chosen].numpy(), factors, seed=seed))


def labels(subject: Subject) -> Section:
    """How much of the label is in the code vectors, and how easily it is read off them."""
    codes = _vectors(subject)
    if subject.labels is None:
        raise Unsupported("the data set has no labels")
    if subject.part == "train":
        raise Unsupported("the probes learn from training images: take split=val or test")
    known = subject.some(subject.data.train, PROBED)
    learnt = subject.encode(known)[0].cpu().numpy(), _labels(subject, known).numpy()
    asked = codes.cpu().numpy(), subject.labels.numpy()
    information = torch.as_tensor(label_information(*asked))
    return Section(
        {
            "mutual_information_max": information.max().item(),
            "linear_probe_accuracy": linear_probe(*learnt, *asked),
            "knn_accuracy": knn_accuracy(*learnt, *asked, NEIGHBOURS),
            "chance": subject.labels.bincount().max().item() / len(codes),
        },
        f"Posterior means, or codes. Probes learn from {len(known):,} training images: logistic regression on "
        f"standardised codes, {NEIGHBOURS} nearest neighbours. Mutual information of each dimension with the label, "
        "nats: 20 bins of equal mass, Miller-Madow correction. Chance: the most frequent class.",
        {"mutual_information": information},
    )


def conditional(subject: Subject) -> Section:
    """Whether a conditional model uses the label, and z."""
    if not subject.model.conditional:
        raise Unsupported("the model is not conditional on labels")
    model, data, seed = subject.model, subject.data, subject.settings.seed
    judge, accuracy = _judge(subject)
    of_data = (data.pixel_range, data.binary)
    per_class = class_accuracy(model, judge, PER_CLASS, *of_data, seed)
    parts = list(subject.batches(subject.some(subject.split, AUDITED)))
    images, known = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    swaps = swap_effects(model, judge, images, known, *of_data, seed)
    assert subject.labels is not None
    in_z, guessed = label_in_codes(subject.codes[0], subject.labels, seed)
    figures = {
        "sample_accuracy": per_class.mean().item(),
        "classifier_accuracy": accuracy,
        "chance": 1 / len(per_class),
        **swaps,
        "label_in_z_accuracy": in_z,
        "label_in_z_chance": guessed,
    }
    return Section(
        figures,
        f"Judge: a small classifier, trained on {_judged(subject):,} training images. sample_accuracy: it sees the "
        f"class asked for, {PER_CLASS} images per class. Swaps, on {len(images):,} images: another label, "
        "or another image's posterior mean; _mse as a mean over pixels, _ratio in units of the reconstruction's own. "
        "label_in_z: logistic regression on posterior means, a half of the split to learn and a half to ask.",
        {"sample_accuracy_per_class": per_class},
    )


def samples(subject: Subject) -> Section:
    """Generated images beside real ones, in a classifier's features and in pixels."""
    if not subject.model.has_prior:
        raise Unsupported("the model has no prior to draw samples from")
    data, settings, model = subject.data, subject.settings, subject.model
    compared = subject.some(subject.split, settings.generated)
    classes = _labels(subject, compared) if model.conditional else None
    of_data = (data.pixel_range, data.binary)
    drawn = torch.cat(
        [_bytes(part) for part in generate(model, len(compared), classes, *of_data, settings.seed)],
    )
    real, redrawn = subject.bytes_of(compared), []
    for batch in subject.batches(compared, "reconstructing"):
        redrawn.append(_bytes(as_data(model.reconstruct(batch.images, batch.labels), *of_data)))
    known = subject.bytes_of(subject.some(data.train, JUDGED))
    figures, protocol = {"images": float(len(drawn))}, ""
    if data.num_classes is not None and len(real) > FEATURES:
        judge, _ = _judge(subject)
        of_real = judge.features(real)
        for end, images in (("", drawn), ("_floor", known[-len(real) :])):
            features = judge.features(images)
            figures[f"frechet{end}"] = frechet_distance(of_real, features)
            figures[f"precision{end}"], figures[f"recall{end}"] = precision_recall(of_real, features, BALL)
        protocol = (
            "In the features of a small classifier trained on this data, so frechet is not Inception's FID and "
            f"compares models of the same data only; precision and recall by balls to the {BALL} nearest "
            "(Kynkäänniemi et al. 2019); _floor: the same of as many training images. "
        )
    for name, queries in (("generated", drawn), ("reconstructed", torch.cat(redrawn)), ("real", real)):
        distances, _ = nearest_neighbours(queries[:SOUGHT].to(subject.device), known.to(subject.device))
        figures[f"nearest_{name}"] = distances.quantile(0.5).item()
    return Section(
        figures,
        f"{len(drawn):,} generated images and as many real ones. {protocol}nearest: median Euclidean distance, pixels "
        f"in [0, 1], to the nearest of {len(known):,} training images: of {min(len(real), SOUGHT):,} generated images, "
        "of reconstructions, which are as smooth as these, and of real images.",
    )


def _labels(subject: Subject, split: Any) -> Tensor:
    labels = subject.known_of(split, "labels")
    assert labels is not None
    return labels


def _bytes(unit: Tensor) -> Tensor:
    return unit.mul(255).round().to(torch.uint8).cpu()


def _judged(subject: Subject) -> int:
    return min(len(subject.data.train), JUDGED)


def _judge(subject: Subject) -> tuple[Judge, float]:
    """The classifier of the data set, and its accuracy on the measured split."""
    data = subject.data

    def read() -> tuple[Tensor, Tensor]:
        known = subject.some(data.train, JUDGED)
        return subject.bytes_of(known), _labels(subject, known)

    judge = cached_judge(read, data.num_classes, subject.identity, subject.settings.seed, subject.device, True)
    assert subject.labels is not None
    seen = [judge.classify(subject.unit(batch.images)).cpu() for batch in subject.batches()]
    return judge, (torch.cat(seen) == subject.labels).double().mean().item()
