"""Jobs in threads of their own of which one runs at a time, and which ask whoever leads them for their steps."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytorch_lightning as pl

from vaelab.core.batch import Batch
from vaelab.core.randomness import kept_generators
from vaelab.datasets.base import ImageData
from vaelab.datasets.splits import Newest
from vaelab.models import Model
from vaelab.models.module import Outcome
from vaelab.training.loop import LeanLoop
from vaelab.training.vectorized.stack import Asked


class Job(threading.Thread):
    """A job of a sweep, which runs from `go_on` until it asks for a step or ends.

    number: its place in the sweep. work: trains the job. data: what jobs have read, by its options.
    """

    def __init__(self, number: int, work: Callable[[], Any], data: dict[str, Any]):
        super().__init__(name=f"job {number}", daemon=True)
        self.title, self.work, self.data = str(number), work, data
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.model: Model | None = None
        self.trainer: pl.Trainer | None = None
        self.asked: Asked | None = None  # the step that it waits for
        self.grouped = False  # whether it is trained with others
        self.output: TextIO | None = None  # where what it prints goes
        self._answer: Outcome | None = None
        self._mine, self._theirs = threading.Lock(), threading.Lock()  # whose turn it is: both are taken in between
        self._mine.acquire()
        self._theirs.acquire()

    def run(self) -> None:
        self._mine.acquire()
        try:
            self.result = self.work()
        except BaseException as error:  # Ctrl-C among them: whoever leads raises it
            self.error = error
        self.ended = True
        self._theirs.release()

    def go_on(self, answer: Outcome | None = None) -> None:
        """Lets the job run until it asks for a step, or ends. answer: what became of the step that it asked for."""
        self._answer, self.asked = answer, None
        if not self.is_alive() and not self.ended:
            self.start()
        self._mine.release()
        self._theirs.acquire()

    def ask(self, batch: Batch, noise: Any) -> Outcome:
        """Asks for a step, and waits until it is taken; a stepper of the job's model."""
        assert self.model is not None
        if not self.model.training and not self.grouped:  # before the first training step
            return self.model.measure(batch, noise)
        self.asked = Asked(batch, noise)
        with kept_generators(self.model.device):
            self._theirs.release()
            self._mine.acquire()
        assert self._answer is not None
        return self._answer

    @property
    def training(self) -> bool:
        """Whether the step that it asks for moves the weights."""
        return self.model is not None and self.model.training


@contextmanager
def together(model: Model, trainer: pl.Trainer) -> Iterator[None]:
    """Within the block the steps of a model are taken with other jobs', if this thread is one of several jobs."""
    job = threading.current_thread()
    if not isinstance(job, Job) or not isinstance(trainer.fit_loop.epoch_loop, LeanLoop) or model.compiled:
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
    job = threading.current_thread()
    if not isinstance(job, Job):
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
    job = threading.current_thread()
    assert isinstance(job, Job)
    job.output, job.title = file, title
    try:
        yield
    finally:
        job.output = None


class OfThread:
    """A text stream that is another one for each job that has `output`."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def _now(self) -> TextIO:
        return getattr(threading.current_thread(), "output", None) or self.stream

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
    sys.stdout, sys.stderr = OfThread(before[0]), OfThread(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
