"""A run folder: write it, find it, rebuild its model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vaelab.core.errors import UserError
from vaelab.core.files import damaged, read_json, write_text

if TYPE_CHECKING:
    from vaelab.models import Model

OUTPUTS = Path("outputs")
RESTORE = "restore it, or train again"


def find(run: str | Path) -> Path:
    """The folder of a run: a path, or `last` for the newest under ./outputs that has a checkpoint.

    Raises UserError if there is none.
    """
    if str(run) == "last":
        configs = [path for path in OUTPUTS.glob("**/config.yaml") if any(path.parent.glob("checkpoints/*.ckpt"))]
        if not configs:
            raise UserError("last: there is no run with a checkpoint under ./outputs yet; vaelab train makes one")
        return max(configs, key=lambda path: path.stat().st_mtime_ns).parent
    path = Path(run)
    if not (path / "config.yaml").is_file():
        if inside := sorted(path.glob("*/config.yaml")):
            raise UserError(f"run={path} is a folder of {len(inside)} runs: give one of them, run={inside[0].parent}")
        why = "it has no config.yaml" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path} is no run: {why}; give the folder that vaelab train printed")
    return path


def shown(path: str) -> Path:
    """A path as the user would write it: relative to the current folder if it lies there."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config of a run, as plain containers."""
    import yaml

    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    except yaml.YAMLError as error:
        raise UserError(f"{run / 'config.yaml'} cannot be read: it is no YAML") from error
    if not isinstance(config, dict) or not {"run", "model", "dataset"} <= config.keys():
        raise UserError(f"{run} is no run of vaelab: its config.yaml is another program's")
    return config


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml."""
    write_text(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    write_text(run / "summary.json", json.dumps(summary, indent=2) + "\n")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run; empty if it has none yet."""
    return read_json(run / "summary.json", RESTORE)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv with their filled cells; none if there is no such file. Raises UserError if it is damaged."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(path, str(error), RESTORE) from error
    names, rows = lines[0] if lines else [], []
    if "step" not in names:
        raise damaged(path, "it has no column 'step'", RESTORE)
    for number, cells in enumerate(lines[1:], 2):
        try:
            rows.append({name: float(cell) for name, cell in zip(names, cells, strict=True) if cell})
            rows[-1]["step"]
        except (ValueError, KeyError) as error:
            raise damaged(path, f"line {number} is cut short or no row of numbers", RESTORE) from error
    return rows


def evaluation_path(run: Path, split: str) -> Path:
    """Where the evaluation of a split is: evaluation.json for test, evaluation-val.json and so on for others."""
    return run / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")


def write_evaluation(run: Path, evaluation: dict[str, Any]) -> None:
    """Writes the evaluation of a split."""
    write_text(evaluation_path(run, evaluation["split"]), json.dumps(evaluation, indent=2) + "\n")


def read_evaluation(run: Path, split: str) -> dict[str, Any]:
    """The evaluation of a split; empty if there is none. Raises UserError if the file is damaged."""
    return read_json(evaluation_path(run, split), "delete it, and run vaelab eval again")


def checkpoint_path(run: Path, name: str) -> Path:
    """checkpoints/`name`.ckpt of a run. Raises UserError if it is missing."""
    path = run / "checkpoints" / f"{name}.ckpt"
    if not path.is_file():
        others = [other.stem for other in path.parent.glob("*.ckpt")]
        remedy = f"there is {others[0]}.ckpt (checkpoint={others[0]})" if others else "the run has none: train again"
        raise UserError(f"{path} does not exist: {remedy}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain data, on the CPU; nothing in it is executed.

    Raises UserError if the file is damaged or holds anything else.
    """
    import pickle
    import zipfile

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or holds more than tensors and plain data") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: use the other checkpoint, or train again") from error


def load(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> Model:
    """The trained model of a run, in eval mode.

    run: a run folder, `last`, or a folder that vaelab export wrote, which holds one checkpoint's weights.
    checkpoint: `best` or `last`. device: where to put it.
    Raises UserError if the folder is no run or the checkpoint is missing or damaged.
    """
    from vaelab.core.config import build, check
    from vaelab.runs import exported

    if exported.holds_export(run):
        return exported.load(run, device)
    folder = find(run)
    config = read_config(folder)
    saved = read_checkpoint(checkpoint_path(folder, checkpoint))
    check(config["model"], "model")
    model = build(config["model"], shape=tuple(saved["shape"]), num_classes=saved["num_classes"])
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{folder}: checkpoints/{checkpoint}.ckpt is of another model than config.yaml says") from error
    return model.to(device).eval()
