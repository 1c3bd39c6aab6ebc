"""The launcher: one remote task of Ray per job."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError
from vaelab.sweeps import compose
from vaelab.types import NonNegativeFloat, PositiveInt

ENDED = ("finished", "pruned", "failed", "diverged", "interrupted")
"""States that a job has written itself."""


class Settings(NamedTuple):
    """The keys of conf/hydra/launcher/ray.yaml, which says what they mean."""

    cpus: PositiveInt
    gpus: NonNegativeFloat
    address: str
    init: dict[str, Any]


class Sweep(NamedTuple):
    """What every job needs to be set up: what Hydra knows in the parent, and its working folder."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    singletons: dict[Any, Any]
    folder: str
    threads: int


class RayLauncher(Launcher):
    """`hydra/launcher=ray`. A job whose process dies is a failed one, and the others go on."""

    def __init__(self, cpus: Any, gpus: Any, address: Any, init: Any):
        """The keys as they come from the config; `setup` checks them."""
        super().__init__()
        self.given = dict(zip(Settings._fields, (cpus, gpus, address, init), strict=True))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from vaelab.config import options

        if importlib.util.find_spec("ray") is None:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'vaelab[ray]'")
        self.settings = options(Settings, OmegaConf.create(self.given))
        self.context, self.config, self.task = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, as many at once as there is room for. Returns what became of each, in their order."""
        import ray

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self._connect()
        threads = self.settings.cpus
        sweep = ray.put(Sweep(self.context, self.config, self.task, Singleton.get_state(), os.getcwd(), threads))
        # a process per job: nothing of one is left for the next, and one that dies takes no other along
        remote = ray.remote(num_cpus=threads, num_gpus=self.settings.gpus, max_retries=0, max_calls=1)(_run)
        numbered = list(enumerate(job_overrides, initial_job_idx))
        tasks = [remote.remote(sweep, number, list(overrides)) for number, overrides in numbered]
        try:
            return [self._result(task, *job) for task, job in zip(tasks, numbered, strict=True)]
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task)  # as Ctrl-C in each job, which saves its last checkpoint
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
            return  # a cluster may grow
        there = ray.cluster_resources()
        for key, name, wanted in (("cpus", "CPU", self.settings.cpus), ("gpus", "GPU", self.settings.gpus)):
            if wanted > there.get(name, 0):
                has = f"{there.get(name, 0):g}"
                raise UserError(f"hydra.launcher.{key}={wanted:g}: a job can have no more than this machine, {has}")

    def _result(self, task: Any, number: int, overrides: Sequence[str]) -> JobReturn:
        """Waits for a job. One whose process died is recorded as failed in its run folder."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(task)
        except RayError as error:
            config = compose(self.context.config_loader, self.config, number, overrides)
            run = Path(config.hydra.runtime.output_dir)
            reason = "its process died (killed, or out of memory)"
            if isinstance(error, RayTaskError):
                reason = str(error.cause)
            _record(run, reason, str(error))
            hydra = OmegaConf.masked_copy(config, "hydra")
            return JobReturn(overrides, config, hydra, status=JobStatus.COMPLETED, _return_value=str(run))


def _run(sweep: Sweep, number: int, overrides: list[str]) -> JobReturn:
    """A job, in its own process: Hydra is set up as in the parent."""
    os.chdir(sweep.folder)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(sweep.threads)
    setup_globals()
    Singleton.set_state(sweep.singletons)
    config = compose(sweep.context.config_loader, sweep.config, number, overrides)
    result = run_job(
        hydra_context=sweep.context,
        config=config,
        task_function=sweep.task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    _ = result.return_value  # what the job raised goes to the parent, with its traceback
    return result


def _record(run: Path, reason: str, text: str) -> None:
    """Writes into a run folder that the job failed, if the job has not said itself how it ended."""
    from vaelab import runs

    summary = runs.read_summary(run)
    if summary.get("status") in ENDED:
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / "run.log").open("a") as file:
        file.write(f"{text}\n")
    runs.write_summary(run, summary | {"status": "failed", "error": reason})
