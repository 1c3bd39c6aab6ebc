"""Finds which options make a training step faster on this machine: each in turn with the run as it is."""

from __future__ import annotations

import copy
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.nn.modules.conv import _ConvNd

from vaelab.core.errors import UserError
from vaelab.sweeps.timing import FOREVER, spread, synchronise
from vaelab.training.captured import graphs_on
from vaelab.training.fit import lightning_errors, prepare
from vaelab.training.installation.machine import check_compiler

LEAST = 0.05
"""The least gain that is worth an argument, as a share of the step."""
WARM_UP = 5
"""Steps at the start of a round that are not timed: a CUDA graph is captured in them, the model compiled."""


class Lab:
    """A run of the lab that trains for a round at a time, in its own loop, with logs and callbacks."""

    def __init__(self, config: dict[str, Any], run: Path):
        self.config = copy.deepcopy(config)
        self.config["trainer"] |= FOREVER | {"enable_progress_bar": False, "enable_checkpointing": False}
        self.data, self.model, self.trainer = prepare(self.config, run)
        self.device: torch.device = self.trainer.strategy.root_device
        self.watch = Stopwatch(self.device)
        self.trainer.callbacks.append(self.watch)  # type: ignore[attr-defined]

    def round(self, steps: int) -> float:
        """Takes so many steps. Returns the seconds of each."""
        torch.set_float32_matmul_precision(self.config["matmul_precision"])  # which all runs of a process share
        self.watch.begin(steps)
        with lightning_errors():
            self.trainer.fit(self.model, datamodule=self.data)
        if self.watch.counted < steps:
            raise UserError("bench: training ended before a round was timed: leave out what stops it early")
        return self.watch.seconds / self.watch.counted


class Stopwatch(pl.Callback):
    """Times the steps of a round after `WARM_UP`, and ends it. Ends of epochs are not counted."""

    def __init__(self, device: torch.device):
        self.device = device

    def begin(self, steps: int) -> None:
        self.steps, self.seen, self.counted, self.seconds = steps, 0, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.num_training_batches < 2:
            raise UserError("dataset.batch_size: an epoch is one batch, and bench times from one to the next: lower it")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self.seen > WARM_UP and batch_idx > 0:
            self.counted, self.seconds = self.counted + 1, self.seconds + now - self.last
        if self.counted == self.steps:
            synchronise(self.device)
            self.seconds += time.perf_counter() - now
            trainer.should_stop = True
        if self.seen == WARM_UP:
            synchronise(self.device)
            now = time.perf_counter()
        self.seen, self.last = self.seen + 1, now


class Option(NamedTuple):
    """An option of training. key: its path in the config. free: values at which it is nobody's choice yet.

    lacking: why it cannot pay for a run, if it cannot.
    """

    key: tuple[str, ...]
    value: Any
    free: tuple[Any, ...]
    lacking: Callable[[Lab], str | None]

    def chosen(self, config: dict[str, Any]) -> Any:
        """Returns the value that the config has."""
        for key in self.key:
            config = config[key]
        return config

    def choose(self, config: dict[str, Any]) -> None:
        for key in self.key[:-1]:
            config = config[key]
        config[self.key[-1]] = self.value


def _no_bf16(lab: Lab) -> str | None:
    if lab.device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return None if able or lab.device.type == "mps" else f"this {lab.device.type} has no bfloat16 instructions"


def _no_compiler(lab: Lab) -> str | None:
    check = check_compiler(lab.device.type == "cuda")
    return None if check.state == "ok" else check.says


def _no_layout(lab: Lab) -> str | None:
    if not any(isinstance(module, _ConvNd) for module in lab.model.modules()):
        return "the model has no convolutions"
    return (
        "on a processor it is so without" if lab.device.type == "cpu" and lab.config["channels_last"] is None else None
    )


def _no_graph(lab: Lab) -> str | None:
    return None if graphs_on(lab.device) else "it is for an NVIDIA GPU"


def _no_tf32(lab: Lab) -> str | None:
    return None if lab.device.type == "cuda" else "it is for an NVIDIA GPU"


OPTIONS = {
    "trainer.precision=bf16-mixed": Option(
        ("trainer", "precision"), "bf16-mixed", (None, 32, "32", "32-true"), _no_bf16
    ),
    "matmul_precision=high": Option(("matmul_precision",), "high", ("highest",), _no_tf32),
    "channels_last=true": Option(("channels_last",), True, (None, False), _no_layout),
    "cuda_graph=true": Option(("cuda_graph",), True, (False,), _no_graph),
    "compile=true": Option(("compile",), True, (False,), _no_compiler),
}
"""What is tried, by the words of the command line: quick ones first, for compiling takes a minute."""
APART = {"cuda_graph=true", "compile=true"}
"""Options of which a run has one at most."""


def measure(config: dict[str, Any], run: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Measures what each option, and those together that pay, make of a step of the run that `config` says.

    Returns milliseconds per step and ratios to the run as it is, why others were not tried, and what to add.
    """
    plain = Lab(config, run)
    if plain.trainer.world_size > 1:
        raise UserError("accelerator: bench measures one device: use cpu, gpu or mps")
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}

    def attempt(words: tuple[str, ...]) -> dict[str, Any] | None:
        if set(words) >= APART:
            left_out[" ".join(words)] = "a run has one of these at most"
            return None
        with _said() as lines:
            try:
                row = _beside(plain, words, run, steps, rounds)
            except Exception as error:
                left_out[" ".join(words)] = f"it failed: {str(error).strip().partition(chr(10))[0]}"
                return None
        for line in lines:  # an option that a run cannot have says so, and the run goes on without
            if line.startswith(words):
                left_out[" ".join(words)] = line
                return None
        rows.append(row)
        return row

    paying = []
    for words, option in OPTIONS.items():
        if (value := option.chosen(config)) not in option.free:
            left_out[words] = f"{'.'.join(option.key)}={value} is given"
        elif reason := option.lacking(plain):
            left_out[words] = reason
        elif (row := attempt((words,))) and pays(row["ratios"]):
            paying.append(row)
    best = _together(sorted(paying, key=lambda row: row["ratio"]["median"]), attempt)
    return {
        "config": config["run"]["name"],
        "device": torch.cuda.get_device_name(plain.device) if plain.device.type == "cuda" else plain.device.type,
        "threads": torch.get_num_threads(),
        "batch_size": min(plain.data.batch_size, len(plain.data.train)),
        "steps": steps,
        "rows": rows,
        "not_tried": left_out,
        "add": best["arguments"] if best else None,
        "ratio": best["ratio"] if best else None,
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def _together(paying: list[dict[str, Any]], attempt: Callable[[tuple[str, ...]], Any]) -> dict[str, Any] | None:
    """Adds to the option that gains most those that gain more beside it. Returns the best row."""
    best = paying[0] if paying else None
    for row in paying[1:]:
        assert best is not None
        both = attempt((*best["arguments"].split(), row["arguments"]))
        if both and both["ratio"]["median"] < best["ratio"]["median"] * (1 - LEAST):
            best = both
    return best


def pays(ratios: list[float]) -> bool:
    """Whether an option gains more than is worth naming, and more than the noise: in three rounds of four."""
    return statistics.median(ratios) < 1 - LEAST and statistics.quantiles(ratios, n=4, method="inclusive")[2] < 1


def _beside(plain: Lab, words: tuple[str, ...], run: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Trains with options and without, in turn, after a round to warm up; which is first changes."""
    config = copy.deepcopy(plain.config)
    for word in words:
        OPTIONS[word].choose(config)
    labs = [plain, Lab(config, run)]
    taken: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            taken[which].append(labs[which].round(steps))
    del labs
    gc.collect()  # the next one has its place in the device's memory
    if plain.device.type == "cuda":
        torch.cuda.empty_cache()
    without, with_them = (values[1:] for values in taken)
    ratios = [theirs / ours for ours, theirs in zip(without, with_them, strict=True)]
    return {
        "arguments": " ".join(words),
        "plain_ms": spread([1e3 * value for value in without]),
        "ms": spread([1e3 * value for value in with_them]),
        "ratios": ratios,
        "ratio": spread(ratios),
    }


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collects the lab's warnings, in the place of printing them."""
    log, lines = logging.getLogger("vaelab"), []
    handler, before = logging.Handler(), (log.propagate, log.level)
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.WARNING)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.propagate, log.level = before


def table(found: dict[str, Any]) -> str:
    """Formats what was found for the terminal, and the arguments to add in the last line."""
    threads = f", {found['threads']} threads" if found["device"] == "cpu" else ""
    rows = found["rows"]
    width = max([len(row["arguments"]) for row in rows], default=0)
    lines = [f"{found['config']} on {found['device']}{threads}, batches of {found['batch_size']}", ""]
    if rows:
        lines.append(f"{'':{width}}{'ms/step':>10}{'without':>10}{'ratio':>8}   rounds from - to")
    for row in rows:
        ratio = row["ratio"]
        lines.append(
            f"{row['arguments']:{width}}{row['ms']['median']:>10.2f}{row['plain_ms']['median']:>10.2f}"
            f"{ratio['median']:>8.3f}   {ratio['least']:.2f} - {ratio['greatest']:.2f}"
        )
    lines += ["", *(f"not tried: {words} ({reason})" for words, reason in found["not_tried"].items()), ""]
    if found["add"]:
        lines.append(f"add {found['add']}: a step then takes {found['ratio']['median']:.2f} of its time")
    else:
        lines.append(f"add nothing: no option was faster by {LEAST:.0%} and in three rounds of four")
    return "\n".join(lines)
