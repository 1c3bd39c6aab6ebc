"""Names of the files in the folders of runs and sweeps, and what makes a folder a run's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from vaelab.core.errors import UserError

OUTPUTS = Path("outputs")
"""Folder where runs go unless they are told otherwise."""
FORMAT = 2
"""Version of the run folder: 1 is that of vaelab 0.1, which wrote no version."""
JOB = re.compile(r"\d+-(?!\d)")
"""Pattern of the first characters of a job's folder in a sweep; that of a single run begins with a time."""


class Files:
    """Paths of the files in the folder of a run; none of them has to exist yet.

    folder: that of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "config.yaml"
        self.summary = folder / "summary.json"
        self.metrics = folder / "metrics.csv"
        self.kl_per_dim = folder / "kl_per_dim.csv"
        self.code_counts = folder / "code_counts.csv"
        self.log = folder / "run.log"
        self.output = folder / "output.txt"  # what a job in a process of its own prints
        self.report = folder / "report.html"
        self.checkpoints = folder / "checkpoints"
        self.figures = folder / "figures"
        self.priors = folder / "priors"
        self.export = folder / "export"
        self.hub = folder / "hub"
        self.wandb = folder / "wandb"
        self.mlflow = folder / "mlflow" / "id"

    @property
    def vectors(self) -> dict[str, Path]:
        """Paths of the files with a vector of each epoch, by the vector's name."""
        return {"kl_per_dim": self.kl_per_dim, "code_counts": self.code_counts}

    def checkpoint(self, name: str) -> Path:
        """Path of the `best` or the `last` checkpoint."""
        return self.checkpoints / f"{name}.ckpt"

    @property
    def saved(self) -> list[Path]:
        """Paths of the checkpoints that exist."""
        return sorted(self.checkpoints.glob("*.ckpt"))

    def figure(self, name: str) -> Path:
        """Path of a figure, given its name."""
        return self.figures / f"{name}.png"

    def table(self, name: str) -> Path:
        """Path of rows that the model made, given their name."""
        return self.folder / f"{name}.csv"

    def prior(self, name: str) -> Path:
        """Path of a prior that was fitted to the run."""
        return self.priors / name / "prior.safetensors"

    def unfinished_prior(self, name: str) -> Path:
        """Path of what a fit that was interrupted goes on from."""
        return self.priors / name / "unfinished.pt"

    @property
    def fitted(self) -> list[str]:
        """The names of the priors that were fitted to the run."""
        return sorted(path.parent.name for path in self.priors.glob("*/prior.safetensors"))

    def evaluation(self, split: str, prior: str | None = None) -> Path:
        """Path of the evaluation of the test, val or train images, under the model's own prior or a fitted one."""
        folder = self.folder if prior is None else self.prior(prior).parent
        return folder / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")

    def per_image(self, split: str, prior: str | None = None) -> Path:
        """Path of the values that an evaluation measured of single images, in the order of the split."""
        return self.evaluation(split, prior).with_suffix(".npz")

    @property
    def leading_out(self) -> Path | None:
        """Path of a file or folder of the run that is a link which leads out of its folder; None if there is none."""
        root = self.folder.resolve()
        own = [path for path in vars(self).values() if path != self.folder]
        for path in chain(own, chain.from_iterable(path.rglob("*") for path in own)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
        return None

    @property
    def logs(self) -> tuple[Path, Path]:
        """Paths of the files that a job has in its folder before it has begun."""
        return self.log, self.output

    @property
    def marks(self) -> tuple[Path, ...]:
        """Paths of the files of which every run has at least one."""
        return self.config, self.summary, self.log


class SweepFiles:
    """Paths of the files in the folder of a sweep, beside its jobs' folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = folder / ".lock"
        self.table = folder / "sweep.csv"
        self.content = folder / "sweep.json"
        self.report = folder / "report.html"
        self.figures = folder / "figures"
        self.hydra = folder / "multirun.yaml"
        self.study = folder / "study.db"
        self.submitit = folder / ".submitit"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, whatever state the run is in."""
    files = Files(folder)
    job = bool(JOB.match(folder.name)) and files.output.is_file()
    return job or any(mark.is_file() for mark in files.marks) or files.checkpoints.is_dir()


def runs_below(paths: Iterable[Path]) -> Iterator[Path]:
    """Finds the run folders at or below the paths, each once; no folder in a run is a run."""
    seen: set[str] = set()
    for path in paths:
        for folder, below, _ in os.walk(path):
            if is_run(Path(folder)):
                below.clear()
                if (real := os.path.realpath(folder)) not in seen:
                    seen.add(real)
                    yield Path(folder)
            below[:] = sorted(name for name in below if name[0] != ".")


def number(job: Path) -> int:
    """Returns the number of a job's folder, -1 for a folder that is no job's."""
    text = job.name.partition("-")[0]
    return int(text) if text.isdigit() else -1


def jobs_of(sweep: Path) -> list[Path]:
    """Lists the jobs' folders of a sweep, in the order of their numbers."""
    folders = {path.parent for name in ("config.yaml", "summary.json") for path in sweep.glob(f"*/{name}")}
    return sorted(folders, key=lambda path: (number(path), path.name))


def is_sweep(folder: Path) -> bool:
    """Whether a folder is no run itself, but has jobs' folders in it."""
    return not Files(folder).config.is_file() and bool(jobs_of(folder))


def sweep_of(run: Path) -> Path | None:
    """Returns the folder of the sweep that a run is a job of, or None."""
    place = run.absolute()
    return run.parent if JOB.match(place.name) or SweepFiles(place.parent).hydra.is_file() else None


def find(run: str | Path) -> Path:
    """Finds the folder of a run: a path, or `last` for the newest under ./outputs that has a checkpoint.

    Raises UserError if the folder is no run.
    """
    if str(run) == "last":
        with_checkpoint = [
            folder for folder in runs_below([OUTPUTS]) if Files(folder).config.is_file() and Files(folder).saved
        ]
        if not with_checkpoint:
            raise UserError("last: there is no run with a checkpoint under ./outputs yet; vaelab train makes one")
        return max(with_checkpoint, key=lambda folder: Files(folder).config.stat().st_mtime_ns)
    path = Path(run)
    if not Files(path).config.is_file():
        if inside := sorted(path.glob("*/config.yaml")):
            raise UserError(f"run={path} is a folder of {len(inside)} runs: give one of them, run={inside[0].parent}")
        why = "it has no config.yaml" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path} is no run: {why}; give the folder that vaelab train printed")
    return path


def shown(path: str) -> Path:
    """Returns a path as the user would write it: relative to the current folder if it lies there."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
