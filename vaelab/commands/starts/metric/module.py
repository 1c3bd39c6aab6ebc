"""A metric of one's own, which vaelab eval measures beside its own."""

from __future__ import annotations

import torch

from vaelab.evaluation.subject import Section, Subject


def mine(subject: Subject) -> Section:
    """Measures how sharp reconstructions are beside their originals, by the differences of neighbouring pixels.

    subject: the model (`subject.model`), its images in batches as the model sees them (`subject.batches()`), their
    codes and labels (`subject.codes`, `subject.labels`). Returns numbers by name, and a sentence that says how they
    are measured.
    """
    originals, made = [], []
    for batch in subject.batches():
        originals.append(roughness(batch.images))
        made.append(roughness(subject.model.reconstruct(batch.images, batch.labels)))
    ratio = torch.cat(made).mean() / torch.cat(originals).mean()
    how = "Sharpness: mean |difference| of neighbouring pixels of reconstructions, over that of their originals."
    return Section({"sharpness": ratio.item()}, how)


def roughness(images: torch.Tensor) -> torch.Tensor:
    """Computes the mean absolute difference of neighbouring pixels, [B]. images: [B, C, H, W]."""
    across = images.diff(dim=3).abs().flatten(1).mean(1)
    return across if images.shape[2] == 1 else (across + images.diff(dim=2).abs().flatten(1).mean(1)) / 2
