"""Measures the cost of a training step: the lab's loop and a bare one in turn, parts of a step, memory, arithmetic."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

from vaelab.core.errors import UserError
from vaelab.training.fit import build_model, hasten, lightning_errors, prepare
from vaelab.training.loop import LeanLoop

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

FOREVER = {
    "max_epochs": 10**6,  # not without end: schedules may be fractions of it
    "max_steps": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "fast_dev_run": False,
    "val_check_interval": None,
    "check_val_every_n_epoch": 10**9,
}
"""Arguments of the trainer with which nothing but the probe ends training, and nothing is validated."""
PARTS = ("data", "forward", "backward", "optimiser")
MATRIX = 2048
"""Rows and columns of the matrix product that the machine's limit is measured with."""


def measure(config: dict[str, Any], run: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Trains as `config` says until `rounds` rounds are timed, after one to warm up.

    Returns milliseconds per step as median, least and greatest of the rounds, the parts of the bare
    step, bytes and floating-point operations.
    """
    config["trainer"] |= FOREVER
    data, model, trainer = prepare(config, run)
    if trainer.world_size > 1:
        raise UserError("accelerator: bench measures one device: use cpu, gpu or mps")
    device = trainer.strategy.root_device
    twin = build_model(config, data).to(device).train()
    hasten(config, twin, data, device.type)
    bare = BareLoop(twin, data, trainer)
    probe = Probe(bare, steps, rounds)
    trainer.callbacks.append(probe)  # type: ignore[attr-defined]
    logging.getLogger("vaelab").setLevel(logging.ERROR)  # warnings of unfinished schedules do not matter here
    with lightning_errors():
        trainer.fit(model, datamodule=data)
    if not probe.lab:
        raise UserError("bench: training ended before a round was timed: leave out what stops it early")
    ratios = [ours / theirs for ours, theirs in zip(probe.lab, probe.bare, strict=True)]
    operations = bare.operations()
    limit = _matrix_limit(device, trainer)
    return {
        "config": config["run"]["name"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "batch_size": bare.size,
        "steps": steps,
        "lean_loop": isinstance(trainer.fit_loop.epoch_loop, LeanLoop) and trainer.fit_loop.epoch_loop.lean,
        "lab_ms": spread([1e3 * t for t in probe.lab]),
        "bare_ms": spread([1e3 * t for t in probe.bare]),
        "ratio": spread(ratios),
        "parts_ms": {part: 1e3 * statistics.median(times) for part, times in probe.parts.items()},
        "peak_memory_bytes": probe.peak,
        "operations": operations,
        "limit_per_second": limit,
        "share_of_limit": operations / statistics.median(probe.lab) / limit,
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


class BareLoop:
    """A loop that trains the same model without Lightning, logging, schedules and callbacks.

    model: another one than the lab trains. Batches come from the data's own training split.
    """

    def __init__(self, model: Model, data: ImageData, trainer: pl.Trainer):
        self.model, self.data, self.trainer = model, data, trainer
        self.device = trainer.strategy.root_device
        self.optimizer = model.configure_optimizers()
        self.size = min(data.batch_size, len(data.train))
        self.terms = model.compiled[0] if model.compiled else model.terms
        self.order = torch.empty(0, dtype=torch.int64, device=self.device)

    def batch(self) -> Any:
        if len(self.order) < self.size:
            self.order = torch.randperm(len(self.data.train), device=self.device)
        index, self.order = self.order[: self.size], self.order[self.size :]
        batch = self.data.train.batch(index)
        return self.data.as_model_sees(batch if batch.images.device == self.device else batch.to(self.device))

    def loss(self, batch: Any) -> torch.Tensor:
        with self.trainer.precision_plugin.train_step_context():
            self.model.place(batch)
            terms = self.terms(batch, self.model.noise(len(batch.images)))
            self.model.observed.append(self.model.observe(batch, terms))
            return self.model.objective(terms)

    def step(self, mark: Callable[[], None] = lambda: None) -> None:
        """Takes one step; `mark` is called after each of its parts."""
        batch = self.batch()
        mark()
        loss = self.loss(batch)
        mark()
        self.optimizer.zero_grad()
        loss.backward()
        mark()
        self.model.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        mark()

    def operations(self) -> int:
        """Counts floating-point operations of the matrix products and convolutions of a step, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            batch = self.batch()
            self.model.objective(self.model.terms(batch, self.model.noise(len(batch.images)))).backward()
        return counter.get_total_flops()


class Probe(pl.Callback):
    """Times the lab's steps, and the bare loop's in between. Ends of epochs are not counted.

    lab, bare: seconds per step of each round. parts: the same of the bare step's parts.
    """

    def __init__(self, loop: BareLoop, steps: int, rounds: int):
        self.loop, self.steps, self.rounds = loop, steps, rounds
        self.lab: list[float] = []
        self.bare: list[float] = []
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}
        self.round, self.peak = 0, 0
        self.counted, self.spent = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Model) -> None:
        if trainer.num_training_batches < 2:
            raise UserError("dataset.batch_size: an epoch is one batch, and bench times from one to the next: lower it")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if batch_idx > 0:
            self.counted, self.spent = self.counted + 1, self.spent + now - self.last
        if self.counted >= self.steps:
            self._end_round(trainer)
            now = time.perf_counter()
        self.last = now

    def _end_round(self, trainer: pl.Trainer) -> None:
        waited = time.perf_counter()
        synchronise(self.loop.device)
        ours = (self.spent + time.perf_counter() - waited) / self.counted
        self.peak = self.peak or peak_memory(self.loop.device)  # measured before the bare loop takes any
        started = time.perf_counter()
        for _ in range(self.steps):
            self.loop.step()
        synchronise(self.loop.device)
        theirs = (time.perf_counter() - started) / self.steps
        parts = self._split()
        if self.round:  # the first round warms up
            self.lab.append(ours)
            self.bare.append(theirs)
            for part, seconds in parts.items():
                self.parts[part].append(seconds)
        self.round, self.counted, self.spent = self.round + 1, 0, 0.0
        if self.round > self.rounds:
            trainer.should_stop = True

    def _split(self) -> dict[str, float]:
        """Measures the seconds of each part of a step; the device is waited for after each."""
        marks = []

        def mark() -> None:
            synchronise(self.loop.device)
            marks.append(time.perf_counter())

        steps = max(2, self.steps // 5)
        sums: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for _ in range(steps):
            mark()
            self.loop.step(mark)
            for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
                sums[part] += (end - start) / steps
            marks.clear()
        return sums


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process has held: of the GPU's memory where it trains on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":  # there getrusage counts the parent's memory from before the process began
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _matrix_limit(device: torch.device, trainer: pl.Trainer) -> float:
    """Measures floating-point operations per second of a large matrix product, in the precision of the run."""
    a, b = (torch.rand(MATRIX, MATRIX, device=device) for _ in range(2))
    best = float("inf")
    with trainer.precision_plugin.train_step_context(), torch.no_grad():
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(a, b)
            synchronise(device)
            best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best


def spread(values: list[float]) -> dict[str, float]:
    """Returns what is told of rounds: their median, the least and the greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def table(figures: dict[str, Any]) -> str:
    """Formats the measured values for the terminal."""
    f = figures
    threads = f", {f['threads']} threads" if f["device"] == "cpu" else ""
    lines = [
        f"{f['config']} on {f['device']}{threads}, precision {f['precision']}, batches of {f['batch_size']}",
        "",
        f"{'':12}{'ms/step':>10}{'steps/s':>10}{'images/s':>11}   rounds from - to, ms",
    ]
    for name, key in (("this lab", "lab_ms"), ("bare loop", "bare_ms")):
        ms = f[key]
        rate = 1e3 / ms["median"]
        spread = f"{ms['least']:.2f} - {ms['greatest']:.2f}"
        lines.append(f"{name:12}{ms['median']:>10.2f}{rate:>10.1f}{rate * f['batch_size']:>11,.0f}   {spread}")
    ratio = f["ratio"]
    lines += [
        f"{'lab / bare':12}{ratio['median']:>10.3f}{'':21}   {ratio['least']:.2f} - {ratio['greatest']:.2f}",
        "",
    ]
    bare = f["bare_ms"]["median"]
    parts = f["parts_ms"] | {
        "in between": bare - sum(f["parts_ms"].values()),
        "lab's own": bare * (ratio["median"] - 1),
    }
    for name, ms in parts.items():
        lines.append(f"{name:12}{ms:>10.2f}{ms / (bare * ratio['median']):>10.1%}")
    lines += [
        "",
        f"peak memory  {f['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"arithmetic   {f['operations'] / 1e9:.2f} GFLOP a step, {f['share_of_limit']:.0%} of this machine's "
        f"matrix products ({f['limit_per_second'] / 1e9:,.0f} GFLOP/s)",
    ]
    if not f["lean_loop"]:
        lines.append("loop         Lightning's own: this run needs more than the lean one does (docs/performance.md)")
    return "\n".join(lines)
