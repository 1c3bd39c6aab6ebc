"""Describes a run as a comparison sees it: settings, metrics, and what must agree before these are ranked.

Metrics are named `section/name`, as in evaluation.json; what training's end left in summary.json
has the same name where it is the same metric, and is `training/name` where it is not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from vaelab.core.metrics import TRAINING

FROM_TRAINING = {metric.name: metric.evaluated for metric in TRAINING if metric.evaluated}
"""Names in summary.json of the metrics that evaluation.json has, too, each with its name there."""

BOOKKEEPING = (
    *("run.", "sweep.", "logger.", "test.", "report.", "figures.", "resume.", "seed.", "callbacks.pictures."),
    *("callbacks.anneal.", "callbacks.learning_rate.", "callbacks.averaging."),  # copies of config groups
    *("trainer.default_root_dir.", "trainer.enable_progress_bar.", "trainer.enable_model_summary."),
    *("dataset.storage.", "dataset.num_workers.", "dataset.download."),
)
"""Keys of a config, or their parents, that do not tell configurations apart."""

NOT_OF_THE_IMAGES = ("dataset.batch_size", "dataset.seed")
NOT_OF_TEST = ("dataset.val_size", "dataset.split_seed", "dataset.train_size")
NOT_OF_THE_OBJECTIVE = ("model.latent_dim", "model.label_dim")
SCHEDULED = ("beta", "capacity")
"""Weights whose value in the measured checkpoint need not be the configured one."""


class Run(NamedTuple):
    """A run as a comparison knows it.

    name: its path. settings: its config, flat, without the seed. figures: metrics by name. aspects: what
    must agree with other runs (see rules.AGREE), each a few named values. evaluated: names of the metrics
    that are of an evaluation, the others are of training's end. outdated: whether there is an
    evaluation, but of other weights than those of today. scheduled: beta and C of the measured
    weights, each with the value at its schedule's end.
    """

    name: str
    seed: int
    settings: dict[str, Any]
    figures: dict[str, float]
    aspects: dict[str, dict[str, Any]]
    evaluated: frozenset[str]
    outdated: bool
    scheduled: dict[str, tuple[float, float]]

    def aspect(self, name: str, figure: str) -> dict[str, Any]:
        """Returns what other runs must have in common with this one to rank the metric."""
        if name == "protocol":
            name = f"protocol of {figure.partition('/')[0]}"
        elif name == "data" and figure in self.evaluated:
            name = "evaluated data"
        return self.aspects.get(name, {})


def describe(
    name: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    evaluation: dict[str, Any],
    split: str,
    options: dict[str, str],
) -> Run:
    """Describes a run from the content of its files.

    evaluation: empty if there is none of this split; else its metrics replace those of training's
    end. It is left aside if it is of a best checkpoint that training has replaced since. Standard
    errors are left out: they are over images, and a comparison is over seeds. options: names of what
    `_target_`s select, as in `model=beta`; a target that is not in it goes by its last part. Raises
    KeyError, TypeError or AttributeError if the files' content is not as vaelab writes it.
    """
    settings = flat_settings(config, options)
    outdated = bool(evaluation) and is_outdated(evaluation["checkpoint"], summary["best"])
    if outdated:
        evaluation = {}
    of_best = split == "test" and bool(summary["best"].get("by"))  # train and val are of the last epoch
    checkpoint, images = "best" if of_best else "last", summary["data"][split]
    figures, measured, subject = _of_training(summary["metrics"], split), {}, {}
    scheduled = {name: summary["metrics"].get(f"{split}/{name}") for name in SCHEDULED}
    if evaluation:
        measured, subject = _finite(evaluation["figures"]), evaluation["subject"]
        if evaluation["checkpoint"]["name"] != checkpoint:
            figures, scheduled = {}, {}
        checkpoint = evaluation["checkpoint"]["name"]
        scheduled |= subject.get("scheduled", {})
    figures = _finite(figures) | measured
    aspects = _aspects(settings, summary["objective"], split)
    aspects["condition"] = {
        "condition": "label" if subject.get("conditional", "model.label_dim" in settings) else "none",
        **({"model.seen": settings["model.seen"]} if "model.seen" in settings else {}),
    }
    images_of = aspects["data"]
    limit = f"trainer.limit_{split}_batches"
    aspects["data"] = images_of | {"images": images, limit: config["trainer"].get(limit.partition(".")[2])}
    if evaluation:
        samples = figures.get("likelihood/importance_samples")
        aspects["evaluated data"] = images_of | {"images": evaluation["images"], limit: None}
        aspects["importance_samples"] = {"importance_samples": None if samples is None else int(samples)}
        aspects |= {f"protocol of {name}": {"protocol": text} for name, text in evaluation["protocols"].items()}
    return Run(
        name,
        config["seed"],
        settings | {"checkpoint": checkpoint},
        figures,
        aspects,
        frozenset(measured),
        outdated,
        _with_ends(scheduled, settings),
    )


def is_outdated(checkpoint: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an evaluation of `checkpoint` is of a best one that training has replaced by `best` since."""
    return checkpoint["name"] == "best" and bool(best.get("by")) and best["epoch"] != checkpoint["epoch"]


def _finite(figures: dict[str, Any]) -> dict[str, float]:
    """Selects the metrics that are numbers, without standard errors."""
    numbers = {key: float(value) for key, value in figures.items() if value is not None and not key.endswith("_se")}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _with_ends(scheduled: dict[str, Any], settings: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Pairs the values of scheduled weights with the ends of their schedules in the config."""
    pairs = {}
    for name in (name for name in SCHEDULED if scheduled.get(name) is not None):
        keys = (f"schedule.{name}.end", f"schedule.{name}.value", f"model.{name}")
        ends = [settings[key] for key in keys if isinstance(settings.get(key), int | float)]
        if ends:
            pairs[name] = float(scheduled[name]), float(ends[0])
    return pairs


def _of_training(metrics: dict[str, Any], split: str) -> dict[str, Any]:
    """Returns the metrics of a split that summary.json has, under the names used here."""
    of_split = {key.removeprefix(f"{split}/"): value for key, value in metrics.items() if key.startswith(f"{split}/")}
    return {FROM_TRAINING.get(key, f"training/{key}"): value for key, value in of_split.items()}


def _aspects(settings: dict[str, Any], objective: dict[str, Any], split: str) -> dict[str, dict[str, Any]]:
    """Returns the settings that must agree between runs, by aspect; objective: the section of summary.json."""

    def of(groups: tuple[str, ...], without: tuple[str, ...]) -> dict[str, Any]:
        return {k: v for k, v in settings.items() if k.partition(".")[0] in groups and k not in without}

    return {
        "data": of(("dataset",), NOT_OF_THE_IMAGES + (NOT_OF_TEST if split == "test" else ())),
        "likelihood": {
            "likelihood": settings.get("likelihood"),
            "log_likelihood_is": objective["log_likelihood_is"],
        },
        "reduction": {"reduction": objective["reduction"]},
        "objective": of(("model", "schedule", "codebook"), NOT_OF_THE_OBJECTIVE),
    }


def overrides_of(config: dict[str, Any]) -> dict[str, str]:
    """Returns what was set on the command line of a run, as `key: value`."""
    pairs = (text.lstrip("+~").partition("=") for text in config.get("run", {}).get("overrides", []))
    return {key: value for key, _, value in pairs}


def flat_settings(config: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """Flattens a config to `group.key: value`, without keys that do not tell configurations apart."""
    model, dataset = config["model"], config["dataset"]
    parts = {key: value for key, value in model.items() if key in config}  # network, likelihood, as the model has them
    tree = config | parts | {"model": {k: v for k, v in model.items() if k not in parts}}
    dropped = BOOKKEEPING
    follows = dataset.get("seed") == config["seed"] and "dataset.seed" not in overrides_of(config)
    dropped += ("dataset.seed.",) if follows else ()
    dropped += ("dataset.root.",) if "download" in dataset else ()  # downloaded files are the same wherever they lie
    return {key: value for key, value in _flat(tree, "", options).items() if not f"{key}.".startswith(dropped)}


def _flat(node: Any, prefix: str, options: dict[str, str]) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: _plain(node)}
    target = node.get("_target_")
    flat = {prefix: options.get(target, target.rpartition(".")[2])} if target else {}
    for key, value in node.items():
        if key not in ("_target_", "_partial_"):
            flat |= _flat(value, f"{prefix}.{key}" if prefix else key, options)
    return flat


def _plain(value: Any) -> Any:
    """Turns 4.0 into 4: in a config they are the same number."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
