"""The sweeper of `vaelab plan`: composes every job, and runs none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from vaelab.runs.jobs import compose
from vaelab.sweeps.plan import Planned, resolved


class PlanSweeper(Sweeper):
    """Hands the task all jobs of a sweep at once, as `Planned`.

    of: Hydra's config of the sweeper that would run the jobs.
    """

    hydra_context: Any
    config: Any
    launcher: Any

    def __init__(self, of: Any):
        super().__init__()
        self.of = of

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        trials, jobs = self._search(arguments) if "n_trials" in self.of else (None, self._grid(arguments))
        bar = tqdm(jobs, desc="composing", unit="job", delay=2, leave=False, disable=None)
        # each is resolved before the next is composed, which sets Hydra's own values anew
        loader = self.hydra_context.config_loader
        configs = [resolved(compose(loader, self.config, number, job)) for number, job in enumerate(bar)]
        task: Any = self.task
        return task(Planned(self.config, configs, trials))

    def _grid(self, arguments: list[str]) -> Sequence[Sequence[str]]:
        """Lists the arguments of every job that Hydra's own sweeper would run."""
        params = [f"{key}={value}" for key, value in (self.of.params or {}).items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*params, *arguments]), None)
        return jobs

    def _search(self, arguments: list[str]) -> tuple[int, Sequence[Sequence[str]]]:
        """Returns how many trials a search has, and the arguments of one at the first value of every space."""
        with open_dict(self.config):
            self.config.hydra.sweeper = self.of
        search: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=self.hydra_context, task_function=self.task, config=self.config
        )
        return search.settings.n_trials, [search.first(arguments)]
