"""Leads the jobs of a sweep: lets each run to its next step, and takes the steps of those that are alike as one."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vaelab.core.errors import Stopped
from vaelab.core.words import listed
from vaelab.models.module import Outcome
from vaelab.runs.jobs import LOOK_AGAIN
from vaelab.training.callbacks.last import STOPPING, KeepLast
from vaelab.training.callbacks.progress import place_of
from vaelab.training.captured import graphs_on
from vaelab.training.logs import leave_jobs
from vaelab.training.vectorized.alike import difference
from vaelab.training.vectorized.captured import CapturedStack
from vaelab.training.vectorized.stack import Asked, Stack, step_alone
from vaelab.training.vectorized.traced import TracedStack
from vaelab.training.vectorized.turns import Job, own_streams

LARGE = 150_000_000
"""Arithmetic of measuring a batch, in operations, above which a stack gains nothing on a CPU: its cores are busy."""
FEW = 4
"""Jobs from which on a stack is hardly ever slower on a CPU."""
SAID_EVERY = 10.0
"""Seconds between two lines about the progress."""


class Group(NamedTuple):
    """Jobs whose models are stacked, in the stack's order."""

    jobs: list[Job]
    stack: Stack


class Conductor:
    """Runs jobs, as many as `width` at a time; those that are alike are kept in step.

    All that a job is besides its steps it does by itself, in its turn: it is set up, writes checkpoints, ends.

    width: most jobs at a time; None for all. exact: whether each comes out as alone to the last digit, on a processor.
    """

    def __init__(self, width: int | None, exact: bool = True):
        self.width, self.exact = width, exact
        self.jobs: list[Job] = []  # under way
        self.groups: list[Group] = []
        self.answers: dict[Job, Outcome] = {}
        self.stopped = 0  # the signal that asks to stop
        self.at_once = False  # whether the jobs end where they are, without their last checkpoints
        self.waiting: list[Job] = []
        self.count = 0  # of all jobs
        self.turn: Job | None = None  # whose it is
        self.said_at, self.steps = time.monotonic(), 0

    def run(self, works: Sequence[Callable[[], Any]]) -> list[Job]:
        """Runs all jobs to their ends. Returns them, each with its result or error."""
        ended: Future[list[Job]] = Future()

        def lead() -> None:
            try:
                ended.set_result(self._lead(works))
            except BaseException as error:
                try:
                    for job in filter(None, self.jobs):  # those that have begun, in this thread, where they live
                        job.throw(Stopped(signal.SIGINT))
                finally:
                    ended.set_exception(error)

        try:
            with own_streams(), self._listening(), _anomaly_mode_kept():
                # the main thread is left to the signals: each job would else take them for itself
                threading.Thread(target=lead, name="jobs", daemon=True).start()
                while not wait([ended], SAID_EVERY).done:
                    self._say()
                return ended.result()
        finally:
            leave_jobs()

    def _lead(self, works: Sequence[Callable[[], Any]]) -> list[Job]:
        data: dict[str, Any] = {}
        every = [Job(number, work, data) for number, work in enumerate(works)]
        self.waiting, self.count = list(every), len(every)
        while (self.waiting and not self.stopped) or self.jobs:
            while self.waiting and not self.stopped and (self.width is None or len(self.jobs) < self.width):
                self.jobs.append(self.waiting.pop(0))
            self._round()
        return every

    def _round(self) -> None:
        """Lets every job that waits for nothing go on, and takes the steps that they then ask for."""
        for job in list(self.jobs):
            if self.at_once:
                raise KeyboardInterrupt
            if self.stopped:
                if job.model is None:  # it waits for its folder
                    job.throw()
                self._ask_to_stop(job)
            if job.asked is None or job in self.answers:
                self.turn = job
                job.go_on(self.answers.pop(job, None))
            if job.dead:
                self.jobs.remove(job)
        for group in list(self.groups):
            if any(job.model is None for job in group.jobs):  # one has ended
                self._group([job for job in self._apart(group) if job.model is not None])
        self._form([job for job in self.jobs if job.asked and not job.grouped and job not in self.answers])
        for group in self.groups:
            self._take(group)
        if self.jobs and all(job.model is None for job in self.jobs):  # each waits for its folder
            time.sleep(LOOK_AGAIN)

    # --- which jobs are stacked ---------------------------------------------------------------

    def _form(self, fresh: list[Job]) -> None:
        """Finds the group of each job that has come to its first training step."""
        while fresh:
            first, *others = fresh
            same = [job for job in others if _unlike(first, job) is None]
            fresh = [job for job in others if job not in same]
            jobs = [first, *same]
            for group in list(self.groups):
                if _unlike(group.jobs[0], first) is None:
                    jobs = [*self._apart(group), *jobs]
            self._group(jobs)

    def _apart(self, group: Group) -> list[Job]:
        """Takes a group apart; returns its jobs, each of which can go on by itself."""
        self.groups.remove(group)
        group.stack.optimizers.split()
        return group.jobs

    def _group(self, jobs: list[Job]) -> None:
        """Stacks the models of jobs that are alike; those that cannot be go on by themselves."""
        if not jobs:
            return
        reason = self._against(jobs)
        if reason is None:
            stack = _stack_of(jobs, self.exact)
            asked = [job.asked for job in jobs if job.asked and job.training]
            try:
                if len(asked) == len(jobs) and len({_shape(job) for job in jobs}) == 1:
                    stack.check(asked)
                self.groups.append(Group(jobs, stack))
                if not all(job.grouped for job in jobs):
                    print(f"  {len(jobs)} jobs train as one", flush=True)
                for job in jobs:
                    job.grouped = True
                return
            except (RuntimeError, ValueError, TypeError) as error:
                reason = str(error).strip().splitlines()[0]
        names = listed([job.title for job in jobs])
        if not self.stopped and (len(jobs) > 1 or not jobs[0].grouped):
            how = "go on" if all(job.grouped for job in jobs) else "trained"
            print(f"  {names}: {how} by {'themselves' if len(jobs) > 1 else 'itself'}: {reason}", flush=True)
        for job in jobs:
            job.grouped = False
            assert job.model is not None
            assert job.trainer is not None
            job.model.stepper = None  # from the next step on
            if job.asked and job not in self.answers:
                self.answers[job] = step_alone(job.model, job.trainer, job.asked, job.training)

    def _against(self, jobs: list[Job]) -> str | None:
        """Returns what speaks against a stack of jobs whose models are alike; None if nothing does."""
        first = jobs[0]
        assert first.model is not None
        assert first.trainer is not None
        if len(jobs) == 1:
            others = [(job, _unlike(first, job)) for job in self.jobs if job.model and job is not first]
            beside = [f"beside {job.title}, {reason}" for job, reason in others if reason]
            return f"no other job under way is like it{f' ({beside[0]})' if beside else ''}"
        if first.model.device.type == "cpu" and len(jobs) < FEW:
            return f"a processor gains nothing by fewer than {FEW} at once"
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in first.model.modules()):
            return "a batch norm keeps moving averages, which torch.vmap does not"
        if first.asked and first.training and first.model.device.type == "cpu":
            with FlopCounterMode(display=False) as counted:  # under no_grad it fails on weights that are inputs
                first.model.measure(first.asked.batch, first.asked.noise)
            if counted.get_total_flops() > LARGE:
                return "each keeps the processor's cores busy"
        return None

    # --- steps --------------------------------------------------------------------------------

    def _take(self, group: Group) -> None:
        """Takes the steps of a group: all as one, or those that the others have to wait for."""
        asking = [job for job in group.jobs if job.asked and job not in self.answers]
        if not asking:
            return
        kinds = {(job.training, _shape(job)) for job in asking}
        if len(asking) == len(group.jobs) and len(kinds) == 1:
            asked: list[Asked] = [job.asked for job in group.jobs if job.asked]
            outcomes = group.stack.take(asked, asking[0].training)
            self.answers |= dict(zip(group.jobs, outcomes, strict=True))
            self.steps += asking[0].training
            return
        training, shape = min(kinds)  # validation first, and an odd last batch before whole ones
        if training and len(asking) < len(group.jobs):
            return  # the others will come to it
        for job in asking:
            if job.asked and (job.training, _shape(job)) == (training, shape):
                self.answers[job] = group.stack.alone(group.jobs.index(job), job.asked, training)

    # --- the user -----------------------------------------------------------------------------

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Handles signals: the first has every job write its last checkpoint, a second Ctrl-C ends without them."""

        def handle(number: int, frame: Any) -> None:
            if self.stopped and number == signal.SIGINT:
                self.at_once = True  # this thread cannot leave before the jobs': torch would crash
            if not self.stopped:
                print("\ninterrupted: the jobs write their last checkpoints", file=sys.stderr)
            self.stopped = self.stopped or number
            for job in list(self.jobs):  # one that trains by itself comes back when it has ended
                self._ask_to_stop(job)

        former = {number: signal.signal(number, handle) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, job: Job) -> None:
        trainer = job.trainer  # it may end in its own thread
        for callback in trainer.callbacks if trainer else ():  # type: ignore[attr-defined]
            if isinstance(callback, KeepLast):
                callback.asked = self.stopped

    def _say(self) -> None:
        """Prints how far the jobs are; from another thread than theirs, which one that trains by itself keeps busy."""
        now, steps = time.monotonic(), self.steps
        words = [f"{self.count - len(self.waiting) - len(self.jobs)} of {self.count} jobs done"]
        for group in list(self.groups):
            if trainer := group.jobs[0].trainer:
                words.append(f"{len(group.jobs)} in step at {place_of(trainer, trainer.current_epoch + 1)}")
        if (turn := self.turn) and not turn.grouped and (trainer := turn.trainer):
            words.append(f"{turn.title} by itself at {place_of(trainer, trainer.current_epoch + 1)}")
        if steps:
            words.append(f"{1000 * (now - self.said_at) / steps:.1f} ms a step of all")
        with suppress(OSError):  # nobody reads it any more: the jobs go on
            print(f"  {', '.join(words)}", file=sys.stderr, flush=True)
        self.said_at, self.steps = now, 0


def _unlike(a: Job, b: Job) -> str | None:
    """Returns what keeps two jobs from being stacked, in a few words; None if nothing does."""
    if a.model is None or b.model is None:
        return "it has ended"
    sizes = {job.trainer.datamodule.batch_size for job in (a, b) if job.trainer}  # type: ignore[attr-defined]
    return difference(a.model, b.model) or ("its batches are of another size" if len(sizes) > 1 else None)


def _anomaly_mode_kept() -> torch.autograd.set_detect_anomaly:
    """Has torch look for anomalies after a block as before it: jobs in turns would leave it as one of them found it."""
    return torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())


def _stack_of(jobs: Sequence[Job], exact: bool) -> Stack:
    """Stacks the models of jobs; its steps are captured if those of the jobs should be. exact: as of `Conductor`."""
    models = [job.model for job in jobs if job.model]
    trainers = [job.trainer for job in jobs if job.trainer]
    device = models[0].device
    graph = graphs_on(device)
    if graph and all(trainer.fit_loop.epoch_loop.capture for trainer in trainers):  # type: ignore[attr-defined]
        size = trainers[0].datamodule.batch_size  # type: ignore[attr-defined]
        return CapturedStack(models, trainers, functools.partial(graph, device), size)
    if device.type == "cpu":
        return TracedStack(models, trainers, together=not exact)
    return Stack(models, trainers, together=True)


def _shape(job: Job) -> tuple[int, ...]:
    return tuple(job.asked.batch.images.shape) if job.asked else ()
