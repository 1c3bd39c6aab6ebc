"""Summarises a run: its first line, its final table, summary.json."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab import __version__
from vaelab.core.metrics import constants
from vaelab.core.words import number
from vaelab.evaluation.findings.health import findings_of

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

PARTS = ("train", "val", "test")
PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "omegaconf")


def opening(config: dict[str, Any], model: Model, data: ImageData, trainer: Any) -> str:
    """Returns the line that opens a run: model, data, device."""
    what = f"images of {'x'.join(map(str, data.shape))}"
    if data.fields is not None:
        what = f"rows of {len(data.fields)} columns"
    counts = f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test"
    parameters = sum(p.numel() for p in model.parameters())
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return (
        f"{config['run']['name']}: {counts} {what}; {parameters:,} parameters; "
        f"on {trainer.strategy.root_device.type}{processes}"
    )


def table(summary: dict[str, Any]) -> str:
    """Formats the final metrics, a row each, a column per split, and which weights they are of.

    What was set and not measured, such as a constant β, is no row: it stands in a line with its value.
    """
    metrics, best = summary["metrics"], summary["best"]
    parts = [part for part in PARTS if any(name.startswith(f"{part}/") for name in metrics)]
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    cells = {n: [number(metrics[k]) if (k := f"{part}/{n}") in metrics else "" for part in parts] for n in names}
    constant = constants(cells)
    width = max((len(name) for name in cells if name not in constant), default=0)
    rows = {"": parts} | {name: row for name, row in cells.items() if name not in constant}
    lines = [f"{name:{width}} " + "".join(f"{cell:>12}" for cell in row) for name, row in rows.items()]
    lines += ["with " + ", ".join(f"{name} {cells[name][0]}" for name in constant)] if constant else []
    of = f"of epoch {best['epoch']}, the best by {best['by']}" if best["by"] else "of the last epoch, too"
    known = " and ".join(part for part in parts if part != "test")
    of = of if known else "before the end of the first epoch"
    where = [f"{known} of epoch {summary['epochs']}"] if known else []
    lines.append("; ".join([*where, f"test {of}"] if "test" in parts else where))
    return "\n".join(lines)


def sweep_table(summaries: dict[str, dict[str, Any]]) -> str:
    """Formats one row per job: its state, the metric that selects its best checkpoint, or its error, and its health."""
    width = max(map(len, summaries), default=0)
    lines = []
    for name, summary in summaries.items():
        best = summary.get("best", {})
        shown = f"{best['by']} {number(best['value'])}" if best.get("by") else (summary.get("error") or "")
        codes = ", ".join(dict.fromkeys(finding["code"] for finding in findings_of(summary) or []))
        lines.append(f"{name:{width}}  {summary.get('status', '?'):11}  {shown}{'  ' * bool(codes)}{codes}")
    return "\n".join(lines)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Converts metrics to Python floats."""
    return {name: float(value) for name, value in metrics.items()}


def collect(config: dict[str, Any], model: Model, data: ImageData, trainer: Any, seconds: float) -> dict[str, Any]:
    """Returns the content of summary.json after training: `best` and the test's metrics are added to it.

    `metrics`: train and val of the last epoch, test of the best checkpoint; nats per image, or as
    docs/ explains each key.
    """
    pixels, latents = model.likelihood.dimensions(data.shape), model.layout.dimensions
    weight = getattr(model, "beta", None)
    beta = None if weight is None else float(weight)
    judged = [c.findings for c in trainer.callbacks if getattr(c, "findings", None) is not None]
    return {
        "status": "finished",
        "name": config["run"]["name"],
        "metrics": numbers(trainer.callback_metrics),
        "best": {},
        "epochs": trainer.current_epoch,
        "steps": trainer.fit_loop.epoch_loop.global_step,
        "findings": [finding._asdict() for findings in judged for finding in findings] if judged else None,
        "kl_per_dim": {p: v["kl_per_dim"].tolist() for p, v in model.epoch_vectors.items() if "kl_per_dim" in v},
        "model": {
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "latent_dimensions": latents,
        },
        "data": {
            "class": type(data).__name__,
            "shape": list(data.shape),
            "dimensions": pixels,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "num_classes": data.num_classes,
            "class_names": data.class_names,
            "binarize": data.binarize,
            "pixel_range": list(data.pixel_range),
        },
        "objective": {
            "likelihood": type(model.likelihood).__name__,
            "log_likelihood_is": model.likelihood.density(data.binary),
            "reduction": "sum over pixels and latent dimensions, mean over images",
            "beta": beta,
            "beta_if_mean_reduced": None if beta is None or latents is None else beta * latents / pixels,
        },
        "versions": {"vaelab": __version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": _commit(),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "seconds": round(seconds, 2),
    }


def _commit() -> str | None:
    """Returns the lab's git commit, with a + if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "."])
    try:
        head, changes = (
            subprocess.run(c, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")
