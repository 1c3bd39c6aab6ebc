"""The launcher of jobs that train as one: in this process, with their models stacked."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vaelab.core.errors import Stopped, UserError
from vaelab.core.types import PositiveInt
from vaelab.runs.jobs import compose


class Settings(NamedTuple):
    """The keys of conf/hydra/launcher/vectorized.yaml, which says what they mean."""

    width: PositiveInt | None
    exact: bool


class VectorizedLauncher(Launcher):
    """Launcher of `hydra/launcher=vectorized`. A job that fails takes no other along."""

    def __init__(self, width: Any, exact: Any = True):
        """Takes the keys as they come from the config; `setup` checks them."""
        super().__init__()
        self.given = {"width": width, "exact": exact}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from vaelab.core.config import options

        self.settings = options(Settings, OmegaConf.create(self.given), "hydra.launcher")
        self.context, self.config, self.task = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs. Returns the result of each, in their order."""
        from vaelab.training.vectorized.conductor import Conductor

        self._check_loggers()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        order = _alike_in_turn(job_overrides)
        works = [partial(self._job, initial_job_idx + place, job_overrides[place]) for place in order]
        conductor = Conductor(self.settings.width, self.settings.exact)
        with _process_as_it_was():
            jobs = conductor.run(works)
        if conductor.stopped == signal.SIGINT:
            raise KeyboardInterrupt
        if conductor.stopped:
            raise Stopped(conductor.stopped)
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [job.result for _, job in sorted(zip(order, jobs, strict=True), key=itemgetter(0))]

    def _check_loggers(self) -> None:
        """Raises UserError for a logger that knows one run of a process at a time."""
        from vaelab.core.config import target_of

        for name, node in (self.config.logger or {}).items():
            if node and getattr(target_of(node, f"logger.{name}"), "one_per_process", False):
                raise UserError(
                    f"logger={name}: it has one run per process, and hydra/launcher=vectorized trains many: "
                    "leave the launcher out, or use hydra/launcher=joblib"
                )

    def _job(self, number: int, overrides: Sequence[str]) -> JobReturn:
        return run_job(
            hydra_context=self.context,
            config=compose(self.context.config_loader, self.config, number, overrides),
            task_function=self.task,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _alike_in_turn(job_overrides: Sequence[Sequence[str]]) -> list[int]:
    """Returns the jobs' places, those together that differ in numbers alone: `width` takes neighbours at a time."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for place, overrides in enumerate(job_overrides):
        kind = tuple(
            key if _is_number(value) else word for word in overrides for key, _, value in [word.partition("=")]
        )
        kinds.setdefault(kind, []).append(place)
    return [place for places in kinds.values() for place in places]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Puts back the arguments and the environment of the process: each job does, but in no order."""
    arguments, environment = sys.argv, dict(os.environ)
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
