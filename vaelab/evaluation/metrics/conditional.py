"""Audits a conditional VAE: whether it uses the label, and whether it uses z."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaelab.core.randomness import seeded
from vaelab.evaluation.metrics.judge import Judge
from vaelab.evaluation.metrics.probes import linear_probe
from vaelab.evaluation.metrics.samples import as_data, generate
from vaelab.inference.batches import batch_size, evaluating

if TYPE_CHECKING:
    from vaelab.models import Model


def class_accuracy(
    model: Model, judge: Judge, per_class: int, pixel_range: tuple[float, float], binary: bool, seed: int
) -> Tensor:
    """Measures how often the judge sees the class that was asked for, for each class: [K] float64.

    The mean over classes is the sample accuracy, whose chance is 1 / K whatever the judge says of
    images that have no class. Protocol: `per_class` images of each class from `generate` with
    `seed`; pixel_range, binary: of the data. To be read beside the judge's accuracy on test images.
    """
    assert model.num_classes is not None
    labels = torch.arange(model.num_classes).repeat_interleave(per_class)
    images = generate(model, len(labels), labels, pixel_range, binary, seed)
    seen = torch.cat([judge.classify(batch).cpu() for batch in images])
    return (seen == labels).view(-1, per_class).double().mean(1)


def swap_effects(
    model: Model,
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    pixel_range: tuple[float, float],
    binary: bool,
    seed: int,
) -> dict[str, float]:
    """Measures what changes in a reconstruction when the label, or the code, is another image's.

    images: [N, C, H, W] floats in pixel_range, as the model sees them, best a few thousand of a
    held-out split; labels: [N]. With z = mu(x, y), the posterior mean:

    - `reconstruction_mse`: |x'(z, y) - x|^2, a mean over pixels and images, as those below, in the
      units of pixel_range; x' is the mean image;
    - `label_swap_mse`: |x'(z, y2) - x'(z, y)|^2 for a class y2 drawn from the others with `seed`;
      `label_swap_ratio`: in units of the reconstruction's;
    - `label_swap_followed`: the share of x'(z, y2) in which the judge sees y2, shown to it by `as_data`.
      If z still tells the label, a decoder may follow z instead;
    - `latent_swap_mse`, `latent_swap_ratio`: the same with the code of another image, drawn from all,
      in place of z, and the own label.

    Raises ValueError for other shapes, or fewer than two images.
    """
    _check(images, labels)
    assert model.num_classes is not None
    new_labels, partners = _swaps(labels.cpu(), model.num_classes, seed)
    size, device = batch_size(model.shape), model.device
    sums = torch.zeros(4, dtype=torch.float64)
    with evaluating(model), seeded(seed, device):

        def decoded(codes: Tensor, classes: Tensor) -> Tensor:
            return model.likelihood.mean(model.decode(codes, classes.to(device)))

        pairs = zip(images.split(size), labels.split(size), strict=True)
        codes = torch.cat([model.encode(x.to(device), y.to(device)).code for x, y in pairs])
        for index in torch.arange(len(images)).split(size):
            x, y, z = images[index].to(device), labels[index], codes[index]
            same = decoded(z, y)
            relabelled = decoded(z, new_labels[index])
            recoded = decoded(codes[partners[index]], y)
            followed = judge.classify(as_data(relabelled, pixel_range, binary)).cpu() == new_labels[index]
            squares = [_squares(same, x), _squares(relabelled, same), _squares(recoded, same), followed.double()]
            sums += torch.stack([values.sum() for values in squares])
    error, of_label, of_code, followed = (sums / len(images)).tolist()
    unit = max(error, 1e-12)  # a perfect reconstruction has no error to compare with
    return {
        "reconstruction_mse": error,
        "label_swap_mse": of_label,
        "label_swap_ratio": of_label / unit,
        "label_swap_followed": followed,
        "latent_swap_mse": of_code,
        "latent_swap_ratio": of_code / unit,
    }


def _swaps(labels: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws for each image another class, uniform over the others, and the index of another image; [N] both."""
    generator = torch.Generator().manual_seed(seed)
    new_labels = (labels + torch.randint(1, num_classes, labels.shape, generator=generator)) % num_classes
    order = torch.randperm(len(labels), generator=generator)
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)  # a cycle through all: nobody is its own partner
    return new_labels, partners


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Computes the mean squared difference over the pixels of each image, [B] float64, on the processor."""
    return (a - b).square().flatten(1).mean(1).cpu().double()


def label_in_codes(codes: Tensor, labels: Tensor, seed: int) -> tuple[float, float]:
    """Measures how well a linear probe reads the label off the codes, and what guessing would reach.

    codes: [N, d], the means mu(x, y) of held-out images; labels: [N]. A conditional VAE does not need the
    label in z; its encoder sees the label, so that it may put it there all the same.

    Protocol: `linear_probe` learns from a half of the images, drawn with `seed`; both metrics are of
    the other half. Chance is the share of the first half's most frequent class. Raises ValueError for
    other shapes, NaN, or a half with one class only.
    """
    _check(codes, labels)
    known, asked = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    x, y = codes.detach().cpu(), labels.cpu()
    accuracy = linear_probe(*(part.numpy() for part in (x[known], y[known], x[asked], y[asked])))
    return accuracy, (y[asked] == y[known].mode().values).double().mean().item()


def _check(rows: Tensor, labels: Tensor) -> None:
    if len(rows) < 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"labels must be [N], one for each of two or more rows {list(rows.shape)}, got {list(labels.shape)}"
        )
