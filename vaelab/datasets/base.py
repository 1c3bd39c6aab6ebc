"""What all data sets share: splitting, conversion to floats, and loaders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import psutil
import pytorch_lightning as pl
import torch
from pydantic import Field
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.core.errors import UserError
from vaelab.core.types import Portion, PositiveInt, Real, Seed
from vaelab.datasets.classes import balanced_order, chosen, labels_of, mixed_order, told, without
from vaelab.datasets.loaders import IndexBatches, Newest, ResidentLoader, epoch_order, free_memory, streaming_loader
from vaelab.datasets.splits import Split, TensorSplit, checked, drawn_once, gather, moments, unit
from vaelab.nn.augment import Augment
from vaelab.nn.likelihoods.columns import Column

MOMENTS_SAMPLE = 10_000
"""Most images that the mean image and the spread around it are computed from."""
READ_AT_ONCE = 8 * 2**20
"""Bytes of images, as floats, that the loader of a GPU reads at once: a launch takes it longer than the copy."""
MOMENTS_VALUES = 4 * 2**20
"""Pixel values that are held at a time while the mean image is computed, in 20 bytes each."""


@dataclass(kw_only=True, eq=False)
class ImageData(pl.LightningDataModule):
    """A data set of images: train, validation and test.

    A family subclasses this, adds its own options as fields and implements `load`.

    batch_size: images per process and step.
    val_size: validation images, taken out of the training images at random: a count if 1 or
        more, a fraction below 1; 0 trains on all of them.
    binarize: `none`; `threshold` (x > 0.5); `static` (each pixel drawn once with its grey value
        as probability); `dynamic` (drawn anew at every visit).
    pixel_range: the values that black and white are mapped to.
    storage: `resident` (one tensor on the training device), `stream` (read ahead by
        workers), or `auto` (resident where it fits).
    num_workers: processes that read ahead when streaming.
    seed: seed of the batch order and of `static`. split_seed: seed of the choice of validation images, kept
        apart so that runs which differ in `seed` are validated on the same images.
    leave_out: classes, by name or number, that are in no part of the data; their test images are `left_out`.
    balance: whether an epoch of training has as many images of each class, those of rare classes several times.
    labelled: training images whose label a model is told, as many of each class; None for all.
    """

    batch_size: PositiveInt
    val_size: Portion
    binarize: Literal["none", "threshold", "static", "dynamic"]
    pixel_range: tuple[Real, Real]
    storage: Literal["auto", "resident", "stream"]
    num_workers: Annotated[int, Field(ge=0, le=1024)]
    seed: Seed
    split_seed: Seed
    leave_out: list[Annotated[int, Field(ge=0)] | str] | None = None
    balance: bool = False
    labelled: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__init__()
        low, high = self.pixel_range
        if not low < high:
            raise UserError(f"dataset.pixel_range={[low, high]}: the first value must be the smaller one, as in [0, 1]")
        self.pixel_range = (float(low), float(high))
        self.augment: Augment | None = None  # what changes training images at each visit
        self.newest: Newest | None = None  # what is kept for other runs that see the same batches
        self.left_out: Split | None = None  # test images of the classes that were left out
        self._known: Tensor | None = None  # training images whose label is told, where those of others are not
        self._loaded = False
        self._seen = 0  # images already seen of an epoch that is resumed in its middle
        self._dealt: dict[str, IndexBatches] = {}  # batches of the train, val and test images, for this process
        self._as_seen: dict[str, bool] = {}  # of which parts the loader gives images as the model sees them

    # --- for the families ---------------------------------------------------------------------

    def load(self) -> tuple[Split, Split]:
        """Reads the training images (validation included) and the test images, of one shape; floats lie in [0, 1].

        Raises UserError if files are missing or broken: it names the file and the remedy.
        """
        raise NotImplementedError

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None if the images have no labels."""
        return None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their labels: their numbers, where a family has no names for them."""
        return None if self.num_classes is None else [str(label) for label in range(self.num_classes)]

    @property
    def factor_sizes(self) -> dict[str, int] | None:
        """Name and number of values of each ground-truth factor, or None."""
        return None

    @property
    def fields(self) -> Sequence[Column] | None:
        """The columns of a table, which each example is a row of; None for anything else."""
        return None

    @property
    def masked(self) -> bool:
        """Whether values may be missing: they are NaN, which a likelihood does not count and an encoder sees as 0."""
        return False

    @property
    def found(self) -> dict[str, Any]:
        """Options that were null and that the data have answered, once set up: they join the run's config."""
        return {}

    # --- life of the splits -------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Reads the data and splits it; further calls do nothing."""
        if self._loaded:
            return
        parts = checked(self.load(), self.num_classes, any_values=self.masked or self.fields is not None)
        if self.leave_out is not None:
            parts, left_out = without(parts, self.leave_out, self.class_names)
            self.left_out = self._hold(left_out)
        train, test = (self._hold(split) for split in parts)
        val_count = self._val_count(len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.split_seed))
        self.train = train.subset(order[val_count:].sort().values) if val_count else train
        self.val = train.subset(order[:val_count].sort().values)
        self.test = test
        if self.balance and self.num_classes is None:
            raise UserError("dataset.balance=true: these data have no classes: leave it out")
        if self.labelled is not None:
            self._choose_labelled(self.labelled)
        self._loaded = True

    def take_over(self, other: ImageData) -> None:
        """Takes what another has read, in the place of `setup`: data of the same options, whose tensors both hold."""
        own = {field.name for field in fields(self)} | {"trainer", "augment", "newest", "_seen", "_dealt", "_as_seen"}
        if self.binarize == "dynamic":  # drawn for each run anew
            own |= {"_moments", "mean_image", "spread"}
        vars(self).update({name: value for name, value in vars(other).items() if name not in own})

    def _choose_labelled(self, count: int) -> None:
        """Chooses the images whose label is told; the split itself keeps all labels, for what measures a model."""
        if self.num_classes is None:
            raise UserError(f"dataset.labelled={count}: these data have no labels: leave it out")
        if self.balance:
            raise UserError("dataset.balance=true needs the labels of all images: leave out dataset.labelled or this")
        self._known = chosen(self._train_labels, count, self.split_seed)

    def _val_count(self, size: int) -> int:
        count = round(self.val_size * size) if self.val_size < 1 else int(self.val_size)
        if count >= size:
            raise UserError(f"dataset.val_size={self.val_size}: there are only {size} training images to take it from")
        return count

    def _hold(self, split: Split) -> Split:
        """Prepares a split to be kept: in memory if it should be and fits, binarised if static."""
        fits = split.nbytes <= psutil.virtual_memory().available // 2
        wanted = self.storage == "resident" or (self.storage == "auto" and fits)
        if wanted and split.nbytes and not isinstance(split, TensorSplit):
            split = gather(split)
        if self.binarize == "static":
            if not isinstance(split, TensorSplit):
                raise UserError("dataset.binarize=static needs the images in memory; use binarize=dynamic or threshold")
            split = drawn_once(split, self.seed)
        return split

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.train.shape

    @property
    def binary(self) -> bool:
        """Whether every pixel is one of the two ends of the range."""
        return self.binarize != "none"

    @cached_property
    def mean_image(self) -> Tensor:
        """The mean training image, [C, H, W] float32 in the data's range, from at most 10,000 images."""
        return self._moments[0]

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the pixels around the mean image, in the data's range."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, float]:
        index = torch.linspace(0, len(self.train) - 1, min(len(self.train), MOMENTS_SAMPLE)).long()
        parts = index.split(max(1, min(1000, MOMENTS_VALUES // math.prod(self.shape))))
        return moments(self.as_model_sees(self.train.batch(part)).images.cpu() for part in parts)

    def sample_batch(self, count: int, device: torch.device) -> Batch:
        """Takes `count` images as the model sees them, always the same: of validation, or else of training."""
        split = self.val if len(self.val) else self.train
        index = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
        return self.as_model_sees(split.batch(index).to(device))

    def training_images(self, count: int) -> Batch:
        """Takes `count` training images as the model sees them, or all if there are fewer; always the same."""
        index = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        return self.as_model_sees(self.train.batch(index.sort().values))

    def as_model_sees(self, batch: Batch, augment: Augment | None = None) -> Batch:
        """Converts stored images to floats in the data's range, on the device they are on.

        augment: what changes them on the way, drawing from torch's global generators.
        """
        x = unit(batch.images)
        if augment is not None:
            x = augment(x)
        if self.binarize == "threshold" or (self.binarize == "static" and augment is not None):
            x = (x > 0.5).float()
        elif self.binarize == "dynamic":
            x = torch.bernoulli(x)
        low, high = self.pixel_range
        if (low, high) != (0.0, 1.0):
            x = x.mul_(high - low).add_(low)
        return batch._replace(images=x)

    # --- loaders, as Lightning asks for them --------------------------------------------------

    def train_dataloader(self) -> Any:
        self.train, loader = self._loader("train", self.train, self._train_order, self._steps, self._known)
        self._go_on(self._dealt["train"])
        return loader

    def val_dataloader(self) -> Any:
        if not len(self.val):
            return []
        self.val, loader = self._loader("val", self.val, lambda: (torch.arange(len(self.val)), 0))
        return loader

    def test_dataloader(self) -> Any:
        self.test, loader = self._loader("test", self.test, lambda: (torch.arange(len(self.test)), 0))
        return loader

    def state_dict(self) -> dict[str, int]:
        """Returns how many images of the present epoch all processes have seen."""
        if self.trainer is None or "train" not in self._dealt:
            return {"images": 0}
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return {"images": self._dealt["train"].bounds[done - 1][1] if done else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._seen = state_dict["images"]

    def _go_on(self, batches: IndexBatches) -> None:
        """Resumes in the middle of an epoch: counts its batches as this number of processes cuts them."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        seen, self._seen = self._seen, 0
        left = len(self.train) - seen
        if not seen or progress.is_last_batch:
            return
        if left < self.trainer.world_size:
            raise UserError(
                f"resume: {left} images of the epoch are left, too few for {self.trainer.world_size} processes"
            )
        current: Any = progress.current
        moved = batches.go_on_after(seen) - current.processed
        for count in ("ready", "started", "processed", "completed"):
            setattr(current, count, getattr(current, count) + moved)

    def _train_order(self) -> tuple[Tensor, int]:
        """Returns this epoch's order, and its first batch to come: a resumed epoch goes on where it stopped."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        start = 0 if progress.is_last_batch else progress.current.processed  # type: ignore[attr-defined]
        epoch = 0 if self.trainer.overfit_batches else self.trainer.current_epoch  # type: ignore[attr-defined]
        if self._known is not None:
            return mixed_order(self._known, self.seed, epoch), start
        if self.balance:
            return balanced_order(self._train_labels, self.seed, epoch), start
        return self.order_of(epoch), start

    @cached_property
    def _train_labels(self) -> Tensor:
        return labels_of(self.train)

    def order_of(self, epoch: int) -> Tensor:
        """Computes the training images' order in an epoch, [N] int64: a function of the seed and the epoch alone."""
        return epoch_order(len(self.train), self.seed, epoch)

    def _steps(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.accumulate_grad_batches, int(min(self.trainer.num_training_batches, len(self.train)))

    def _loader(
        self, part: str, split: Split, order: Any, steps: Any = None, known: Tensor | None = None
    ) -> tuple[Split, Any]:
        """Makes the loader of a split; returns it with the split, which may have moved to the device."""
        assert self.trainer is not None
        if len(split) < self.trainer.world_size:
            raise UserError(f"dataset: {len(split)} images cannot be dealt out to {self.trainer.world_size} processes")
        device = self.trainer.strategy.root_device
        resident = isinstance(split, TensorSplit) or not split.nbytes
        if resident and self.storage != "stream" and split.nbytes <= free_memory(device) // 2:
            split = split.to(device)

            def placed() -> tuple[Tensor, int]:
                indices, start = order()
                if self.newest is None:
                    return indices.to(device), start
                epoch = self.trainer.current_epoch if part == "train" and self.trainer else 0
                return self.newest.of(f"order of {part}", epoch, lambda: indices.to(device)), start

            batches = self._dealt[part] = self._batches(split, placed, steps)
            drawn = self.binarize == "dynamic" or (part == "train" and self.augment is not None)
            self._as_seen[part] = not drawn
            size = 4 * math.prod(self.shape) * self.batch_size
            ahead = 1 if device.type == "cpu" else max(1, READ_AT_ONCE // size)
            seen = None if drawn else self.as_model_sees
            return split, ResidentLoader(told(split, known, device), batches, seen, ahead, self.newest)
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError(
                "trainer.overfit_batches is for data in memory: use dataset.storage=resident, or leave it out"
            )
        batches = self._dealt[part] = self._batches(split, order, steps)
        return split, streaming_loader(told(split, known), batches, self.num_workers, pin_memory=device.type == "cuda")

    def _batches(self, split: Split, order: Any, steps: Any) -> IndexBatches:
        assert self.trainer is not None
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        return IndexBatches(order, len(split), self.batch_size, rank, processes, steps)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch if batch.images.device == device else batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        part = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        if self._as_seen.get(part):
            return batch
        return self.as_model_sees(batch, self.augment if part == "train" else None)
