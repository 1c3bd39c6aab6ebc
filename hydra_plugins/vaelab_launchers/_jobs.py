"""Setting up and losing jobs that run in other processes, for the launchers that start them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vaelab.runs import Files
from vaelab.runs.jobs import compose, folder_of, wait_for

ENDED = ("finished", "pruned", "failed", "diverged", "interrupted")
"""States of an ended job that it has written into its summary.json itself."""


class Jobs(NamedTuple):
    """Jobs of a sweep, with what each needs to be set up: what Hydra knows in the parent, and its working folder."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    singletons: dict[Any, Any]
    folder: str

    def __call__(self, number: int, overrides: list[str]) -> JobReturn:
        """Runs a job, in its own process: Hydra is set up as in the parent."""
        os.chdir(self.folder)
        setup_globals()
        Singleton.set_state(self.singletons)
        result = run_job(
            hydra_context=self.context,
            config=compose(self.context.config_loader, self.config, number, overrides),
            task_function=self.task,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        _ = result.return_value  # what the job raised goes to the parent, with its traceback
        return result

    def lost(self, number: int, overrides: Sequence[str], status: str, reason: str, text: str) -> JobReturn:
        """Makes the result of a job that gave none back, and notes how it ended, if it has not done so itself.

        status: `failed` or `interrupted`. reason: why, in a line. text: all that is known, for its run.log.
        """
        from vaelab import runs
        from vaelab.core.config import resolved
        from vaelab.training import launch

        config = compose(self.context.config_loader, self.config, number, overrides)
        keys = {key: value for key, value in config.items() if key != "hydra"}
        plain = resolved(OmegaConf.masked_copy(config, list(keys)))
        run = folder_of(Path(config.hydra.runtime.output_dir), plain)
        wait_for(run)
        if runs.read_summary(run).get("status") not in ENDED:
            with Files(run).log.open("a") as file:
                file.write(f"{text}\n")
            launch.record(run, status, RuntimeError(reason), plain)
        hydra = OmegaConf.masked_copy(config, "hydra")
        return JobReturn(overrides, config, hydra, status=JobStatus.COMPLETED, _return_value=str(run))
