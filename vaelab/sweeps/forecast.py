"""Forecasts runs: their steps and epochs by arithmetic, their time from a few measured steps."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl

from vaelab import runs
from vaelab.core.config import build
from vaelab.core.errors import DivergenceError, Stopped, UserError
from vaelab.datasets.loaders import batch_bounds
from vaelab.nn.schedules import ENDLESS, Progress
from vaelab.sweeps.timing import FOREVER, synchronise
from vaelab.training.checks import check_run
from vaelab.training.fit import build_model, lightning_errors, prepare

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

WARM = 5
"""Warm-up steps before the first that is timed."""
SHORT, LONG = 1.0, 10.0
"""Least seconds of a measurement, and seconds after which three steps are enough."""
VALIDATED = 8
"""Batches of a validation that are timed."""
PARTS = ("train", "val", "test")
OF_LENGTH = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")
"""Arguments of the trainer that set a run's length; the cost of a step does not depend on them."""


class Known(NamedTuple):
    """The numbers of a run that are known before it runs.

    beta, capacity: at its end; beta as weight of sums over pixels and latent dimensions, and of
    means. steps, epochs: of the whole run, None if it has no end. steps_done: of them. seconds: time
    of what is left of it, None if it was not measured.
    """

    beta: float | None
    beta_if_mean_reduced: float | None
    capacity: float | None
    steps: int | None
    epochs: int | None
    steps_done: int
    seconds: float | None


UNKNOWN = Known(None, None, None, None, None, 0, None)


class Kind(NamedTuple):
    """Properties that runs of one kind share. processes: that train together. cost: None if it was not measured."""

    processes: int
    cost: Cost | None


class Cost(NamedTuple):
    """Cost of a kind of run, seconds: until the first step; per step; per validation batch; per end of an epoch."""

    start: float
    batch: float
    validation: float
    end: float


class Forecast:
    """Forecasts runs; measures each kind of run once.

    folder: an empty one for what the measured runs leave. steps: that are timed, 0 for none.
    """

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.data: dict[str, Any] = {}
        self.kinds: dict[tuple[str, bool], Kind] = {}

    def of(self, config: dict[str, Any], begun: Path | None = None, done: bool = False) -> Known:
        """Forecasts a run. begun: the folder that it would go on in. Raises UserError if the run would be refused."""
        config = copy.deepcopy(config)
        config["logger"], config["callbacks"]["pictures"] = None, None
        with TemporaryDirectory(dir=self.folder) as folder:
            run = Path(folder)
            config["run"]["dir"] = config["trainer"]["default_root_dir"] = folder
            check_run(config, run)
            if config["trainer"]["fast_dev_run"]:
                raise UserError("trainer.fast_dev_run: leave it out: there is nothing to plan of a batch or two")
            data = self._data(config["dataset"])
            model = build_model(config, data)
            kind = self._kind(config, model, run, measured=self.steps > 0 and not done)
        length = _length(config, data, kind.processes)
        at = 0 if begun is None else runs.read_checkpoint(runs.checkpoint_path(begun, "last"))["global_step"]
        seconds = None
        if kind.cost and length.steps:
            seconds = _seconds(kind.cost, length, at / length.steps)
        ends = _at_the_end(config, model, length)
        beta, latents = ends.get("beta"), model.layout.dimensions
        reduced = None if beta is None or latents is None else beta * latents / math.prod(data.shape)
        return Known(beta, reduced, ends.get("capacity"), length.steps, length.epochs, at, seconds)

    def _data(self, config: dict[str, Any]) -> Any:
        """Returns the data set, read once for all runs that have the same."""
        key = json.dumps(config | {"seed": 0}, sort_keys=True)
        if key not in self.data:
            self.data[key] = build(config)
            self.data[key].setup()
        return self.data[key]

    def _kind(self, config: dict[str, Any], model: Model, run: Path, measured: bool) -> Kind:
        """Returns a run's kind: models of the same parts and sizes on the same data, trained alike.

        The values of scalars, seeds, schedules and learning rates make no other kind: they cost no time.
        """
        trainer = {key: value for key, value in config["trainer"].items() if key not in OF_LENGTH}
        parts = (
            [type(model).__name__, repr(model), [list(p.shape) for p in model.parameters()]],
            config["dataset"] | {"seed": 0},
            trainer | {"default_root_dir": None},
            [node and node["_target_"] for node in (config["optimizer"], config["averaging"])],
            [config[key] for key in ("compile", "cuda_graph", "matmul_precision", "channels_last")],
        )
        key = json.dumps(parts, sort_keys=True, default=str), measured
        if key not in self.kinds:
            self.kinds[key] = _measure(config, run, self.steps if measured else 0)
        return self.kinds[key]


# --- lengths ----------------------------------------------------------------------------------


class Length(NamedTuple):
    """The length of a run.

    batches, per_epoch: of an epoch, and the steps that are made of them. validated, validations:
    batches of a validation, and validations in an epoch. tested: batches of the test. steps,
    epochs: None if it has no end.
    """

    batches: int
    per_epoch: int
    validated: int
    validations: float
    tested: int
    steps: int | None
    epochs: int | None


def _length(config: dict[str, Any], data: ImageData, processes: int) -> Length:
    """Computes a run's length by Lightning's rules."""
    trainer = config["trainer"]
    all_of = {part: len(batch_bounds(len(getattr(data, part)), data.batch_size, processes)) for part in PARTS}
    overfit = trainer["overfit_batches"]
    batches = _limited(all_of["train"], overfit or trainer["limit_train_batches"])
    per_epoch = math.ceil(batches / trainer["accumulate_grad_batches"])
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    if epochs is None:
        epochs = 1000 if steps == -1 and trainer["max_time"] is None else -1  # Lightning's own default
    ends = [end for end in (epochs * per_epoch if epochs > 0 else 0, steps) if end > 0]
    validated = _limited(all_of["val"], overfit or trainer["limit_val_batches"])
    return Length(
        batches,
        per_epoch,
        validated,
        _validations(trainer, batches) if validated else 0,
        _limited(all_of["test"], trainer["limit_test_batches"]) * config["test"],
        min(ends, default=None),
        math.ceil(min(ends) / per_epoch) if ends else None,
    )


def _validations(trainer: dict[str, Any], batches: int) -> float:
    """Counts the validations of an epoch, but for those that the clock asks for. Raises UserError if it has none."""
    interval, every = trainer["val_check_interval"] or 1.0, trainer["check_val_every_n_epoch"]
    if not isinstance(interval, int | float):
        return 0
    if every is None:
        return batches / interval
    after = interval if isinstance(interval, int) else max(1, int(batches * interval))
    if after > batches:
        raise UserError(f"trainer.val_check_interval={interval}: an epoch has {batches} batches: lower it")
    return batches // after / every


def _limited(count: int, limit: float | None) -> int:
    """Limits a number of batches: to a fraction of them, or to at most so many."""
    return count if limit is None else int(count * limit) if isinstance(limit, float) else min(count, limit)


def _at_the_end(config: dict[str, Any], model: Model, length: Length) -> dict[str, float]:
    """Returns the model's scalars as they are when training ends."""
    values = {name: float(getattr(model, name)) for name in model.scalars}
    end = Progress(length.steps, length.steps / length.per_epoch, 1.0) if length.steps else ENDLESS
    for name, schedule in build(config["callbacks"]["anneal"]).schedules.items():
        values[name] = schedule(end)
    return values


# --- times ------------------------------------------------------------------------------------


def _seconds(cost: Cost, length: Length, done: float) -> float:
    """Computes the seconds of a run of which a part is done, with the test of its best checkpoint."""
    assert length.steps is not None
    validation = length.validations * length.validated * cost.validation
    an_epoch = length.batches * cost.batch + validation + cost.end
    return cost.start + (1 - done) * length.steps / length.per_epoch * an_epoch + length.tested * cost.validation


def _measure(config: dict[str, Any], run: Path, steps: int) -> Kind:
    """Trains until so many steps are timed, with a validation and a checkpoint.

    There is no cost if several processes train, or if training ends by itself before a step is timed.
    """
    began = time.perf_counter()
    limit = config["trainer"]["limit_val_batches"]
    few = {
        "limit_val_batches": VALIDATED if limit is None or limit > 0 else limit,
        "check_val_every_n_epoch": 1,
        "enable_progress_bar": False,
    }
    data, model, trainer = prepare(config | {"trainer": config["trainer"] | FOREVER | few}, run)
    if not steps or trainer.world_size > 1:
        return Kind(trainer.world_size, None)
    clock = Clock(steps)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    logging.getLogger("vaelab").setLevel(logging.ERROR)  # warnings of unfinished schedules do not matter here
    try:
        with lightning_errors():
            trainer.fit(model, datamodule=data)
    except DivergenceError:  # this job diverges; others of its kind may learn more slowly
        pass
    except SystemExit as stop:  # how Lightning ends after a KeyboardInterrupt, or a signal's
        if isinstance(stop, Stopped) and stop.number != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None
    return Kind(1, clock.cost(began) if clock.counted else None)


class Clock(pl.Callback):
    """Times batches, validations and ends of epochs, and ends training when it has enough of them."""

    def __init__(self, steps: int):
        self.steps = steps
        self.warm, self.counted = 0, 0
        self.warming, self.spent, self.started = 0.0, 0.0, 0.0
        self.validations: list[float] = []
        self.ends: list[float] = []
        self.mark = self.validating = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._end_epoch()
        self.mark = time.perf_counter()
        self.started = self.started or self.mark

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Model, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.warm < WARM or self.counted + 1 >= self.steps:  # a timed step has to be complete on a GPU
            synchronise(trainer.strategy.root_device)
        now = time.perf_counter()
        took, self.mark = now - self.mark, now
        if self.warm < WARM:
            self.warm, self.warming = self.warm + 1, self.warming + took
            return
        self.counted, self.spent = self.counted + 1, self.spent + took
        if (self.counted >= self.steps and self.spent > SHORT) or (self.counted >= 3 and self.spent > LONG):
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self.validating = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        took = time.perf_counter() - self.validating
        self.mark += took  # validation is no part of the epoch's end
        self.validations.append(took / max(1, sum(trainer.num_val_batches)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Model) -> None:
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.mark:
            self.ends.append(time.perf_counter() - self.mark)

    def cost(self, began: float) -> Cost:
        """Returns the cost measured since `began`."""
        validation = statistics.median(self.validations) if self.validations else 0.0
        batch = self.spent / self.counted
        start = self.started - began + max(0.0, self.warming - self.warm * batch)  # compilation, if there is any
        return Cost(start, batch, validation, statistics.median(self.ends or [0.0]))
