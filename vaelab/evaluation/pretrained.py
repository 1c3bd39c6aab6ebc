"""Sections of an evaluation that compare images in the features of a network trained on other data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab.core.errors import UserError
from vaelab.core.pixels import to_bytes
from vaelab.evaluation.metrics.inception import FEATURES, Inception
from vaelab.evaluation.metrics.lpips import KINDS, LPIPS
from vaelab.evaluation.metrics.samples import as_data, frechet_distance, generate
from vaelab.evaluation.sections import spread
from vaelab.evaluation.subject import Section, Subject, Unsupported

BATCH = 32
"""Number of images of 299 pixels that pass through the network at a time."""
LEAST = min(kind.least for kind in KINDS)
"""Height and width of the smallest images that LPIPS can be measured of."""


def inception(subject: Subject) -> Section:
    """Measures the Fréchet Inception distance of generated images and of reconstructions."""
    subject.require_pictures()
    data, settings, model = subject.data, subject.settings, subject.model
    network = _of_fid(subject)
    compared, of_data = subject.some(subject.own, settings.generated), (data.pixel_range, data.binary)
    real = _features(network, subject.bytes_of(compared), "features of real images")
    redrawn = [
        to_bytes(as_data(model.reconstruct(batch.images, batch.labels), *of_data))
        for batch in subject.batches(compared, "reconstructing")
    ]
    figures = {"images": float(len(real))}
    figures["rfid"] = frechet_distance(real, _features(network, torch.cat(redrawn), "features of reconstructions"))
    if model.prior is not None:
        labels = subject.known_of(compared, "labels") if model.conditional else None
        drawn = torch.cat([to_bytes(part) for part in generate(model, len(compared), labels, *of_data, settings.seed)])
        figures["fid"] = frechet_distance(real, _features(network, drawn, "features of samples"))
    return Section(
        figures,
        f"Fréchet Inception distance (Heusel et al. 2017), {FEATURES:,} features of the network of pytorch-fid with "
        f"weights {network.fingerprint}: of {len(real):,} real images to as many generated ones (fid) and to their "
        "reconstructions (rfid). Published values are of 50,000 images, most of them of the training set; with fewer "
        "the distance is higher.",
    )


def _features(network: Inception, images: Tensor, bar: str) -> Tensor:
    """Computes the features of images, [N, C, H, W] uint8, on the processor."""
    device = next(network.parameters()).device
    parts = tqdm(images.split(BATCH), desc=bar, unit="batch", delay=2, leave=False, disable=None)
    return torch.cat([network(part.to(device).float() / 255).cpu() for part in parts])


def _of_fid(subject: Subject) -> Inception:
    """Reads the network of the FID. Raises UserError for a file of another, and for too few images."""
    if subject.settings.inception is None:
        raise Unsupported("no file of weights was named: inception=PATH")
    network, count = Inception(subject.settings.inception), min(len(subject.own), subject.settings.generated)
    if count <= FEATURES:
        raise UserError(
            f"inception: it compares {count:,} images, and a covariance of {FEATURES:,} features needs more: "
            f"{'raise generated=' if count < len(subject.own) else 'take a larger split'}"
        )
    return network.to(subject.device)


def lpips(subject: Subject) -> Section:
    """Measures the learned perceptual distance between each image and its reconstruction."""
    subject.require_pictures()
    network, model = _of_lpips(subject), subject.model
    distances = torch.cat(
        [
            network(*map(subject.unit, (batch.images, model.reconstruct(batch.images, batch.labels))))
            for batch in subject.batches(bar="perceptual distances")
        ]
    )
    distances = distances.cpu().double()
    return Section(
        spread(distances),
        f"LPIPS (Zhang et al. 2018), version 0.1, in the features of {network.kind.name} with weights "
        f"{network.fingerprint}: of each image and the mean image decoded from its code without noise, cut to [0, 1].",
        per_image={"lpips": distances},
    )


def _of_lpips(subject: Subject) -> LPIPS:
    """Reads the network of LPIPS. Raises UserError for a file of another, and for images that it cannot take."""
    if subject.settings.lpips is None:
        raise Unsupported("no file of weights was named: lpips=PATH")
    network, (_, height, width) = LPIPS(subject.settings.lpips), subject.model.shape
    if min(height, width) < network.kind.least:
        raise UserError(
            f"lpips: {network.kind.name} takes images from {network.kind.least} pixels on, and these are "
            f"{height}x{width}: " + ("name a file of VGG16" if min(height, width) >= LEAST else "leave it out")
        )
    return network.to(subject.device)


def check(subject: Subject, sections: Iterable[str]) -> None:
    """Raises UserError, before any work, where a section of these cannot be measured with the file that was named."""
    for name in CHECKS.keys() & set(sections):
        CHECKS[name](subject)


CHECKS = {"inception": _of_fid, "lpips": _of_lpips}
"""The function that opens the file of each section here."""
