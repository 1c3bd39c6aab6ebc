"""The section of an evaluation that compares images in the features of a network trained on other data."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab.core.errors import UserError
from vaelab.core.pixels import to_bytes
from vaelab.evaluation.metrics.inception import FEATURES, Inception
from vaelab.evaluation.metrics.samples import as_data, frechet_distance, generate
from vaelab.evaluation.subject import Section, Subject, Unsupported

BATCH = 32
"""Number of images of 299 pixels that pass through the network at a time."""


def inception(subject: Subject) -> Section:
    """Measures the Fréchet Inception distance of generated images and of reconstructions."""
    path = subject.settings.inception
    if path is None:
        raise Unsupported("no file of weights was named: inception=PATH")
    data, settings, model = subject.data, subject.settings, subject.model
    network = Inception(path).to(subject.device)
    compared, of_data = subject.some(subject.own, settings.generated), (data.pixel_range, data.binary)
    if len(compared) <= FEATURES:
        raise UserError(
            f"it compares {len(compared):,} images, and a covariance of {FEATURES:,} features needs more: "
            f"{'raise generated=' if len(compared) < len(subject.own) else 'take a larger split'}"
        )
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
