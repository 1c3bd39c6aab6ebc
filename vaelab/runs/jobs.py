"""A job of a sweep: what it trains, which folder it has, and how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from greenlet import getcurrent
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from vaelab.core.errors import UserError
from vaelab.core.renames import upgrade_run
from vaelab.runs.answers import asked
from vaelab.runs.config import read_config_if_any
from vaelab.runs.layout import Files, jobs_of
from vaelab.runs.layout import number as number_of
from vaelab.runs.records import read_summary

ASIDE = ("run", "sweep", "resume", "logger", "report", "figures", "checkpoint")
"""Sections of a config on which the trained model does not depend."""
MAY_MOVE = ("root", "download", "storage", "num_workers")
"""Keys of a data set that may differ on resume: where it lies and how it is read."""
ASIDE_WITHIN = {
    "dataset": ("download", "storage", "num_workers"),
    "trainer": ("default_root_dir", "enable_progress_bar"),
    "callbacks": ("pictures",),
}
"""Keys within sections on which it does not depend either."""
LOOK_AGAIN = 0.5
"""Seconds after which a job that waits for its folder looks at it again."""


def compose(loader: Any, config: Any, number: int, overrides: Sequence[str]) -> Any:
    """Composes the config of a job, which knows its number and its run folder.

    loader: Hydra's config loader. config: that of the sweep. overrides: those of this job.
    """
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job), read_write(job.hydra.runtime):
        job.hydra.job.id = f"{job.hydra.job.name}_{number}"
        job.hydra.job.num = number
        HydraConfig.instance().set_config(job)
        job.hydra.runtime.output_dir = str(Path(job.hydra.sweep.dir, job.hydra.sweep.subdir).absolute())
    return job


def identity(config: dict[str, Any]) -> str:
    """Identifies what a job trains: a hash of its resolved config without paths and without what only looks on.

    Data that are downloaded are the same wherever they lie; a folder of images is the data.
    """
    what = {key: value for key, value in upgrade_run(asked(config)).items() if key not in ASIDE}
    for section, names in ASIDE_WITHIN.items():
        if isinstance(what.get(section), dict):
            what[section] = {key: value for key, value in what[section].items() if key not in names}
    data = what.get("dataset")
    if isinstance(data, dict) and "root" in data:
        data["root"] = (
            None if "download" in config["dataset"] else os.path.realpath(Path(str(data["root"])).expanduser())
        )
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Place(NamedTuple):
    """The folder where a job belongs, and what an earlier try has left in it."""

    folder: Path
    state: Literal["done", "begun", "new"]


def place(run: Path, config: dict[str, Any]) -> Place:
    """Finds the folder of an earlier try of the same job, else takes `run`, or one beside it if another job has that.

    A job that failed begins anew in its folder; one that was interrupted goes on, as does one whose
    summary.json is damaged, which is put aside. run: the folder that Hydra has made for the job,
    which is removed if it is not used.
    """
    folder = folder_of(run, config)
    wait_for(folder)
    if folder != run:
        with suppress(OSError):
            run.rmdir()
    state = state_of(folder)
    if state == "new":
        for path in folder.iterdir():
            if path != Files(folder).log:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif state == "begun" and "damaged" in summary_of(folder):
        Files(folder).summary.replace(folder / "summary.json.damaged")
        print(f"  {folder.name}: summary.json is damaged, and put aside as summary.json.damaged")
    return Place(folder, state)


def folder_of(run: Path, config: dict[str, Any]) -> Path:
    """Finds the folder of a job: one that it has, or `run`, or, if that is another job's, a new one beside it."""
    wanted = identity(config)
    if known := run if _identity(run) == wanted else earlier(run.parent).get(wanted):
        return known
    run.mkdir(parents=True, exist_ok=True)
    if not any(path not in Files(run).logs for path in run.iterdir()):
        return run
    rest, number = run.name.partition("-")[2], max(map(number_of, run.parent.iterdir()))
    while True:
        number += 1
        with suppress(FileExistsError):
            run.with_name(f"{number}-{rest}").mkdir()
            return run.with_name(f"{number}-{rest}")


def wait_for(run: Path) -> None:
    """Waits while `run` is trained: by a process about to end, one that a batch system still runs, or the same job.

    A sweep has a job twice where it names a value twice. Of jobs in turns in one process the others go on meanwhile.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return
    with suppress(OSError), Files(run).log.open("a") as file:
        said = False
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if not said:
                print(f"  {run.name} is being trained already: waiting for it", flush=True)
                said = True
            if (leader := getcurrent().parent) is None:
                time.sleep(LOOK_AGAIN)
            else:
                leader.switch()


def state_of(folder: Path) -> Literal["done", "begun", "new"]:
    """Tells how far a job has come, by what its folder holds."""
    status = summary_of(folder).get("status")
    if status in ("finished", "pruned"):
        return "done"
    whole = zipfile.is_zipfile(Files(folder).checkpoint("last"))  # the file exists and is complete
    return "begun" if whole and status not in ("failed", "diverged") else "new"


def summary_of(folder: Path) -> dict[str, Any]:
    """Reads the summary of a job; a damaged one gives its error instead."""
    try:
        return read_summary(folder)
    except UserError as error:
        return {"error": str(error), "damaged": True}


def earlier(sweep: Path) -> dict[str, Path]:
    """Maps what the jobs of a sweep's folder train, as `identity` has it, to their folders."""
    folders: dict[str, Path] = {}
    for folder in jobs_of(sweep):
        if key := _identity(folder):
            folders.setdefault(key, folder)
    return folders


def _identity(folder: Path) -> str | None:
    """Identity of the job that a folder was made for: from its config, or from its summary if it never began."""
    with suppress(UserError, OSError):
        if config := read_config_if_any(folder):
            return identity(config)
        return summary_of(folder).get("identity")
    return None
