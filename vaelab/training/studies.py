"""Links a search and its trials: the study's database, and how a trial is told which one it is."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

VARIABLE = "VAELAB_TRIAL"
"""The environment variable that tells a training process its trial, if there is something to report."""


class Place(NamedTuple):
    """The place of a training process in a search: which trial it is.

    storage: URL of the database. study: its name there. trial: its number. metric: the validation
    metric to report after each epoch. pruning: which of Optuna's pruners judges it, `median` or
    `hyperband`.
    """

    storage: str
    study: str
    trial: int
    metric: str
    pruning: str

    def dumps(self) -> str:
        """Returns the place as the value of VARIABLE."""
        return json.dumps(self._asdict())


def place() -> Place | None:
    """Returns which trial this process is; None if it is none, or has nothing to report."""
    value = os.environ.get(VARIABLE)
    return Place(**json.loads(value)) if value else None


def quieten() -> None:
    """Keeps Optuna's messages about every step, and its warnings of experimental features, off the terminal."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def storage(url: str) -> Any:
    """Opens the database at this URL. SQLite waits for other processes' writes up to a minute."""
    from optuna.storages import RDBStorage

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=options)


def trial(place: Place) -> Any:
    """Returns the running trial in its study, to report to and to ask whether to go on."""
    import optuna

    quieten()
    pruners = {"median": optuna.pruners.MedianPruner, "hyperband": optuna.pruners.HyperbandPruner}
    study = optuna.load_study(study_name=place.study, storage=storage(place.storage), pruner=pruners[place.pruning]())
    return running(study, study.get_trials(deepcopy=False)[place.trial])


def running(study: Any, frozen: Any) -> Any:
    """Returns a trial of a study as one that can be reported to; an unfinished one of an ended process, too."""
    from optuna.trial import Trial

    return Trial(study, frozen._trial_id)
