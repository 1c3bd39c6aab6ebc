"""Evaluates a run: its model and data are measured section by section, and the metrics written to its folder."""

from __future__ import annotations

import importlib
import math
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vaelab import __version__, runs
from vaelab.core.errors import UserError
from vaelab.core.files import NO_ARRAYS, whole
from vaelab.core.metrics import MAIN
from vaelab.core.words import number, wrapped
from vaelab.evaluation.comparison.tables import ABSENT, layout, titles
from vaelab.evaluation.findings.diagnosis import diagnose_evaluation, verdicts
from vaelab.evaluation.subject import Part, Section, Settings, Subject, Unsupported
from vaelab.runs import Files
from vaelab.runs.priors import fingerprint
from vaelab.runs.trained import Trained, open_data

if TYPE_CHECKING:
    from vaelab.datasets.base import ImageData
    from vaelab.models import Model

SPEED = ("storage", "num_workers", "batch_size", "download", "balance", "labelled")
"""Options of a data set that its images do not depend on."""
KEPT = ("vaelab", "checkpoint", "split", "images", "seed", "subject", "prior")
"""Keys of evaluation.json that must be the same for an earlier evaluation's sections to stay in the file."""
WIDTH = 24
"""Width of the column of names, characters."""


def prepare(run: Path, saved: dict[str, Any], options: dict[str, Any]) -> tuple[Subject, dict[str, Any]]:
    """Prepares the model and data to measure, and what evaluation.json says of them.

    saved: the run's config. options: those of conf/eval.yaml. Raises UserError for a run, a checkpoint,
    a device or data that cannot be had, or images that are not the model's.
    """
    trained = Trained(
        run, options["checkpoint"], options["device"], options["root"], options.get("prior"), options["trust"]
    )
    model, data, dataset, part = trained.model, trained.data, trained.dataset, options["split"]
    point = runs.read_checkpoint(runs.checkpoint_path(run, trained.checkpoint))
    if not hasattr(data, part) or len(getattr(data, part)) < 2:
        raise UserError(f"split={part}: the run has no such images: take another split")
    other = _other(options["ood"], dataset, model) if options.get("ood") else _left_out(data)
    identity = {name: value for name, value in dataset.items() if name not in SPEED}
    settings = Settings(
        seed=options["seed"],
        memory=options["memory"] * 2**20,
        importance_samples=options["importance_samples"],
        generated=options["generated"],
        gap_images=options["gap_images"],
        inception=options.get("inception"),
        lpips=options.get("lpips"),
    )
    about = {
        "run": saved["run"]["name"],
        "status": "unfinished",
        "checkpoint": {"name": trained.checkpoint, "epoch": point["epoch"] + 1, "step": point["global_step"]},
        "split": part,
        "images": len(getattr(data, part)),
        "seed": options["seed"],
        "device": str(model.device),
        "vaelab": __version__,
        "subject": {
            "model": type(model).__name__,
            "latent_dimensions": model.layout.dimensions,
            "seed": saved["seed"],
            "dataset": type(data).__name__,
            "data": {name: value for name, value in identity.items() if name != "root"},
            "likelihood": type(model.likelihood).__name__,
            "log_likelihood_is": model.likelihood.density(data.binary),
            "conditional": model.conditional,
            "scheduled": {name: float(getattr(model, name)) for name in model.scalars},
        },
    }
    if (codebook := getattr(model, "codebook", None)) is not None:
        about["subject"]["remedy"] = codebook.remedy._asdict()
    if options.get("prior"):
        prior = model.require_prior()
        about["prior"] = {"name": options["prior"], "words": prior.words, "fit": fingerprint(prior)}
    return Subject(model, data, part, settings, other), about


def _other(config: dict[str, Any], own: dict[str, Any], model: Model) -> Part:
    """Returns test images of another data set, made as the model's own are: binarised, and in their range."""
    config = config | {name: own[name] for name in ("binarize", "pixel_range")}
    unsaid = {
        *SPEED,
        "_target_",
        "seed",
        *(["root"] if "download" in config else []),
    }  # downloads are the same anywhere
    what = {
        name: value for name, value in config.items() if name not in unsaid and (name, value) != ("leave_out", None)
    }
    return Part(f"{config['_target_'].rpartition('.')[2]} {what}", open_data(config, "ood", model).test)


def _left_out(data: ImageData) -> Part | None:
    """Returns the test images of the classes that the model was trained without, if there are any."""
    if data.left_out is None:
        return None
    return Part(f"classes that training was without ({', '.join(map(str, data.leave_out or []))})", data.left_out)


def measure(
    run: Path, subject: Subject, about: dict[str, Any], sections: dict[str, str | Callable[[Subject], Section]]
) -> tuple[dict[str, Any], set[str]]:
    """Measures the sections; prints and writes each as soon as it is done.

    sections: by name, each a function, or the module of a function of that name. Those of an earlier evaluation of
    the same weights and images are kept. Returns the evaluation, and the sections that should have been measured but
    failed; why is in its `skipped`.
    """
    evaluation, fresh = _begun(run, about)
    failed, path, done = set(), _per_image_path(run, about), 0
    print(heading(evaluation, kept=[name for name in evaluation["protocols"] if name not in sections]), flush=True)
    try:
        with torch.no_grad():
            for done, (name, place) in enumerate(sections.items()):  # noqa: B007
                started = time.monotonic()
                subject.seed(name)
                try:
                    function = getattr(importlib.import_module(place), name) if isinstance(place, str) else place
                    section = function(subject)
                    _check(section)
                except (Unsupported, UserError, ValueError) as reason:
                    section, failed = None, failed | (set() if isinstance(reason, Unsupported) else {name})
                    evaluation["skipped"][name] = str(reason)
                if fresh:
                    path.unlink(missing_ok=True)  # the arrays of an earlier evaluation are of other weights
                    fresh = False
                replace(evaluation, name, section, path)
                evaluation["seconds"][name] = round(time.monotonic() - started, 2)
                runs.write_evaluation(run, evaluation)
                if section:
                    print("\n".join(section_lines(evaluation, name)), flush=True)
    except KeyboardInterrupt:
        rest = ",".join(list(sections)[done:])
        print(f"\ninterrupted; what was measured is kept; measure the rest with sections=[{rest}]")
        raise
    if not evaluation["protocols"] and not failed:  # an empty evaluation would look like a healthy one
        Files(run).evaluation(about["split"], _prior_of(about)).unlink(missing_ok=True)
        return evaluation, failed
    findings = diagnose_evaluation(evaluation["figures"], evaluation["subject"])
    evaluation |= {
        "status": "finished",
        "findings": [finding._asdict() for finding in findings],
        "verdicts": verdicts(evaluation["figures"], findings),
    }
    runs.write_evaluation(run, evaluation)
    print(closing(evaluation))
    return evaluation, failed


def _begun(run: Path, about: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns the evaluation to fill, with sections of an earlier one of the same; and whether there is none."""
    path = _per_image_path(run, about)
    if path.is_file():
        read_arrays(path)
    empty: dict[str, Any] = {"figures": {}, "vectors": {}, "arrays": {}, "protocols": {}, "skipped": {}, "seconds": {}}
    before = runs.read_evaluation(run, about["split"], _prior_of(about))
    fresh = any(before.get(name) != about.get(name) for name in KEPT)
    kept = empty if fresh else {name: before.get(name, value) for name, value in empty.items()}
    return about | kept | {"findings": [], "verdicts": {}}, fresh


def _check(section: Any) -> None:
    """Raises ValueError for what is no section, as a user's own metric may return, or whose metrics are no numbers."""
    if not isinstance(section, Section):
        raise ValueError(f"it must return a Section of vaelab.evaluation.subject, and gives {type(section).__name__}")
    for name, value in section.figures.items():
        try:
            finite = math.isfinite(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} is {value!r:.60}, and no number") from None
        if not finite:
            raise ValueError(f"{name} is {value}")


def replace(evaluation: dict[str, Any], name: str, section: Section | None, path: Path) -> None:
    """Replaces a section of an earlier evaluation by a new one, None if nothing was measured."""
    for kind in ("figures", "vectors"):
        for old in [key for key in evaluation[kind] if key.startswith(f"{name}/")]:
            del evaluation[kind][old]
    gone = evaluation["arrays"].pop(name, [])
    evaluation["protocols"].pop(name, None)
    arrays = {}
    if section:
        evaluation["skipped"].pop(name, None)
        evaluation["figures"] |= {f"{name}/{key}": float(value) for key, value in section.figures.items()}
        evaluation["vectors"] |= {f"{name}/{key}": value.tolist() for key, value in section.vectors.items()}
        evaluation["protocols"][name] = section.protocol
        arrays = {key: values.cpu().numpy() for key, values in section.per_image.items()}
    if arrays:
        evaluation["arrays"][name] = list(arrays)
    if gone or arrays:
        _write_arrays(path, {key: v for key, v in read_arrays(path).items() if key not in gone} | arrays)


def _prior_of(about: dict[str, Any]) -> str | None:
    """The name of the fitted prior that is measured; None for the model's own."""
    return about.get("prior", {}).get("name")


def _per_image_path(run: Path, about: dict[str, Any]) -> Path:
    """Returns the path of the file with a value per image, in the order of the split."""
    return Files(run).per_image(about["split"], _prior_of(about))


def read_arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except NO_ARRAYS as error:
        raise UserError(f"{path} is damaged: delete it, and run vaelab eval again") from error


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


# --- what is printed --------------------------------------------------------------------------


def heading(evaluation: dict[str, Any], kept: list[str]) -> str:
    """Returns the line above an evaluation: what is measured, and which sections of an earlier one stay."""
    point, images = evaluation["checkpoint"], f"{evaluation['images']:,} images of {evaluation['split']}"
    first = f"{evaluation['run']}, {point['name']} checkpoint (epoch {point['epoch']}), {images}"
    first += f", prior={evaluation['prior']['name']} ({evaluation['prior']['words']})" if _prior_of(evaluation) else ""
    return first + (f"; kept from before: {', '.join(kept)}" if kept else "")


def section_lines(evaluation: dict[str, Any], section: str) -> list[str]:
    """Formats the metrics of a section, each with its standard error if it has one."""
    start = f"{section}/"
    values = {name.removeprefix(start): v for name, v in evaluation["figures"].items() if name.startswith(start)}
    lines = ["", f"{section} ({evaluation['seconds'][section]:.1f} s)"]
    for name, value in values.items():
        if (name.endswith("_se") and name.removesuffix("_se") in values) or (
            name == "dimensions" and "active" in values
        ):
            continue  # shown beside the metric that they belong to
        error = f" ± {number(values[f'{name}_se'])}" if f"{name}_se" in values else ""
        of = f" of {values['dimensions']:.0f}" if name == "active" else ""
        shown = f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else number(value)
        lines.append(f"  {name:{WIDTH}} {shown:>11}{error}{of}")
    notes = [note for note in evaluation["protocols"].get(section, "").split("; ") if " left out: " in note]
    return lines + [wrapped(note) for note in notes]


def closing(evaluation: dict[str, Any]) -> str:
    """Formats the end of an evaluation: what was left out, the verdicts and the findings."""
    lines = []
    if evaluation["skipped"]:
        lines += ["", "left out", *(wrapped(f"{name}: {why}") for name, why in evaluation["skipped"].items())]
    if evaluation["verdicts"]:
        lines += ["", "verdicts", *(f"  {name}: {verdict}" for name, verdict in evaluation["verdicts"].items())]
    if evaluation["findings"]:
        lines += ["", "findings"]
        for found in evaluation["findings"]:
            lines += [wrapped(f"{found['code']}: {found['evidence']}"), wrapped(f"remedy: {found['remedy']}", indent=4)]
    return "\n".join([*lines, ""])


def side_by_side(evaluations: dict[str, dict[str, Any]], own: Collection[str] = ()) -> str:
    """Formats a row per evaluation, by name, with the main metrics, those of the user's `own` sections, and errors."""
    found = dict.fromkeys(name for e in evaluations.values() for name in e["figures"])
    metrics = [name for name in MAIN if name in found]
    metrics += [name for name in found if name.partition("/")[0] in own and not name.endswith("_se")]
    columns = [
        [title, *(_cell(e["figures"], name) for e in evaluations.values())] for name, title in titles(metrics).items()
    ]
    return layout(
        [["run", *evaluations]], columns or [[""] * (1 + len(evaluations))], shutil.get_terminal_size((100, 24)).columns
    )


def _cell(metrics: dict[str, float], name: str) -> str:
    error = f" ± {number(metrics[f'{name}_se'])}" if f"{name}_se" in metrics else ""
    return number(metrics[name]) + error if name in metrics else ABSENT
