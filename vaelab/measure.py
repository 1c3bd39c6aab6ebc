"""An evaluation: a run's model and data, measured section by section and written to its folder."""

from __future__ import annotations

import importlib
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaelab import __version__, runs
from vaelab.config import build, check
from vaelab.errors import UserError
from vaelab.evaluation.diagnosis import diagnose_evaluation
from vaelab.evaluation.subject import Part, Section, Settings, Subject, Unsupported
from vaelab.quiet import quieten
from vaelab.summary import number

SPEED = ("storage", "num_workers", "batch_size", "download")
"""Options of a data set that its images do not depend on."""
KEPT = ("vaelab", "checkpoint", "split", "images", "seed", "subject")
"""What has to be the same for an earlier evaluation's sections to stay in the file."""


def prepare(run: Path, saved: dict[str, Any], options: dict[str, Any]) -> tuple[Subject, dict[str, Any]]:
    """The model and data to measure, and what evaluation.json says of them.

    saved: the run's config. options: those of conf/eval.yaml. Raises UserError for a run, a checkpoint,
    a device or data that cannot be had, or images that are not the model's.
    """
    quieten()
    model = runs.load(run, options["checkpoint"], _device(options["device"]))
    point = runs.read_checkpoint(runs.checkpoint_path(run, options["checkpoint"]))
    if options["root"] is not None and "root" not in saved["dataset"]:
        raise UserError(f"root={options['root']}: the run's data set is read from no folder: leave it out")
    dataset = saved["dataset"] | ({} if options["root"] is None else {"root": options["root"]})
    data, part = _data(dataset, "dataset", model), options["split"]
    if not hasattr(data, part) or len(getattr(data, part)) < 2:
        raise UserError(f"split={part}: the run has no such images: take another split")
    other = _other(options["ood"], dataset, model) if options.get("ood") else None
    identity = {name: value for name, value in dataset.items() if name not in SPEED}
    settings = Settings(
        seed=options["seed"],
        memory=options["memory"] * 2**20,
        importance_samples=options["importance_samples"],
        generated=options["generated"],
        gap_images=options["gap_images"],
    )
    about = {
        "run": saved["run"]["name"],
        "status": "unfinished",
        "checkpoint": {"name": options["checkpoint"], "epoch": point["epoch"] + 1, "step": point["global_step"]},
        "split": part,
        "images": len(getattr(data, part)),
        "seed": options["seed"],
        "device": str(model.device),
        "vaelab": __version__,
        "subject": {
            "model": type(model).__name__,
            "latent_dimensions": getattr(model, "latent_dim", None),
            "seed": saved["seed"],
            "dataset": type(data).__name__,
            "data": {name: value for name, value in identity.items() if name != "root"},
            "likelihood": type(model.likelihood).__name__,
            "log_likelihood_is": model.likelihood.density(data.binary),
            **{name: float(getattr(model, name)) if hasattr(model, name) else None for name in ("beta", "capacity")},
        },
    }
    return Subject(model, data, part, identity, settings, other), about


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what is raised differs between builds
        raise UserError(f"device={name}: it cannot be used here: take device=cpu") from error
    return name


def _other(config: dict[str, Any], own: dict[str, Any], model: Any) -> Part:
    """Test images of another data set, made as the model's own are: binarised, and in their range."""
    config = config | {name: own[name] for name in ("binarize", "pixel_range")}
    what = {name: value for name, value in config.items() if name not in (*SPEED, "_target_", "root", "seed")}
    return Part(f"{config['_target_'].rpartition('.')[2]} {what}", _data(config, "ood", model).test)


def _data(config: dict[str, Any], key: str, model: Any) -> Any:
    """The data set of a config, whose key the user knows as `key`; its images are the model's, or UserError."""
    check(config, key)
    data = build(config)
    try:
        data.setup()
    except UserError as error:
        here = "ood." if key == "ood" else ""
        raise UserError(str(error).replace("dataset.", here).replace("dataset=", f"{key}=")) from error
    if data.shape != model.shape:
        sizes = (" x ".join(map(str, shape)) for shape in (data.shape, model.shape))
        raise UserError("{}: its images are {}, and the model takes {}".format(key, *sizes))
    return data


def measure(
    run: Path, subject: Subject, about: dict[str, Any], sections: dict[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """Measures the sections, name and module of each, and writes the evaluation after every one.

    Sections of an earlier evaluation of the same weights and images are kept. Returns the evaluation,
    and the sections that should have been measured but failed; why is in its `skipped`.
    """
    evaluation, failed = _begun(run, about), set()
    with torch.no_grad():
        for name, module in sections.items():
            started = time.monotonic()
            _forget(evaluation, name)
            subject.seed(name)
            try:
                section = getattr(importlib.import_module(module), name)(subject)
                _add(evaluation, name, section)
                _write_per_image(run, subject, section.per_image)
            except (Unsupported, UserError, ValueError) as reason:
                evaluation["skipped"][name] = str(reason)
                failed |= set() if isinstance(reason, Unsupported) else {name}
            evaluation["seconds"][name] = round(time.monotonic() - started, 2)
            runs.write_evaluation(run, evaluation)
    findings = diagnose_evaluation(evaluation["figures"], evaluation["vectors"], evaluation["subject"])
    evaluation |= {"status": "finished", "findings": [finding._asdict() for finding in findings]}
    runs.write_evaluation(run, evaluation)
    return evaluation, failed


def _begun(run: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The evaluation to fill, with the sections that an earlier one has measured of the same."""
    empty: dict[str, Any] = {"figures": {}, "vectors": {}, "protocols": {}, "skipped": {}, "seconds": {}}
    before = runs.read_evaluation(run, about["split"])
    if any(before.get(name) != about[name] for name in KEPT):
        before = {}
        _per_image_path(run, about["split"]).unlink(missing_ok=True)
    return about | {name: before.get(name, value) for name, value in empty.items()} | {"findings": []}


def _forget(evaluation: dict[str, Any], section: str) -> None:
    """Takes out what an earlier evaluation has of a section."""
    for kind in ("figures", "vectors"):
        for name in [n for n in evaluation[kind] if n.startswith(f"{section}/")]:
            del evaluation[kind][name]
    for kind in ("protocols", "skipped"):
        evaluation[kind].pop(section, None)


def _add(evaluation: dict[str, Any], name: str, section: Section) -> None:
    if wrong := [key for key, value in section.figures.items() if not math.isfinite(value)]:
        raise ValueError(f"{wrong[0]} is {section.figures[wrong[0]]}")
    evaluation["figures"] |= {f"{name}/{key}": float(value) for key, value in section.figures.items()}
    evaluation["vectors"] |= {f"{name}/{key}": value.tolist() for key, value in section.vectors.items()}
    evaluation["protocols"][name] = section.protocol


def _per_image_path(run: Path, split: str) -> Path:
    return runs.evaluation_path(run, split).with_suffix(".npz")


def _write_per_image(run: Path, subject: Subject, found: dict[str, torch.Tensor]) -> None:
    """evaluation.npz: what was found of every image, in the order of the split, beside what was there before."""
    if not found:
        return
    path = _per_image_path(run, subject.part)
    arrays: dict[str, Any] = {name: values.cpu().numpy() for name, values in found.items()}
    if path.is_file():
        with np.load(path, allow_pickle=False) as before:
            arrays = {name: before[name] for name in before.files} | arrays
    if subject.labels is not None:
        arrays["labels"] = subject.labels.numpy()
    partial = path.with_suffix(".npz.tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def table(evaluation: dict[str, Any]) -> str:
    """The figures by section, each with its standard error if it has one, what was left out and what is wrong."""
    figures, point = evaluation["figures"], evaluation["checkpoint"]
    images = f"{evaluation['images']:,} images of {evaluation['split']}"
    lines = [f"{evaluation['run']}, {point['name']} checkpoint (epoch {point['epoch']}), {images}"]
    width = max((len(name.partition("/")[2]) for name in figures), default=0)
    for section in evaluation["protocols"]:
        lines += ["", section]
        own = {name.partition("/")[2]: value for name, value in figures.items() if name.startswith(f"{section}/")}
        for name, value in own.items():
            if (name.endswith("_se") and name.removesuffix("_se") in own) or (name == "dimensions" and "active" in own):
                continue  # beside the figure that they belong to
            error = f" ± {number(own[f'{name}_se'])}" if f"{name}_se" in own else ""
            of = f" of {own['dimensions']:.0f}" if name == "active" else ""
            lines.append(f"  {name:{width}} {_shown(value):>11}{error}{of}")
    if evaluation["skipped"]:
        lines += ["", "left out", *(f"  {name}: {reason}" for name, reason in evaluation["skipped"].items())]
    if evaluation["findings"]:
        lines += ["", "findings"]
        lines += [f"  {f['code']}: {f['evidence']}\n    remedy: {f['remedy']}" for f in evaluation["findings"]]
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else number(value)
