"""A sweep's folder: one sweep at a time works in it, and each of its jobs is done once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import open_dict, read_write

from vaelab import offline, runs
from vaelab.errors import DivergenceError, UserError

LOGS = ("run.log", "output.txt")
"""What a job has in its folder before it has begun."""
ASIDE = ("run", "sweep", "resume", "logger", "report")
"""Parts of a config that what is trained does not depend on."""
MAY_MOVE = ("root", "download", "storage", "num_workers")
"""What of a data set may be another on resume: where it lies and how it is read."""
IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""Hydra's launcher of one job after the other, in this process."""
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "hydra_plugins.vaelab_launchers")
"""Another package's launchers, and ours in their place: a job that is lost takes no other along."""
RAY = "hydra_plugins.vaelab_launchers.ray_launcher.RayLauncher"
"""The one that sees to Ctrl-C itself: its jobs are Ray's."""


class Begun(NamedTuple):
    """A sweep of this process: its folder, and whether it wants a report."""

    folder: Path
    report: bool


begun: list[Begun] = []
"""Sweeps of this process that have not been closed. A list of the module: Hydra copies callbacks into its workers."""
_locks: list[Any] = []


class Sweep(Callback):
    """Claims the sweep's folder before the first job, so that no two sweeps work in one at once."""

    def on_multirun_start(self, config: Any, **unused: Any) -> None:
        folder = runs.shown(config.hydra.sweep.dir)
        try:
            _claim(folder)
        except UserError as error:
            raise Refused(str(error)) from error
        begun.append(Begun(folder, config.get("report") is True))
        launcher = config.hydra.launcher
        with open_dict(launcher), read_write(launcher):
            launcher._target_ = launcher._target_.replace(*SUBMITIT)
        if launcher._target_ not in (IN_PROCESS, RAY):
            signal.signal(signal.SIGINT, _end_jobs)


class Refused(BaseException):
    """A sweep that must not begin. Hydra makes warnings of all that callbacks raise, but for a BaseException."""


def _claim(folder: Path) -> None:
    """Locks the folder until `release`, or until this process ends. Raises UserError if it cannot be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"sweep.dir={folder}: it cannot be written to ({error.strerror}): name another") from error
    _locks.append(file)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except OSError as error:
        raise UserError(
            f"sweep.dir={folder}: another sweep works in it: wait for it, or name another folder"
        ) from error


def _end_jobs(number: int, frame: Any) -> None:
    """Ctrl-C: launchers would kill their jobs at once. A second one does not wait."""
    from vaelab import launch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("\ninterrupted: the jobs write their last checkpoints", file=sys.stderr)
    launch.end_jobs()
    raise KeyboardInterrupt


def release() -> list[Begun]:
    """Forgets the sweeps of this process and returns them."""
    if signal.getsignal(signal.SIGINT) is _end_jobs:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for file in _locks:
        file.close()
    ended = begun.copy()
    _locks.clear()
    begun.clear()
    return ended


def close(sweep: Begun) -> int:
    """Prints what became of every job, and writes the sweep's answer and report. Returns 1 if a job is not done."""
    from vaelab.checks import FIRST
    from vaelab.summary import sweep_table

    jobs = folders(sweep.folder)
    if not jobs:  # it was refused
        if sweep.folder.is_dir() and {path.name for path in sweep.folder.iterdir()} <= {".lock", "multirun.yaml"}:
            shutil.rmtree(sweep.folder)
        return 0
    summaries = {folder.name: _summary(folder) for folder in jobs}
    print(f"\n{sweep_table(summaries)}")
    unfinished = [folder for folder in jobs if state_of(folder) != "done"]
    for folder in unfinished:
        print(_failure(folder, summaries[folder.name]), file=sys.stderr)
    if len(jobs) > 1 and FIRST:
        _answer(sweep)
    if any(offline.unsent(folder) for folder in jobs):
        print(f"to send its W&B runs: {offline.sync_line_of_sweep(sweep.folder)}")
    print(f"sweep: {sweep.folder}")
    return int(bool(unfinished))


def _failure(folder: Path, summary: dict[str, Any]) -> str:
    """The last line of a job's error, and where to read all of it."""
    status = summary.get("status", "unfinished")
    why = (
        "the same command goes on with it" if status == "interrupted" else "it was killed, or another process is at it"
    )
    error = (summary.get("error") or why).strip().splitlines()[-1]
    log = folder / ("output.txt" if (folder / "output.txt").is_file() else "run.log")
    return f"{folder.name} {status}: {error}\n  {log}"


def _answer(sweep: Begun) -> None:
    """Prints and writes what a sweep has shown. What cannot be made of it does not undo it."""
    from vaelab import compare, report

    folder = sweep.folder
    try:
        if tables := compare.answer(folder):
            print(f"\n{tables}\n\nwritten: {folder / 'sweep.csv'}, {folder / 'sweep.json'}")
        if sweep.report:
            report.of_sweep(folder, folder / "report.html")
            print(f"report: {folder / 'report.html'}")
    except Exception as error:
        again = f"vaelab compare {folder} and vaelab report run={folder} try again"
        print(f"warning: its tables or report could not be made ({error}); {again}", file=sys.stderr)


# --- jobs -------------------------------------------------------------------------------------


def compose(loader: Any, config: Any, number: int, overrides: Sequence[str]) -> Any:
    """The config of a job, which knows its number and its run folder.

    loader: Hydra's. config: of the sweep. overrides: what is the job's own.
    """
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job), read_write(job.hydra.runtime):
        job.hydra.job.id = f"{job.hydra.job.name}_{number}"
        job.hydra.job.num = number
        HydraConfig.instance().set_config(job)
        job.hydra.runtime.output_dir = str(Path(job.hydra.sweep.dir, job.hydra.sweep.subdir).absolute())
    return job


def identity(config: dict[str, Any]) -> str:
    """What a job trains, as a hash of its resolved config without paths and without what only looks on."""
    what = {key: value for key, value in config.items() if key not in ASIDE}
    what["dataset"] = {key: value for key, value in (what.get("dataset") or {}).items() if key not in MAY_MOVE}
    for section, names in {"trainer": ("default_root_dir", "enable_progress_bar"), "callbacks": ("pictures",)}.items():
        what[section] = {key: value for key, value in (what.get(section) or {}).items() if key not in names}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def do(config: dict[str, Any], run: Path, title: str, launcher: Any) -> Path:
    """Does a job of a sweep, unless it is done. Returns its folder; raises nothing that concerns this job alone.

    run: the folder that Hydra has made for it. title: what to call it. launcher: Hydra's config of what runs the jobs.
    """
    from vaelab import launch

    apart = launcher["_target_"] != IN_PROCESS
    if not apart:
        print(f"\n{title}")
    try:
        run, state = place(run, config)
        config["run"]["dir"], config["resume"] = str(run), str(run) if state == "begun" else None
        if state == "done":
            print(f"  {run.name} done already")
        elif apart:
            print(f"{title}\n  {run.name} {'goes on' if state == 'begun' else 'begins'}", flush=True)
            launch.in_child(config, run, threads(launcher))
            print(f"  {run.name} {_summary(run).get('status', 'unfinished')}", flush=True)
        else:
            launch.attempt(config, run, in_sweep=True)
    except (UserError, DivergenceError) as error:
        print(f"vaelab: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return run


class Place(NamedTuple):
    """Where a job belongs, and what an earlier try has left there."""

    folder: Path
    state: Literal["done", "begun", "new"]


def place(run: Path, config: dict[str, Any]) -> Place:
    """The folder that an earlier try of the same job has, or `run`, or, if another job has that, one beside it.

    A job that failed begins anew in its folder; one that was interrupted goes on. run: the folder that
    Hydra has made for the job, which is removed if it is not used.
    """
    found = folder_of(run, config)
    wait_for(found)
    if found != run:
        with suppress(OSError):
            run.rmdir()
    state = state_of(found)
    if state == "new":
        for path in found.iterdir():
            if path.name != "run.log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Place(found, state)


def folder_of(run: Path, config: dict[str, Any]) -> Path:
    """The folder of a job: one that it has, or `run`, or, if that is another job's, a new one beside it."""
    own = identity(config)
    if found := run if _identity(run) == own else earlier(run.parent).get(own):
        return found
    run.mkdir(parents=True, exist_ok=True)
    if not any(path.name not in LOGS for path in run.iterdir()):
        return run
    rest, number = run.name.partition("-")[2], max(map(_number, run.parent.iterdir()))
    while True:
        number += 1
        with suppress(FileExistsError):
            run.with_name(f"{number}-{rest}").mkdir()
            return run.with_name(f"{number}-{rest}")


def wait_for(run: Path) -> None:
    """Waits while another process trains there: one that is about to end, or that a batch system has still running."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with suppress(OSError), (run / "run.log").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  {run.name} is being trained by another process: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)


def state_of(folder: Path) -> Literal["done", "begun", "new"]:
    """How far a job is, by what its folder holds."""
    status = _summary(folder).get("status")
    if status in ("finished", "pruned"):
        return "done"
    whole = zipfile.is_zipfile(folder / "checkpoints" / "last.ckpt")  # it is there, and has an end
    return "begun" if whole and status not in ("failed", "diverged") else "new"


def _summary(folder: Path) -> dict[str, Any]:
    """What a job has noted of itself; a damaged file is as none."""
    try:
        return runs.read_summary(folder)
    except UserError as error:
        return {"error": str(error)}


def folders(sweep: Path) -> list[Path]:
    """The jobs' folders, in the order of their numbers."""
    found = {path.parent for name in ("config.yaml", "summary.json") for path in sweep.glob(f"*/{name}")}
    return sorted(found, key=lambda path: (_number(path), path.name))


def earlier(sweep: Path) -> dict[str, Path]:
    """The folders of the jobs that a sweep's folder has, by what they train."""
    found: dict[str, Path] = {}
    for folder in folders(sweep):
        if own := _identity(folder):
            found.setdefault(own, folder)
    return found


def _number(folder: Path) -> int:
    """-1 of a folder that is no job's."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdigit() else -1


def _identity(folder: Path) -> str | None:
    """Of the job that a folder was made for: by its config, or as its summary has noted of one that never began."""
    with suppress(UserError, OSError):
        if (folder / "config.yaml").is_file():
            return identity(runs.read_config(folder))
        return _summary(folder).get("identity")
    return None


def threads(launcher: dict[str, Any]) -> int | None:
    """Threads for each job of a parallel launcher, so that all of them fill the cores; None to leave it as it is."""
    if launcher["_target_"] == IN_PROCESS or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = os.cpu_count() or 1
    jobs = launcher.get("n_jobs")
    if jobs is not None:
        return max(1, cores // (cores if jobs < 0 else max(1, min(jobs, cores))))
    return launcher.get("cpus_per_task") or launcher.get("cpus") or 1
