"""Outcomes of trials: read from their run folders, told to the study, printed at the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus

from vaelab import runs
from vaelab.core.errors import UserError
from vaelab.core.files import write_text
from vaelab.training.summary import number

RESULTS = "optimization_results.json"
"""Name of the file of a search's results, in the folder of its sweep."""


class Outcome(NamedTuple):
    """How a trial's job ended.

    status: `finished`, `pruned`, `interrupted` (another start goes on with it) or `failed`. run: its
    folder. values: the objectives of a finished one. error: why it failed. metrics: names of what it measured.
    """

    status: str
    run: Path | None
    values: list[float]
    error: str
    metrics: list[str]


def read(result: Any, objectives: Mapping[str, str]) -> Outcome:
    """Reads the outcome of a job from the summary.json of its run folder alone."""
    run, raised = _folder(result), ""
    if isinstance(result, JobReturn) and result.status == JobStatus.FAILED:
        raised = str(result._return_value)
    try:
        summary = runs.read_summary(run) if run is not None else {}
    except UserError as error:
        summary, raised = {}, str(error)
    metrics = summary.get("metrics", {})
    status, error = str(summary.get("status")), str(summary.get("error") or raised or "its run left no summary.json")
    if status in ("pruned", "interrupted"):
        return Outcome(status, run, [], "", list(metrics))
    if status != "finished":
        return Outcome("failed", run, [], error.strip().splitlines()[0], list(metrics))
    if absent := [name for name in objectives if name not in metrics]:
        return Outcome("failed", run, [], f"{absent[0]} is not among its metrics", list(metrics))
    values = [float(metrics[name]) for name in objectives]
    if not all(map(math.isfinite, values)):
        return Outcome("failed", run, [], f"{' and '.join(objectives)} came to {values}", list(metrics))
    return Outcome("finished", run, values, "", list(metrics))


def _folder(result: Any) -> Path | None:
    """Finds a job's run folder: what it returned, or where Hydra put it; None if the launcher lost it."""
    if not isinstance(result, JobReturn):
        return None
    if result.status == JobStatus.COMPLETED and isinstance(result.return_value, str):
        return Path(result.return_value)
    return Path(result.hydra_cfg.hydra.runtime.output_dir) if result.hydra_cfg is not None else None


def tell(study: Any, trial: Any, outcome: Outcome, sweep: Path) -> None:
    """Tells the study how a trial ended, and prints it; an interrupted one stays unfinished there."""
    from optuna.trial import TrialState

    names = study.user_attrs["search"]["optimize"]
    text = metrics_text(dict(zip(names, outcome.values, strict=False))) or outcome.error
    print(f"trial {trial.number}: {outcome.status}  {text}".rstrip())
    if outcome.status == "interrupted":
        return
    if outcome.run is not None:
        trial.set_user_attr("run", os.path.relpath(outcome.run, sweep))
    if outcome.error:
        trial.set_user_attr("error", outcome.error)
    states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    study.tell(trial, outcome.values or None, states[outcome.status])


def metrics_text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def conclude(study: Any, sweep: Path) -> None:
    """Prints the best trial, or the Pareto front of several objectives, and writes optimization_results.json."""
    from optuna.trial import TrialState

    objectives: dict[str, str] = study.user_attrs["search"]["optimize"]
    words = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "unfinished",
    }
    trials = study.get_trials(deepcopy=False)
    counts = {word: sum(t.state == state for t in trials) for state, word in words.items()}
    best = [
        {
            "trial": t.number,
            "values": dict(zip(objectives, t.values, strict=True)),
            "parameters": dict(t.params),
            "run": t.user_attrs.get("run"),
        }
        for t in sorted(study.best_trials, key=lambda t: t.values)
    ]
    best = best if len(objectives) > 1 else best[:1]
    content = {"optimize": objectives, "study": study.study_name, "trials": counts, "best": best}
    write_text(sweep / RESULTS, json.dumps(content, indent=2) + "\n")

    states = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    ends = " and ".join(f"{name} ({end})" for name, end in objectives.items())
    what = "the best" if len(objectives) == 1 else f"{len(best)} that no other beats in every metric"
    print(f"\n{len(trials)} trials ({states}); {what} by {ends}:" if best else f"\n{len(trials)} trials ({states})")
    for row in best:
        parameters = " ".join(f"{key}={_short(value)}" for key, value in row["parameters"].items())
        print(f"  {metrics_text(row['values'])}  {parameters}\n    run: {_shown(sweep / str(row['run']))}")
    print(f"search: {_shown(sweep / RESULTS)}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(path: Path) -> str:
    return os.path.relpath(path) if Path(path).absolute().is_relative_to(Path.cwd()) else str(path)
