"""Sections of an evaluation that hold codes and pictures against labels, factors or a classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaelab.core.pixels import to_bytes
from vaelab.evaluation.metrics import disentanglement as metrics
from vaelab.evaluation.metrics.conditional import class_accuracy, label_in_codes, swap_effects
from vaelab.evaluation.metrics.judge import FEATURES, Judge, cached_judge
from vaelab.evaluation.metrics.probes import knn_accuracy, label_information, linear_probe
from vaelab.evaluation.metrics.samples import as_data, frechet_distance, generate, nearest_neighbours, precision_recall
from vaelab.evaluation.subject import Part, Section, Subject, Unsupported

PROBED = 10_000
"""Most images that probes learn from, or that disentanglement is measured on."""
BINS = 20
"""Bins of a dimension, for its mutual information with the label; with fewer images it is not measured."""
NEIGHBOURS, BALL = 10, 3
"""Numbers of neighbours: of those that vote on a label, and of those within a ball of precision and recall."""
JUDGED = 60_000
"""Most training images that the judge learns from and neighbours are sought among."""
MOST_BYTES = 2**30
"""Most bytes of these training images: more are left out."""
SOUGHT = 2_000
"""Most images whose nearest training image is sought."""
AUDITED, PER_CLASS = 2_000, 100
"""Most images whose label is swapped; images generated of each class."""


def _vectors(subject: Subject) -> Tensor:
    if subject.model.layout.dimensions is None:
        raise Unsupported("a map of discrete codes is no code vector")
    return subject.codes


def disentanglement(subject: Subject) -> Section:
    """Measures code vectors against the data's ground-truth factors."""
    codes = _vectors(subject)
    if subject.factors is None:
        raise Unsupported("the data set has no ground-truth factors")
    chosen = subject.drawn(len(codes), PROBED)
    factors, seed = subject.factors[chosen].numpy(), subject.settings.seed
    return Section(*metrics.disentanglement(codes.cpu()[chosen].numpy(), factors, seed=seed))


def labels(subject: Subject) -> Section:
    """Measures how much of the label is in the code vectors, and how easily it is read off them."""
    codes = _vectors(subject)
    if subject.labels is None:
        raise Unsupported("the data set has no classes")
    _unseen(subject)
    known = subject.some(subject.of("train"), PROBED)
    learnt = subject.encode(known).code.cpu().numpy(), _labels(subject, known).numpy()
    asked = codes.cpu().numpy(), subject.labels.numpy()
    informed = len(codes) >= BINS
    information = torch.as_tensor(label_information(*asked, BINS)) if informed else torch.empty(0)
    return Section(
        {
            **({"mutual_information_max": information.max().item()} if informed else {}),
            "linear_probe_accuracy": linear_probe(*learnt, *asked),
            "knn_accuracy": knn_accuracy(*learnt, *asked, NEIGHBOURS),
            "chance": subject.labels.bincount().max().item() / len(codes),
        },
        f"Posterior means, or codes. Probes learn from {len(known):,} training images: logistic regression on "
        f"standardised codes, {NEIGHBOURS} nearest neighbours. Mutual information of each dimension with the label, "
        f"nats: {BINS} bins of equal mass, Miller-Madow correction. Chance: the most frequent class.",
        {"mutual_information": information} if informed else {},
    )


def conditional(subject: Subject) -> Section:
    """Measures whether a conditional model uses the label, and z."""
    if not subject.model.conditional:
        raise Unsupported("the model is not conditional on labels")
    if subject.data.num_classes is None:
        raise Unsupported("the labels are vectors, and no classes that a classifier could tell apart")
    if subject.model.prior is None:
        raise Unsupported("the model has no prior to draw samples of a class from: vaelab prior fits one")
    subject.require_pictures()
    _unseen(subject)
    model, data, seed = subject.model, subject.data, subject.settings.seed
    of_data, (low, high) = (data.pixel_range, data.binary), data.pixel_range
    judge, accuracy = _judge(subject)
    per_class = class_accuracy(model, judge, PER_CLASS, *of_data, seed)
    parts = list(subject.batches(subject.some(subject.own, AUDITED)))
    images, known = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    swaps = swap_effects(model, judge, images, known, *of_data, seed)
    assert subject.labels is not None
    in_z, guessed = label_in_codes(*_told(subject), seed)
    figures = {
        "sample_accuracy": per_class.mean().item(),
        "classifier_accuracy": accuracy,
        "chance": 1 / len(per_class),
        **{name: value / (high - low) ** 2 if name.endswith("_mse") else value for name, value in swaps.items()},
        "label_in_z_accuracy": in_z,
        "label_in_z_chance": guessed,
    }
    return Section(
        figures,
        f"Judge: a small classifier, trained on {_judged(subject):,} training images. sample_accuracy: it sees the "
        f"class asked for, {PER_CLASS} images per class. Swaps, on {len(images):,} images: another label, or another "
        "image's posterior mean; _mse as a mean over pixels scaled to [0, 1], _ratio in units of the reconstruction's "
        "own. label_in_z: logistic regression on posterior means, a half of the split to learn and a half to ask.",
        {"sample_accuracy_per_class": per_class},
    )


def _told(subject: Subject) -> tuple[Tensor, Tensor]:
    """Returns code vectors and labels of the measured images; for maps of codes all their vectors, of fewer images."""
    assert subject.labels is not None
    if subject.model.layout.dimensions is not None:
        return subject.codes, subject.labels
    chosen, model = subject.drawn(len(subject.codes), AUDITED), subject.model
    vectors = model.embed(subject.codes[chosen.to(subject.device)])  # type: ignore[operator]
    return vectors.flatten(1), subject.labels[chosen]


def samples(subject: Subject) -> Section:
    """Measures generated images against real ones, in a classifier's features and in pixels."""
    if subject.model.prior is None:
        raise Unsupported("the model has no prior to draw samples from: vaelab prior fits one")
    subject.require_pictures()
    _unseen(subject)
    data, settings, model = subject.data, subject.settings, subject.model
    of_data, compared = (data.pixel_range, data.binary), subject.some(subject.own, settings.generated)
    told = _labels(subject, compared) if model.told else None
    drawn = torch.cat([to_bytes(part) for part in generate(model, len(compared), told, *of_data, settings.seed)])
    redrawn = [
        to_bytes(as_data(model.reconstruct(batch.images, batch.labels), *of_data))
        for batch in subject.batches(subject.some(compared, SOUGHT), "reconstructing")
    ]
    real, known = subject.bytes_of(compared), subject.bytes_of(_known(subject))
    figures, protocol = {"images": float(len(drawn))}, f"{len(drawn):,} generated images and as many real ones. "
    held_out = subject.of("test" if subject.part == "val" else "val")
    if data.num_classes is None:
        protocol += "No classes, so no classifier in whose features they could be compared. "
    elif len(real) <= FEATURES:
        protocol += f"Too few to be compared in a classifier's {FEATURES} features. "
    else:
        others = {"": drawn}
        if len(held_out) > FEATURES:
            others["_real"] = subject.bytes_of(subject.some(held_out, len(real)))
        judge, _ = _judge(subject)
        of_real = judge.features(real)
        for end, images in others.items():
            same = of_real[subject.drawn(len(real), len(images)).to(of_real.device)]  # both depend on both numbers
            figures |= {f"{name}{end}": value for name, value in _likeness(same, judge.features(images)).items()}
        protocol += (
            "In the features of a small classifier trained on this data, so frechet is not Inception's FID and "
            f"compares models of the same data only; precision and recall by balls to the {BALL} nearest "
            "(Kynkäänniemi et al. 2019); _real: of "
            f"{len(others.get('_real', [])):,} images of {held_out.name} in place of the generated ones, against as "
            "many real ones. "
        )
        if model.by_class and not model.conditional:
            figures["sample_accuracy"] = class_accuracy(model, judge, PER_CLASS, *of_data, settings.seed).mean().item()
            protocol += f"sample_accuracy: the classifier sees the class asked for, {PER_CLASS} images per class. "
    for name, queries in (("generated", drawn), ("reconstructed", torch.cat(redrawn)), ("real", real)):
        queries = queries[subject.drawn(len(queries), SOUGHT)]
        distances, _ = nearest_neighbours(queries.to(subject.device), known.to(subject.device))
        figures[f"nearest_{name}"] = distances.quantile(0.5).item()
    return Section(
        figures,
        f"{protocol}nearest: median Euclidean distance, pixels in [0, 1], to the nearest of {len(known):,} training "
        f"images: of {min(len(real), SOUGHT):,} generated images, of reconstructions, which are as smooth as these, "
        "and of real images.",
    )


def _likeness(real: Tensor, others: Tensor) -> dict[str, float]:
    """Compares two sets of images by their features, [N, F] each."""
    precision, recall = precision_recall(real, others, BALL)
    return {"frechet": frechet_distance(real, others), "precision": precision, "recall": recall}


def _unseen(subject: Subject) -> None:
    """Refuses the training images, on which classifier and probes have learnt."""
    if subject.part == "train":
        raise Unsupported("classifier and probes learn from the training images: take split=val or test")


def _labels(subject: Subject, part: Part) -> Tensor:
    labels = subject.known_of(part, "labels")
    assert labels is not None
    return labels


def _judged(subject: Subject) -> int:
    """Returns how many training images fit the memory set aside for them."""
    return min(len(subject.data.train), JUDGED, MOST_BYTES // math.prod(subject.model.shape))


def _known(subject: Subject) -> Part:
    return subject.some(subject.of("train"), _judged(subject))


def _judge(subject: Subject) -> tuple[Judge, float]:
    """Returns the classifier of the data set, and its accuracy on the measured images."""
    classes, known = subject.data.num_classes, _known(subject)
    assert classes is not None
    images, labels = subject.bytes_of(known), _labels(subject, known)
    judge = cached_judge(images, labels, classes, subject.settings.seed, subject.device, True)
    assert subject.labels is not None
    seen = [judge.classify(subject.unit(batch.images)).cpu() for batch in subject.batches()]
    return judge, (torch.cat(seen) == subject.labels).double().mean().item()
