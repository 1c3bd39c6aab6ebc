"""The sweeper of a search: asks Optuna for trials, hands them to the launcher as jobs, tells Optuna their outcomes."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.vaelab_optuna import _outcome
from hydra_plugins.vaelab_optuna._spaces import Space, space
from vaelab.core.errors import UserError
from vaelab.core.metrics import TRAINING, metric
from vaelab.core.types import PositiveInt

KNOWN = [known.name for known in TRAINING if not known.set]
"""Names of metrics that can be searched for."""


class Settings(NamedTuple):
    """The keys of conf/hydra/sweeper/optuna.yaml, which says what they mean."""

    optimize: str | list[str]
    direction: Literal["max", "min"] | list[Literal["max", "min"]] | None
    n_trials: PositiveInt
    n_jobs: PositiveInt
    pruning: Literal["none", "median", "hyperband"]
    sampler: dict[str, Any]
    storage: str | None
    study_name: str
    params: dict[str, Any]

    @property
    def objectives(self) -> dict[str, Any]:
        """The metrics to optimise, each with its better end, `max` or `min`. Raises UserError if one is not known."""
        names = [self.optimize] if isinstance(self.optimize, str) else self.optimize
        given = [self.direction] if isinstance(self.direction, str) else self.direction
        if not names:
            raise UserError("optimize= is empty: name a metric, such as optimize=val/elbo")
        if given is not None and len(given) != len(names):
            raise UserError(f"direction: {len(given)} for {len(names)} metrics: give max or min for each of optimize=")
        ends = given or [metric(name).better or None for name in names]
        for name, end in zip(names, ends, strict=True):
            part, _, last = name.rpartition("/")
            near = difflib.get_close_matches(last, KNOWN, 1, 0.7)
            if near and last not in KNOWN:
                raise UserError(f"optimize={name}: no such metric; did you mean {part}/{near[0]}?")
            if end is None:
                raise UserError(f"optimize={name}: is more of it better or less? add direction=max or direction=min")
        return dict(zip(names, ends, strict=True))


class OptunaSweeper(Sweeper):
    """Sweeper of `hydra/sweeper=optuna`: a trial is a job of the same number, its metrics those of summary.json."""

    hydra_context: Any
    config: Any
    launcher: Any

    def __init__(
        self,
        optimize: Any,
        direction: Any,
        n_trials: Any,
        n_jobs: Any,
        pruning: Any,
        sampler: Any,
        storage: Any,
        study_name: Any,
        params: Any,
    ):
        """Takes the keys as they come from the config; `setup` checks them."""
        super().__init__()
        given = (optimize, direction, n_trials, n_jobs, pruning, sampler, storage, study_name, params)
        self.given = dict(zip(Settings._fields, given, strict=True))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        from vaelab.core.config import options

        if importlib.util.find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'vaelab[optuna]'")
        self.settings = options(Settings, OmegaConf.create(self.given))
        self.objectives = self.settings.objectives
        self._check_pruning()
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def _check_pruning(self) -> None:
        if self.settings.pruning == "none":
            return
        if len(self.objectives) > 1:
            raise UserError(
                f"pruning={self.settings.pruning} judges by one metric: leave it out, or all but one of them"
            )
        if not (name := next(iter(self.objectives))).startswith("val/"):
            raise UserError(f"pruning={self.settings.pruning} needs a metric of validation, val/…, and not {name}")

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Runs the search. Returns the results of the jobs, batch by batch."""
        from vaelab.training import studies

        studies.quieten()
        self._read(arguments)
        self.folder = Path(self.config.hydra.sweep.dir)
        self.storage = self.settings.storage or _sqlite(self.folder.absolute() / "study.db")
        self.study = self._open()
        returns: list[Sequence[JobReturn]] = []
        for batch in self._batches():
            jobs = [self._job(trial) for trial in batch]
            results = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            returns.append(results)
            outcomes = [_outcome.read(result, self.objectives) for result in results]
            for trial, outcome in zip(batch, outcomes, strict=True):
                _outcome.tell(self.study, trial, outcome, self.folder)
            self._check_metrics(outcomes)
        _outcome.conclude(self.study, self.folder)
        return returns

    def first(self, arguments: list[str]) -> list[str]:
        """Returns the arguments of a job at the first value of every space."""
        self._read(arguments)
        groups = [s.override(s.choices[0]) for s in self.groups]
        config = self._compose(*groups)
        return [*self.fixed, *groups, *(s.override(s.choices[0]) for s in self.scalars if _takes(config, s))]

    # --- what is searched -----------------------------------------------------------------------

    def _read(self, arguments: list[str]) -> None:
        """Divides the arguments into spaces and fixed ones, and refuses what cannot be composed."""
        from vaelab.commands.command import PATHS

        loader = self.hydra_context.config_loader
        given = {argument.partition("=")[0].lstrip("+") for argument in arguments}
        params = [f"{key}={value}" for key, value in self.settings.params.items() if key.lstrip("+") not in given]
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *arguments])
        self.fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        spaces = [space(o) for o in overrides if o.is_sweep_override()]
        if not spaces:
            raise UserError("there is nothing to search: give a key a space, such as model.latent_dim='range(2,33)'")
        groups = {s.key for s in spaces if loader.get_group_options(s.key)}
        self.groups = [s for s in spaces if s.key in groups]
        self.scalars = [s for s in spaces if s.key not in groups]
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.search = {  # what a study searches for; paths may change
            "arguments": sorted(str(o.input_line) for o in overrides if o.key_or_group not in PATHS),
            "optimize": self.objectives,
        }
        self._check_keys()

    def _check_keys(self) -> None:
        """Composes a config with every option of the groups; each key must be in one of them."""
        first = {s.key: s.override(s.choices[0]) for s in self.groups}
        choices = [first | {s.key: s.override(choice)} for s in self.groups for choice in s.choices] or [first]
        configs = [self._compose(*choice.values()) for choice in choices]
        for s in self.scalars:
            fitting = (c for c, config in zip(choices, configs, strict=True) if _takes(config, s))
            self._compose(*next(fitting, first).values(), s.override(s.choices[0]))  # Hydra says what is wrong with it

    def _compose(self, *chosen: str) -> DictConfig:
        """Composes the config of a job with these arguments beside the fixed ones."""
        if chosen not in self.composed:
            loader = self.hydra_context.config_loader
            self.composed[chosen] = loader.load_sweep_config(self.config, [*self.fixed, *chosen])
        return self.composed[chosen]

    # --- trials ---------------------------------------------------------------------------------

    def _open(self) -> Any:
        """Opens the study, new or of an earlier start of the same search. Raises UserError if it is of another."""
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        from vaelab.training import studies

        self.folder.mkdir(parents=True, exist_ok=True)
        ends: dict[str, Any] = {"max": "maximize", "min": "minimize"}
        try:
            study = optuna.create_study(
                storage=studies.storage(self.storage),
                study_name=self.settings.study_name,
                directions=[ends[end] for end in self.objectives.values()],
                load_if_exists=True,
            )
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"hydra.sweeper.storage={self.storage}: cannot be used ({reason})") from error
        before = study.user_attrs.get("search")
        if before is not None and before != self.search:
            differing = sorted(set(before["arguments"]) ^ set(self.search["arguments"]))
            what = " and ".join(differing) if differing else f"optimize={' and '.join(before['optimize'])}"
            raise UserError(
                f"sweep.dir={self.folder} holds a search that differs in {what}: "
                "repeat its command to continue it, or choose another folder"
            )
        study.set_user_attr("search", self.search)
        return study

    def _batches(self) -> Iterator[list[Any]]:
        """Yields trials to run, at most `n_jobs` at once and numbered in a row, as launchers number jobs.

        Those that an earlier start left unfinished come first, then new ones. Where a batch ends depends on
        the trials' numbers alone, and so does the sampler's seed: a search that was interrupted goes on as
        if it had not been.
        """
        from optuna.trial import TrialState

        from vaelab.training import studies

        size = self.settings.n_jobs
        left = self.study.get_trials(states=(TrialState.RUNNING,))
        while left:
            row = [t for i, t in enumerate(left[:size]) if t.number == left[0].number + i]
            left = left[len(row) :]
            yield [studies.running(self.study, trial) for trial in row]
        while (done := len(self.study.get_trials(deepcopy=False))) < self.settings.n_trials:
            yield [self._ask(i) for i in range(done, min(done + size - done % size, self.settings.n_trials))]

    def _ask(self, number: int) -> Any:
        """Asks the study for a new trial. Keys that the chosen options of groups do not have are no part of it."""
        from hydra.utils import instantiate

        sampler = dict(self.settings.sampler)
        if sampler.get("seed") is not None:
            sampler["seed"] += number
        try:
            self.study.sampler = instantiate(sampler)
        except Exception as error:
            raise UserError(f"hydra.sweeper.sampler: {str(error).strip().splitlines()[0]}") from error
        trial = self.study.ask()
        config = self._compose(*[s.override(s.suggest(trial)) for s in self.groups])
        for s in self.scalars:
            if _takes(config, s):
                s.suggest(trial)
        return trial

    def _job(self, trial: Any) -> list[str]:
        """Returns the arguments of a trial's job."""
        from vaelab.commands import command
        from vaelab.training import studies

        values = trial.params
        job = self.fixed + [s.override(values[s.key]) for s in (*self.groups, *self.scalars) if s.key in values]
        if self.settings.pruning != "none":
            metric = next(iter(self.objectives))
            place = studies.Place(self.storage, self.settings.study_name, trial.number, metric, self.settings.pruning)
            job.append(f"++hydra.job.env_set.{studies.VARIABLE}={command.in_quotes(place.dumps())}")
        return job

    def _check_metrics(self, outcomes: Sequence[_outcome.Outcome]) -> None:
        """Ends a search whose trials finish without the metric that it optimises; the corrected one begins anew."""
        import optuna
        from optuna.trial import TrialState

        from vaelab.training import studies

        known = [outcome.metrics for outcome in outcomes if outcome.metrics]
        absent = [name for name in self.objectives if known and not any(name in metrics for metrics in known)]
        if absent and not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            names = ", ".join(sorted(known[0]))
            optuna.delete_study(study_name=self.settings.study_name, storage=studies.storage(self.storage))
            raise UserError(f"optimize={absent[0]}: no run has such a metric; they have {names}")


def _takes(config: DictConfig, s: Space) -> bool:
    """Whether a config has the key of a space; one that is added with `+` fits any."""
    if s.written != s.key:
        return True
    parent, _, last = s.key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return last in list(node.keys()) if OmegaConf.is_dict(node) else OmegaConf.is_list(node)


def _sqlite(path: Path) -> str:
    """Returns the URL of a database file, with the characters quoted that mean something in it."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string()
