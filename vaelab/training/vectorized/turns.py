"""Jobs that run in turns in one thread, and ask whoever leads them for their steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from greenlet import getcurrent, greenlet

from vaelab.core.batch import Batch
from vaelab.core.randomness import Generators, kept_generators
from vaelab.datasets.base import ImageData
from vaelab.datasets.loaders import Newest
from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.loop import LeanLoop
from vaelab.training.vectorized.stack import Asked, learned_by


class Job(greenlet):
    """A job of a sweep, which runs from `go_on` until it asks for a step or ends.

    number: its place in the sweep. work: trains the job. data: what jobs have read, by its options.
    """

    def __init__(self, number: int, work: Callable[[], Any], data: dict[str, Any]):
        super().__init__(self._work)
        self.number, self.title, self.work, self.data = number, str(number), work, data
        self.result: Any = None
        self.error: BaseException | None = None
        self.model: Model | None = None
        self.trainer: pl.Trainer | None = None
        self.asked: Asked | None = None  # the step that it waits for
        self.grouped = False  # whether it is trained with others
        self.output: TextIO | None = None  # where what it prints goes

    def _work(self, _: None) -> None:
        try:
            self.result = self.work()
        except BaseException as error:  # a job that is interrupted among them: whoever leads raises it
            self.error = error

    def go_on(self, answer: Outcome | None = None) -> None:
        """Lets the job run until it asks for a step, or ends. answer: what became of the step that it asked for."""
        self.asked = None
        self.switch(answer)

    def ask(self, batch: Batch, noise: Any) -> Outcome:
        """Asks for a step, and waits until it is taken; a stepper of the job's model."""
        assert self.model is not None
        assert self.parent is not None
        if not self.model.training and not self.grouped:  # before the first training step
            return self.model.measure(batch, noise)
        own = Generators(self.model.device)

        def learn(outcome: Outcome) -> Outcome:
            assert self.model is not None
            with kept_generators(self.model.device):
                own.restore()
                learned = learned_by(self.model, batch, outcome)
                own.keep()
            return learned

        self.asked = Asked(batch, noise, learn)
        with _left_modes(self.model.device):
            outcome: Outcome = self.parent.switch()
        own.restore()
        return outcome

    @property
    def training(self) -> bool:
        """Whether the step that it asks for moves the weights."""
        return self.model is not None and self.model.training


def current() -> Job | None:
    """Returns the job whose turn it is; None outside of all jobs."""
    running = getcurrent()
    return running if isinstance(running, Job) else None


@contextmanager
def _left_modes(device: torch.device) -> Iterator[None]:
    """Leaves torch's modes in the block: they are the thread's, and a job that validates would have all others do."""
    if torch.is_grad_enabled() and not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def together(model: Model, trainer: pl.Trainer) -> Iterator[None]:
    """Within the block the steps of a model are taken with other jobs', if this is one of several jobs."""
    job = current()
    if job is None or not isinstance(trainer.fit_loop.epoch_loop, LeanLoop) or model.compiled:
        yield
        return
    job.model, job.trainer, model.stepper = model, trainer, job.ask
    try:
        yield
    finally:
        job.model = job.trainer = model.stepper = None
        job.grouped = False


def set_up(data: ImageData, config: dict[str, Any]) -> None:
    """Reads a run's data; of several jobs in this process those with the same data have them once.

    config: the data's options.
    """
    job = current()
    if job is None:
        data.setup()
        return
    aside = {"seed"} if data.binarize != "static" else set()
    key = json.dumps({name: value for name, value in config.items() if name not in aside}, sort_keys=True, default=str)
    if key in job.data:
        data.take_over(job.data[key])
    else:
        data.setup()
        job.data[key] = data
    data.newest = job.data.setdefault(f"{data.seed} {key}", Newest())


@contextmanager
def printing_to(file: TextIO, title: str) -> Iterator[None]:
    """Within the block what this job prints goes to a file. title: what to call the job."""
    job = current()
    assert job is not None
    job.output, job.title = file, title
    try:
        yield
    finally:
        job.output = None


class _OfJob:
    """A text stream that is another one for each job that has `output`."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def _now(self) -> TextIO:
        job = current()
        return self.stream if job is None or job.output is None else job.output

    def write(self, text: str) -> int:
        return self._now().write(text)

    def flush(self) -> None:
        self._now().flush()

    def isatty(self) -> bool:
        return self._now().isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


@contextmanager
def own_streams() -> Iterator[None]:
    """Within the block each job has its own standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _OfJob(before[0]), _OfJob(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
