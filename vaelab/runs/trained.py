"""A trained run, opened: its model, its data, and batches of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vaelab import runs
from vaelab.core.config import build, check
from vaelab.core.errors import UserError
from vaelab.core.files import damaged
from vaelab.core.pixels import to_unit
from vaelab.nn.likelihoods.columns import Column, columns_of
from vaelab.runs import gate
from vaelab.runs.classes import Classes
from vaelab.runs.quiet import quieten

if TYPE_CHECKING:
    from vaelab.datasets.splits import Batch
    from vaelab.models import Model


class Trained:
    """A run folder with its model, in eval mode, and its data, which is read when first asked for.

    run: a run folder, or `last`. checkpoint: `best` or `last`. device: `auto`, or as torch names it.
    root: where the data lies, if it has moved. prior: one that was fitted to the run, in the place of the model's own.
    trust: whether to build what the folder names whatever it is, which runs its maker's code.
    Raises UserError if the run, the checkpoint or the device cannot be used.
    """

    model: Model

    def __init__(
        self,
        run: str | Path,
        checkpoint: str = "best",
        device: str = "auto",
        root: str | None = None,
        prior: str | None = None,
        trust: bool = False,
    ):
        quieten()
        self.folder = runs.find(run)
        self.checkpoint = runs.checkpoint_name(self.folder, checkpoint)
        self.config = runs.read_config(self.folder)
        for part in ("model", "dataset"):  # before any work
            gate.check(self.config[part], part, runs.Files(self.folder).config, trust)
            check(self.config[part], part)
        if self.checkpoint != checkpoint:
            print(f"{self.folder} has no {checkpoint} checkpoint, as before a first validation: its last one is taken")
        self.model = runs.load(self.folder, self.checkpoint, _device(device), prior, trust)
        self.dataset: dict[str, Any] = dict(self.config["dataset"])
        if root is not None:
            if "root" not in self.dataset:
                raise UserError(f"root={root}: the run's data set is read from no folder: leave it out")
            self.dataset["root"] = root

    @cached_property
    def data(self) -> Any:
        """The run's data set, set up."""
        return open_data(self.dataset, "dataset", self.model)

    @cached_property
    def classes(self) -> Classes:
        """The classes of the run's data set, named as in summary.json; without one, as the data names them."""
        count = self.model.num_classes or 0
        names = runs.read_summary(self.folder).get("data", {}).get("class_names")
        if names is None and count:
            try:
                names = build(self.dataset).class_names
            except UserError:  # the data has moved
                names = None
            return Classes(count, names if names and len(names) == count else None)
        if count and not (isinstance(names, list) and [type(name) for name in names] == [str] * count):
            raise damaged(runs.Files(self.folder).summary, f"class_names are not {count} names", runs.RESTORE)
        return Classes(count, names)

    @cached_property
    def fields(self) -> tuple[Column, ...] | None:
        """The columns of the table that the run is of; None for a run of anything else. Without reading the data."""
        schema = self.dataset.get("schema")
        return None if schema is None else columns_of(schema)

    @property
    def bits(self) -> Literal[8, 16]:
        """Bits of grey levels that image files are read with, as the run's own were."""
        return self.dataset.get("bits", 8)

    def split(self, name: str) -> Any:
        """Returns the train, val or test images. Raises UserError if there are none."""
        if not hasattr(self.data, name) or not len(getattr(self.data, name)):
            raise UserError(f"split={name}: the run has no such images: take another split")
        return getattr(self.data, name)

    def batch(self, split: str, index: Tensor) -> Batch:
        """Reads the images at `index` of a split, as the model sees them, on its device."""
        return self.data.as_model_sees(self.split(split).batch(index.cpu()).to(self.model.device))

    @property
    def pixel_range(self) -> tuple[float, float]:
        """The values of black and white, as the model sees them; without reading the data."""
        low, high = self.dataset["pixel_range"]
        return float(low), float(high)

    def unit(self, images: Tensor) -> Tensor:
        """Maps images from the model's range to [0, 1]."""
        return to_unit(images, self.pixel_range)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # builds of torch differ in what they raise
        raise UserError(f"device={name}: it cannot be used here: take device=cpu") from error
    return name


def open_data(config: dict[str, Any], key: str, model: Model) -> Any:
    """Opens the data set of a config, which the user knows as `key`. Raises UserError unless it fits the model."""
    check(config, key)
    data = build(config)
    try:
        data.setup()
    except UserError as error:
        here = "ood." if key == "ood" else ""
        raise UserError(str(error).replace("dataset.", here).replace("dataset=", f"{key}=")) from error
    if data.shape != model.shape:
        sizes = (" x ".join(map(str, shape)) for shape in (data.shape, model.shape))
        raise UserError("{}: its images are {}, and the model takes {}".format(key, *sizes))
    return data
