"""The launchers on submitit: jobs as processes of this machine, or as an array of jobs of a SLURM cluster."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.vaelab_launchers._jobs import Jobs
from vaelab.core.errors import UserError

SHARED = {
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
}
"""Parameters that submitit knows for any cluster; the others are SLURM's own."""


class SubmititLauncher(Launcher):
    """Base class in place of hydra-submitit-launcher's, with its keys: a job that is lost takes no other along."""

    cluster: str

    def __init__(self, submitit_folder: str, max_num_timeout: int = 0, **parameters: Any):
        """Takes the keys as they come from the config.

        submitit_folder: folder for submitit's own files. max_num_timeout: how often a job that has run out of
        its time is queued again. parameters: those of submitit, which checks them.
        """
        super().__init__()
        self.folder, self.max_num_timeout = submitit_folder, max_num_timeout
        self.parameters: Any = OmegaConf.to_container(OmegaConf.create(parameters), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.task = hydra_context, config, task_function
        self.executor = self._executor()

    def _executor(self) -> Any:
        """Makes the executor that submits jobs. Raises UserError for a wrong parameter, or without SLURM."""
        import submitit

        if self.parameters.get("tasks_per_node", 1) != 1 or self.parameters.get("nodes", 1) != 1:
            raise UserError("hydra.launcher.nodes and tasks_per_node: a job of a sweep is one task on one node")
        specific = {key if key in SHARED else f"{self.cluster}_{key}": value for key, value in self.parameters.items()}
        again = {} if self.cluster == "local" else {"slurm_max_num_timeout": self.max_num_timeout}
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, **again)
            executor.update_parameters(**specific)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"hydra/launcher=submitit_{self.cluster}: {reason}") from error
        return executor

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs and waits for all. Returns the result of each, in their order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        jobs = Jobs(self.context, self.config, self.task, Singleton.get_state(), os.getcwd())
        numbered = [(number, list(overrides)) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # submitit's processes inherit it: Ctrl-C is for this one
        try:
            submitted = self.executor.map_array(Submitted(jobs), *zip(*numbered, strict=True))
        finally:
            signal.signal(signal.SIGINT, former)
        return [self._result(job, jobs, *of) for job, of in zip(submitted, numbered, strict=True)]

    def _result(self, job: Any, jobs: Jobs, number: int, overrides: Sequence[str]) -> JobReturn:
        """Waits for a job. One whose process died is interrupted, and goes on when the sweep is given again."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if self.cluster == "local":
            job._results_timeout_s = 0  # a process that has ended has left its result, or none will come
        try:
            return job.result()
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
            return jobs.lost(number, overrides, "failed", (lines or [str(error)])[-1], str(error))
        except UncompletedJobError as error:
            reason = "its process ended (killed, or out of time or memory)"
            return jobs.lost(number, overrides, "interrupted", reason, str(error))


class Submitted:
    """A job as submitit runs it: `checkpoint` has one that is preempted, or out of time, queued again."""

    def __init__(self, jobs: Jobs):
        self.jobs = jobs

    def __call__(self, number: int, overrides: list[str]) -> JobReturn:
        return self.jobs(number, overrides)

    def checkpoint(self, number: int, overrides: list[str]) -> Any:
        """Submits the same job again, which goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number, overrides)


class LocalLauncher(SubmititLauncher):
    """Launcher of `hydra/launcher=submitit_local`: jobs are processes of this machine."""

    cluster = "local"


class SlurmLauncher(SubmititLauncher):
    """Launcher of `hydra/launcher=submitit_slurm`: jobs are an array of jobs of a SLURM cluster."""

    cluster = "slurm"
