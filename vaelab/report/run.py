"""Builds the page of one run: what was run, how it went, its metrics and figures, and how to run it again."""

from __future__ import annotations

import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from vaelab import __version__, runs
from vaelab.core.files import damaged
from vaelab.core.metrics import MAIN, constants, metric
from vaelab.core.words import duration, number
from vaelab.evaluation.comparison.compared import is_outdated
from vaelab.evaluation.findings.health import findings_of, not_judged
from vaelab.report import pictures
from vaelab.report.page import HERE, description, render
from vaelab.runs import Files

STATES = {
    "": ("unfinished", "It has no summary.json: it is being trained, or was killed."),
    "trained": ("unfinished", "It is trained, but its test has not been made."),
    "failed": ("failed", "An error ended it."),
    "diverged": ("diverged", "Training diverged: metrics and figures are of a model that is not sound."),
    "interrupted": ("interrupted", "It was stopped before its end; metrics and figures are of the model until then."),
}
"""A word and a sentence for each status of a run that is not finished."""
UNSOUND = {
    "kind": "bad",
    "title": "This model is not sound.",
    "lines": [
        "Its weights, or the codes of its images, have NaN or infinite numbers: there is no explorer, and no picture "
        "of it is drawn.",
    ],
    "command": None,
}


def build(folder: Path, explorer: dict[str, Any] | None, sound: bool = True) -> str:
    """Renders the page of the run in `folder`, from its files.

    explorer: the payload of explorer.js; None for no explorer. sound: False of a model that has NaN or infinite
    numbers, which the page then says. Raises UserError if a file is damaged.
    """
    config, summary = runs.read_config(folder), runs.read_summary(folder)
    evaluated = evaluations(folder, summary)
    captions = pictures.CAPTIONS
    if summary.get("data", {}).get("val") == 0:
        captions = pictures.of_training_images(captions)
    own = config.get("figures", {}).get("own", {})
    captions = captions | {"Your own": {name: (name, f"Drawn by {node['_target_']}.") for name, node in own.items()}}
    scripts = all((HERE / name).is_file() for name in ("explorer.js", "explorer.css"))
    return render(
        "run.html",
        kind="run",
        title=config["run"]["name"],
        facts=facts(folder, config, summary),
        notices=[
            *state(folder, summary),
            *([] if sound else [UNSOUND]),
            *_drawn_from(folder, [evaluation for evaluation, _ in evaluated]),
            *verdicts(folder, summary, [evaluation for evaluation, _ in evaluated]),
        ],
        metrics=final_metrics(summary),
        evaluations=[shown for _, shown in evaluated],
        explorer=explorer if scripts else None,
        groups=pictures.groups(Files(folder).figures, captions),
        again=again(config),
        versions=_versions(summary),
        config=Files(folder).config.read_text(encoding="utf-8"),
        version=__version__,
    )


def facts(folder: Path, config: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the names and values of the line below the title: what was run, when and where."""
    model, data = summary.get("model"), summary.get("data")
    names = [config[key]["_target_"].rpartition(".")[2] for key in ("model", "dataset")]
    if model and model["latent_dimensions"]:
        names[0] += f", {model['latent_dimensions']} latent dimensions"
    if data:
        names[1] += (
            f", {data['train']:,} / {data['val']:,} / {data['test']:,} images of {'×'.join(map(str, data['shape']))}"
        )
    pairs = [("model", names[0]), ("data", names[1]), ("seed", str(config["seed"])), ("started", _started(folder))]
    pairs += [("status", STATES.get(summary.get("status", ""), (summary.get("status", ""),))[0])]
    if model:
        pairs += [
            ("time", duration(summary["seconds"])),
            ("trained", f"{summary['epochs']:,} epochs, {summary['steps']:,} steps"),
            ("device", summary["device"] + f" × {summary['processes']}" * (summary["processes"] > 1)),
            ("parameters", f"{model['parameters']:,}"),
        ]
    return pairs


def _started(folder: Path) -> str:
    """Returns when the run began, from the first line of its log; without a log, from its config's date."""
    log = Files(folder).log
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if stamp := re.search(r"^(\d{4}-\d\d-\d\d \d\d:\d\d)", text, re.MULTILINE):
        return stamp[1]
    return datetime.fromtimestamp(Files(folder).config.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def state(folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a notice about a run that is not finished, with the command that goes on with it."""
    status = summary.get("status", "")
    if status == "finished":
        return []
    word, why = STATES.get(status, (status, ""))
    lines = [why, *(summary.get("error") or "").strip().splitlines()]
    resumed = Files(folder).checkpoint("last").is_file() and status != "diverged"
    command = shlex.join(["vaelab", "train", f"resume={folder}"]) if resumed else None
    return [{"kind": "bad", "title": f"This run is {word}." if word != "failed" else "This run failed.",
             "lines": [line for line in lines if line], "command": command}]  # fmt: skip


def _drawn_from(folder: Path, evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a notice if the samples of the page are drawn from a prior that was fitted afterwards."""
    words = description(Files(folder).figure("samples"))
    if words is None:
        return []
    lines = [f"They are drawn from {words}. Each table of an evaluation says which prior it is under."]
    if words not in [_prior_of(evaluation).get("words") for evaluation in evaluations]:
        lines = [
            f"They are drawn from {words}. This page has no evaluation under it: vaelab eval with prior= makes one."
        ]
    return [{"kind": "plain", "title": "Samples of a fitted prior", "lines": lines, "command": None}]


def _prior_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Returns name and words of the fitted prior that an evaluation is under; {} for the model's own."""
    return evaluation.get("prior", {})


def _source(evaluation: dict[str, Any]) -> str:
    """Says what found something: the evaluation, or the one under a fitted prior."""
    prior = _prior_of(evaluation)
    return f"evaluation under prior={prior['name']}" if prior else "evaluation"


def verdicts(folder: Path, summary: dict[str, Any], evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns notices with the findings of training and of evaluations, or that nothing was found, or not judged."""
    by_code: dict[str, dict[str, Any]] = {}
    sources = {"training": findings_of(summary)} | {_source(found): found.get("findings") for found in evaluations}
    for source, findings in sources.items():
        for finding in findings or []:
            notice = by_code.setdefault(
                finding["code"], {"kind": "warn", "title": finding["code"].replace("_", " "), "lines": []}
            )
            notice["lines"].append(f"In {source}: {finding['evidence']}.")
            notice["remedy"] = f"Remedy: {finding['remedy']}."
    notices = [
        {**notice, "lines": [*notice["lines"], notice["remedy"]], "command": None} for notice in by_code.values()
    ]
    lines = [f"{name}: {verdict}" for found in evaluations for name, verdict in found.get("verdicts", {}).items()]
    if lines:
        notices.append({"kind": "plain", "title": "The evaluation's verdicts", "lines": lines, "command": None})
    looked = [source for source, findings in sources.items() if findings is not None]
    if not by_code and looked and summary.get("status") in ("finished", "trained"):
        where = " and ".join(looked)
        notices.append({"kind": "good", "title": "Nothing found",
                        "lines": [f"The health checks of {where} found nothing wrong."], "command": None})  # fmt: skip
    if "training" not in looked and summary.get("status") in ("finished", "trained"):
        notices.append({"kind": "plain", "title": "Not judged", "lines": [not_judged(summary)], "command": None})
    if summary.get("status") == "finished" and not evaluations:
        notices.append({"kind": "plain", "title": "Not evaluated",
                        "lines": ["This measures the likelihood, the latent space, samples and more:"],
                        "command": shlex.join(["vaelab", "eval", f"run={folder}"])})  # fmt: skip
    return notices


def final_metrics(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of final metrics: a row per metric, a column per split, and notes.

    What was set and not measured, such as a constant β, is no row: it stands in a note with its value.
    """
    metrics, best = summary.get("metrics", {}), summary.get("best", {})
    parts = [part for part in ("train", "val", "test") if any(name.startswith(f"{part}/") for name in metrics)]
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    found = {n: [metrics.get(f"{part}/{n}") for part in parts] for n in names}
    cells = {n: ["" if value is None else number(value) for value in row] for n, row in found.items()}
    constant = constants(cells)
    rows = [{"name": n, "cells": row, "unit": metric(n).unit} for n, row in cells.items() if n not in constant]
    notes = ["A column's and a row's name together are the log key, as in test/elbo."]
    if rows and summary.get("epochs"):
        of = "of the last epoch, too"
        if best.get("by"):
            of = f"of epoch {best['epoch']}, the best by {best['by']} ({number(best['value'])})"
        test = f"; test is {of}" if "test" in parts else f"; the best checkpoint is {of}"
        known = [part for part in parts if part != "test"]
        notes.insert(
            0, f"{' and '.join(known)} {'are' if len(known) > 1 else 'is'} of epoch {summary['epochs']}{test}."
        )
    if constant:
        notes.append(f"Set, and the same throughout: {', '.join(f'{name} {cells[name][0]}' for name in constant)}.")
    if "objective" in summary:
        objective = summary["objective"]
        notes.append(f"Likelihood: {objective['likelihood']}, {objective['log_likelihood_is']}.")
    return {"parts": parts, "rows": rows, "notes": notes}


def evaluations(folder: Path, summary: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the evaluations of a run that are not outdated, and what the page shows of each.

    First that under the model's own prior, then those under fitted ones. Raises UserError if one is damaged.
    """
    found = []
    for prior in (None, *Files(folder).fitted):
        evaluation = runs.read_evaluation(folder, "test", prior)
        try:
            if evaluation and not is_outdated(evaluation["checkpoint"], summary.get("best", {})):
                found.append((evaluation, _evaluated(evaluation)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            path = Files(folder).evaluation("test", prior)
            raise damaged(path, why, "delete it, and run vaelab eval again") from error
    return found


def _evaluated(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics of evaluation.json, each with its standard error: the main ones and the others."""
    metrics, point = evaluation["figures"], evaluation["checkpoint"]
    rows = {
        name: (name, number(value), number(metrics[f"{name}_se"]) if f"{name}_se" in metrics else "")
        for name, value in metrics.items()
        if value is not None and not (name.endswith("_se") and name.removesuffix("_se") in metrics)
    }
    main = [rows.pop(name) for name in MAIN if name in rows]
    prior = _prior_of(evaluation)
    under = f", under {prior['words']}" if prior else ""
    heading = (
        f"vaelab eval on {evaluation['images']:,} images of {evaluation['split']}, {point['name']} checkpoint "
        f"(epoch {point['epoch']}){under}. Likelihoods are in nats per image."
    )
    title = f"Evaluation under prior={prior['name']}" if prior else "Evaluation"
    return {"title": title, "heading": heading, "main": main, "others": list(rows.values())}


def again(config: dict[str, Any]) -> str:
    """Returns the command that repeats the run in a new folder, quoted for a shell."""
    run = config["run"]
    overrides = list(run["overrides"])
    if not any(override.lstrip("+").startswith("seed=") for override in overrides):
        overrides.append(f"seed={config['seed']}")
    config_dir = ["--config-dir", run["config_dir"]] if run.get("config_dir") else []
    return shlex.join(["vaelab", "train", *config_dir, *overrides])


def _versions(summary: dict[str, Any]) -> str:
    if "versions" not in summary:
        return "It has recorded no versions."
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    commit = summary.get("commit")
    if not commit:
        return f"{versions}."
    changed = " with changes" if commit.endswith("+") else ""
    return f"{versions}; commit {commit.rstrip('+')}{changed}."
