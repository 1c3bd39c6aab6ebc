"""Trains the judge: a small image classifier, on the data set's own labelled images.

It tells whether a generated image shows what was asked for, and its features are the space in which
generated and real images are compared. It is trained where it is used and cached, so that no
downloaded weights decide a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.core.files import whole
from vaelab.core.randomness import seeded
from vaelab.inference.batches import batch_size

ARCHITECTURE = 1
"""Version of network and training: raise it with any change to either, and cached judges are trained anew."""
FEATURES, WIDTH = 64, 16
"""Features of an image, and channels of the first layer."""
LARGEST = 32
"""Most pixels of a side that the judge looks at: the cost of a larger image would grow with its area."""
STEPS, BATCH, LEARNING_RATE = 500, 128, 1e-2
"""Settings of the judge's training: 64,000 images, whatever the size of the set (1.2 epochs of MNIST, 45 of digits)."""


class Judge(nn.Module):
    """A classifier of three convolutions with batch norm, then 64 features, then a linear layer.

    shape: (C, H, W) of the images, from 8x8. Images of more than 32 pixels a side are averaged down
    to 32 first, so that the judge is blind to finer detail.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.shape, self.num_classes = tuple(shape), num_classes
        channels, height, width = shape
        self.trunk = nn.Sequential(
            nn.AdaptiveAvgPool2d((min(height, LARGEST), min(width, LARGEST))),
            *_convolution(channels, WIDTH),
            nn.MaxPool2d(2),
            *_convolution(WIDTH, 2 * WIDTH),
            nn.MaxPool2d(2),
            *_convolution(2 * WIDTH, 4 * WIDTH),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * WIDTH, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a processor

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits of the classes, [B, K], of float images in [0, 1], [B, C, H, W]."""
        return self.head(self.trunk(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Returns features of each image, [N, 64] float32 and not negative: the last layer decides from them.

        images: [N, C, H, W], uint8 or floats in [0, 1], on any device; taken in batches. The result is
        on the judge's device. Raises ValueError for another shape, range or type, and for NaN.
        """
        if images.shape[1:] != self.shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.shape))}], got {list(images.shape)}")
        size = batch_size(self.shape)
        parts = [self.trunk(_as_unit_floats(part.to(self.head.weight.device))) for part in images.split(size)]
        return torch.cat(parts) if len(images) else self.head.weight.new_empty(0, FEATURES)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Returns the most probable class of each image, [N] int64; takes what `features` takes."""
        return self.head(self.features(images)).argmax(1)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _as_unit_floats(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floats in [0, 1], got {images.dtype}")
    if not (images.min() >= 0 and images.max() <= 1):  # NaN fails both
        raise ValueError(f"images must be in [0, 1], got {images.min():.3g} to {images.max():.3g}; see to_unit")
    return images.float()


def train_judge(images: Tensor, labels: Tensor, num_classes: int, seed: int, progress: bool) -> Judge:
    """Trains a judge on labelled images. Returns it in eval mode, on the device the images are on.

    images: [N, C, H, W], uint8 or floats in [0, 1], as the model sees them: of binarised data, binary
    ones (of `dynamic` binarisation one draw). labels: [N] int64 below num_classes.

    Protocol: 500 steps of 128 images with Adam and OneCycle (peak rate 0.01, no augmentation); the order
    is that of reshuffled passes. A function of its arguments: global random state, and the caller's
    gradient mode, are as before. The same seed gives the same judge on one kind of device only.
    Raises ValueError for images that no judge can be trained on.
    """
    _check_training_set(images, labels, num_classes)
    channels, height, width = images.shape[1:]
    device = images.device
    labels = labels.to(device)
    order = _training_order(len(images), seed)
    # outside of any inference mode of the caller's, in which no gradient can be had
    with seeded(seed, device), torch.inference_mode(False), torch.enable_grad():
        judge = Judge((channels, height, width), num_classes).to(device)
        optimizer = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
        for index in _bar(order.to(device), progress):
            x = _as_unit_floats(images[index]).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(judge(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)


def _check_training_set(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or min(images.shape[2:]) < 8 or len(images) < 2:
        raise ValueError(f"images must be two or more of [C, H, W] from 8x8 pixels, got {list(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{len(images)}], one per image, got {labels.dtype} {list(labels.shape)}"
        )
    if num_classes < 2 or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be of two or more classes and below num_classes, which is {num_classes}")


def _training_order(size: int, seed: int) -> Tensor:
    """Returns indices of the images of each step, [STEPS, BATCH]: passes through the set, each shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-STEPS * BATCH // size)
    return torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])[: STEPS * BATCH].view(
        -1, BATCH
    )


def _bar(steps: Tensor, progress: bool) -> Any:
    from tqdm import tqdm

    disable = None if progress else True
    return tqdm(steps, desc="training the judge", unit="step", delay=2, leave=False, disable=disable)


def cached_judge(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    seed: int,
    device: torch.device,
    progress: bool,
    folder: Path | None = None,
) -> Judge:
    """Returns the judge of a data set: from the cache, or trained with `train_judge` and kept there.

    images, labels: as `train_judge` takes them. The judge is kept under what they hold, not under where they come
    from: other images, labels, seed or number of classes are another judge. folder: of the cache; `cache_folder()`
    if None.

    A damaged file is trained and written anew. A folder that cannot be written to costs a training
    each time and nothing else.
    """
    what = hashlib.sha256(json.dumps([ARCHITECTURE, list(images.shape), num_classes, seed]).encode())
    for values in (images, labels):
        what.update(values.cpu().numpy().tobytes())
    name = f"judge-{what.hexdigest()[:24]}.pt"
    path = (cache_folder() if folder is None else folder) / name
    judge = _load(path)
    if judge is None:
        judge = train_judge(images.to(device), labels, num_classes, seed, progress)
        with contextlib.suppress(OSError):
            _save(judge, path)
    return judge.to(device)


def cache_folder() -> Path:
    """Returns `vaelab` in $XDG_CACHE_HOME, by default ~/.cache; relative values are ignored, as that standard asks."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "vaelab"


def _save(judge: Judge, path: Path) -> None:
    """Writes a judge whole or not at all, whoever else writes the same one at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    with whole(path) as partial:
        torch.save({"shape": list(judge.shape), "num_classes": judge.num_classes, "weights": weights}, partial)


def _load(path: Path) -> Judge | None:
    """Loads the judge in a file; None if there is none, or if it is damaged."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load does not look at the check sums
                return None
        saved = torch.load(path, map_location="cpu", weights_only=True)
        judge = Judge(tuple(saved["shape"]), saved["num_classes"])
        judge.load_state_dict(saved["weights"])
    except Exception:  # a damaged file fails in many ways, and training anew mends them all
        return None
    return judge.eval().requires_grad_(False)
