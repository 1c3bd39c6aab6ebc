"""Takes training steps as a CUDA graph: captured once, then launched as a whole for every full batch.

The step of a small model is some hundred kernels that a GPU ends sooner than the host launches them. The whole step is
in the graph, so that next to nothing is left to launch: forward, backward, what learns without a gradient, clipping,
the optimiser's step. Batch and noise are copied to where the graph reads them, and so is the learning rate, which a
schedule sets as a number; all else that changes from step to step is in tensors that keep their places.
Random numbers inside the graph, such as those that restart idle codes, are those of the step taken eagerly: a replay
takes seed and offset from torch's generator, and moves it on.

Nothing has to be undone. The first steps, which capture needs to be past, are steps like all others, and capturing
computes nothing. What Python does in a step, other than launching, is done once and not again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from vaelab.core.batch import Batch
from vaelab.models.module import Model, Outcome
from vaelab.training.loop import LeanLoop, decline

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData

WARM_UP = 2
"""Full batches before the graph: the first makes what lasts, the second shows whether a step waits for the device."""


class CUDAGraph:
    """A function's work on a GPU, captured to be launched at once. What it returns lies in the same place each time."""

    broken: ClassVar[list[torch.cuda.CUDAGraph]] = []  # torch's allocator goes on to ask them

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.graph, self.pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> tuple[Any, str | None]:
        """Calls the function where it will be captured; returns what it does, and which line waited for the device."""
        with self._aside(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with _waiting("warn"):
                result = function()
        waits = (w for w in caught if "called a synchronizing" in str(w.message))
        return result, next((f"{Path(w.filename).name}:{w.lineno}" for w in waits), None)

    def record(self, function: Callable[[], Any]) -> None:
        """Captures the function, of which nothing is computed. Raises RuntimeError for what no graph can hold.

        Other threads, such as one that pins batches, may use the GPU meanwhile.
        """
        with self._aside():
            try:
                capturing = torch.cuda.graph(self.graph, self.pool, self.stream, capture_error_mode="thread_local")
                with capturing, _waiting("error"):
                    self.result = function()
            except RuntimeError:
                self._recover()
                raise

    def replay(self) -> Any:
        """Launches what was captured; returns what the function did, with new values."""
        self.graph.replay()
        return self.result

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Runs a block on the graph's stream, after what was launched before it and before what is launched next."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def _recover(self) -> None:
        """Has torch go on after a capture that CUDA broke off, which it is left to wait for the end of (torch 2.11).

        The allocator is told of it; the generator hears of another's.
        """
        self.broken.append(self.graph)
        with suppress(RuntimeError, AttributeError):  # a later torch has told it
            torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)
        empty = torch.cuda.CUDAGraph()
        empty.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=self.stream.device)
        empty.capture_end()


@contextmanager
def _waiting(mode: str) -> Iterator[None]:
    """Has torch `warn` of operations that wait for the device, or refuse them as an `error`."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Captured:
    """A stepper that replays captured training steps of `size` images, and takes all others eagerly.

    A batch of another size is the last of an epoch. Whatever it takes, the step is the loop's, but that the learning
    rate is rounded to float32.
    """

    def __init__(self, model: Model, trainer: pl.Trainer, graph: CUDAGraph, size: int):
        self.model, self.trainer, self.size = model, trainer, size
        self.graph: CUDAGraph | None = graph
        self.optimizer = trainer.optimizers[0]
        self.rates = [torch.zeros((), device=model.device) for _ in self.optimizer.param_groups]
        self.written: list[float | None] = [None] * len(self.rates)
        self.warm, self.inputs = 0, Inputs()
        self.outputs: Outputs

    def __call__(self, batch: Batch, noise: Tensor | None) -> Outcome:
        if not self.model.training:
            return self.model.measure(batch, noise)
        self._write_rates()
        if self.graph is None or len(batch.images) != self.size:
            return self._take(batch, noise)
        if self.warm < WARM_UP:
            return self._warm_up(self.graph, batch, noise)
        if self.inputs.empty and not self._record(self.graph, batch, noise):
            return self._take(batch, noise)
        self.inputs.fill(batch, noise)
        return self.outputs.read(self.graph.replay())

    def _take(self, batch: Batch, noise: Tensor | None, capturing: bool = False) -> Outcome:
        """Takes the step that the loop takes, in the same order (`LeanLoop`)."""
        model, trainer = self.model, self.trainer
        outcome = model.measure(batch, noise)
        self.optimizer.zero_grad()
        with torch.autocast(model.device.type, enabled=False):
            outcome.loss.backward()
            with torch.no_grad():
                if (seen := model.observe(batch, outcome.terms)) is not None:
                    model.learn([seen])
            if trainer.gradient_clip_val:
                algorithm = trainer.gradient_clip_algorithm
                model.configure_gradient_clipping(self.optimizer, trainer.gradient_clip_val, algorithm)
            with self._rates_on_device(capturing):
                self.optimizer.step()
        return outcome._replace(terms={})

    def _write_rates(self) -> None:
        """Writes the learning rates that schedules have set to where the optimiser reads them."""
        for number, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.written[number]:
                self.written[number] = group["lr"]
                self.rates[number].fill_(group["lr"])

    @contextmanager
    def _rates_on_device(self, capturing: bool) -> Iterator[None]:
        """Has the optimiser read its rates from the device in the block, and its groups hold numbers outside of it."""
        groups = self.optimizer.param_groups
        numbers = [{"lr": group["lr"], "capturable": group["capturable"]} for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group.update(lr=rate, capturable=capturing)
        try:
            yield
        finally:
            for group, options in zip(groups, numbers, strict=True):
                group.update(options)

    def _warm_up(self, graph: CUDAGraph, batch: Batch, noise: Tensor | None) -> Outcome:
        self.warm += 1
        outcome, waits = graph.warm_up(lambda: self._take(batch, noise))
        if waits and self.warm == WARM_UP:
            self._decline(f"is not for steps that wait for the device ({waits})")
        return outcome

    def _record(self, graph: CUDAGraph, batch: Batch, noise: Tensor | None) -> bool:
        """Captures a step. Returns whether that is possible."""
        held = self.inputs.hold(batch, noise)

        def step() -> Tensor:
            self.outputs = Outputs(self._take(*held, capturing=True))
            return self.outputs.packed

        try:
            graph.record(step)
        except RuntimeError as error:
            reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
            self._decline(f"failed ({reason})")
            return False
        return True

    def _decline(self, why: str) -> None:
        self.graph = None
        decline(why)


class Inputs:
    """Places where a graph reads a batch and its noise."""

    def __init__(self) -> None:
        self.groups: list[tuple[list[Tensor], list[int]]] = []  # places of a type, and which of the tensors go there

    @property
    def empty(self) -> bool:
        return not self.groups

    def hold(self, batch: Batch, noise: Tensor | None) -> tuple[Batch, Tensor | None]:
        """Makes the places, of the shapes and with the values of a batch and its noise; returns both as they lie there.

        What a batch has beside its tensors is the same for all batches of one process.
        """
        *tensors, noise = (None if t is None else t.clone() for t in (*batch[:3], noise))
        held = Batch(*tensors, *batch[3:])  # type: ignore[arg-type]
        places = _tensors(held, noise)
        for dtype in {place.dtype for place in places}:
            numbers = [number for number, place in enumerate(places) if place.dtype == dtype]
            self.groups.append(([places[number] for number in numbers], numbers))
        return held, noise

    def fill(self, batch: Batch, noise: Tensor | None) -> None:
        """Copies another batch there, with one launch for each type of numbers."""
        values = _tensors(batch, noise)
        for places, numbers in self.groups:
            torch._foreach_copy_(places, [values[number] for number in numbers])


def _tensors(batch: Batch, noise: Tensor | None) -> list[Tensor]:
    return [t for t in (*batch[:3], noise) if t is not None]


class Outputs:
    """What a graph writes of an outcome, in one tensor: it is copied with one launch before the next step."""

    def __init__(self, outcome: Outcome):
        self.names = list(outcome.metrics)
        self.shapes = {name: value.shape for name, value in outcome.vectors.items()}
        values = [*outcome.metrics.values(), *outcome.vectors.values()]
        self.packed = torch.cat([value.detach().flatten() for value in values])

    def read(self, packed: Tensor) -> Outcome:
        """Copies an outcome out of the graph's memory."""
        sizes = [len(self.names), *(shape.numel() for shape in self.shapes.values())]
        values, *vectors = packed.clone().split(sizes)
        metrics = dict(zip(self.names, values.unbind(), strict=True))
        named = zip(self.shapes.items(), vectors, strict=True)
        return Outcome(metrics["loss"], metrics, {name: value.view(shape) for (name, shape), value in named}, {})


def capture(config: dict[str, Any], model: Model, data: ImageData, trainer: pl.Trainer) -> None:
    """Has the training steps of a run captured, or says in one line why they cannot be."""
    device, loop = trainer.strategy.root_device, trainer.fit_loop.epoch_loop
    graph, groups = graphs_on(device), model.configure_optimizers().param_groups
    if graph is None:
        decline("is for an NVIDIA GPU")
    elif not isinstance(loop, LeanLoop):
        decline("does not go with Lightning's own loop, which this run needs")
    elif config["compile"]:
        decline("does not go with compile=true")
    elif not all(group.get("fused") and "capturable" in group for group in groups):
        decline("needs optimizer=adam or adamw with optimizer.fused=true")
    else:
        size = min(data.batch_size, len(data.train))
        loop.capture = lambda: Captured(model, trainer, graph(device), size)


def graphs_on(device: torch.device) -> type[CUDAGraph] | None:
    """Returns the class of graphs for a device that has them, else None."""
    return CUDAGraph if device.type == "cuda" else None
