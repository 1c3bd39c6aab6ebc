"""The launcher on Ray: one remote task per job."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.vaelab_launchers._jobs import Jobs
from vaelab.core.errors import UserError
from vaelab.core.types import NonNegativeFloat, PositiveInt


class Settings(NamedTuple):
    """The keys of conf/hydra/launcher/ray.yaml, which says what they mean."""

    cpus: PositiveInt
    gpus: NonNegativeFloat
    address: str
    init: dict[str, Any]


class RayLauncher(Launcher):
    """Launcher of `hydra/launcher=ray`. A job whose process dies is a failed one, and the others go on."""

    def __init__(self, cpus: Any, gpus: Any, address: Any, init: Any):
        """Takes the keys as they come from the config; `setup` checks them."""
        super().__init__()
        self.given = dict(zip(Settings._fields, (cpus, gpus, address, init), strict=True))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from vaelab.core.config import options

        if importlib.util.find_spec("ray") is None:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'vaelab[ray]'")
        self.settings = options(Settings, OmegaConf.create(self.given), "hydra.launcher")
        self.context, self.config, self.task = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, as many at once as there is room for. Returns the result of each, in their order."""
        import ray

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self._connect()
        jobs = Jobs(self.context, self.config, self.task, Singleton.get_state(), os.getcwd())
        # a process per job: nothing of one is left for the next, and one that dies takes no other along
        remote = ray.remote(num_cpus=self.settings.cpus, num_gpus=self.settings.gpus, max_retries=0, max_calls=1)(_run)
        shared, numbered = ray.put(jobs), list(enumerate(job_overrides, initial_job_idx))
        tasks = [remote.remote(shared, number, list(overrides)) for number, overrides in numbered]
        try:
            return [self._result(task, jobs, *job) for task, job in zip(tasks, numbered, strict=True)]
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task)  # acts as Ctrl-C in each job, which saves its last checkpoint
            ray.wait(tasks, num_returns=len(tasks), timeout=30)
            raise

    def _connect(self) -> None:
        """Starts Ray, or joins a running one, and refuses what no machine of it has room for."""
        import ray

        if not ray.is_initialized():
            try:
                ray.init(address=self.settings.address, logging_level=logging.WARNING, **self.settings.init)
            except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"hydra.launcher.address={self.settings.address}: Ray does not start ({reason})"
                ) from error
        if self.settings.address != "local":
            return  # a cluster may grow until a job fits
        resources = ray.cluster_resources()
        for key, name, wanted in (("cpus", "CPU", self.settings.cpus), ("gpus", "GPU", self.settings.gpus)):
            if wanted > resources.get(name, 0):
                most = f"{resources.get(name, 0):g}"
                raise UserError(f"hydra.launcher.{key}={wanted:g}: a job can have no more than this machine, {most}")

    def _result(self, task: Any, jobs: Jobs, number: int, overrides: Sequence[str]) -> JobReturn:
        """Waits for a job. One whose process died is interrupted, and goes on when the sweep is given again."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(task)
        except RayTaskError as error:
            return jobs.lost(number, overrides, "failed", str(error.cause), str(error))
        except RayError as error:
            return jobs.lost(
                number, overrides, "interrupted", "its process died (killed, or out of memory)", str(error)
            )


def _run(jobs: Jobs, number: int, overrides: list[str]) -> JobReturn:
    return jobs(number, overrides)
