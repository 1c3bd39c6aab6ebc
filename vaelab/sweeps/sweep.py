"""Guards a sweep's folder: one sweep at a time works in it, and each of its jobs is done once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict, read_write

from vaelab import runs
from vaelab.core.errors import DivergenceError, UserError
from vaelab.core.own import print_error
from vaelab.runs import Files, SweepFiles, jobs, offline

IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""Path of Hydra's launcher of one job after the other, in this process."""
GRID = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra_plugins.vaelab_grid.sweeper.GridSweeper")
"""Paths of Hydra's sweeper of all combinations, and of ours in its place: it looks at all jobs before they begin."""
VECTORIZED = "hydra_plugins.vaelab_launchers.vectorized_launcher.VectorizedLauncher"
"""Path of the launcher of jobs in step, in this process; it handles Ctrl-C itself."""
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "hydra_plugins.vaelab_launchers")
"""Packages of submitit's launchers, Hydra's and ours in their place: a lost job takes no other along."""
RAY = "hydra_plugins.vaelab_launchers.ray_launcher.RayLauncher"
"""Path of the launcher that handles Ctrl-C itself: its jobs are Ray's."""


class Begun(NamedTuple):
    """A sweep that this process has begun: its folder, whether it wants a report, and the formats of its figures.

    made: folders that were made for the sweep's, from the innermost on.
    """

    folder: Path
    report: bool
    formats: tuple[str, ...]
    made: list[Path]


begun: list[Begun] = []
"""Sweeps of this process that have not been closed. A list of the module: Hydra copies callbacks into its workers."""
_locks: list[Any] = []


class Sweep(Callback):
    """Claims the sweep's folder before the first job, so that no two sweeps work in one at once."""

    def on_multirun_start(self, config: Any, **unused: Any) -> None:
        folder = runs.shown(config.hydra.sweep.dir)
        made = [parent for parent in folder.parents if not parent.exists()]
        try:
            _claim(folder)
        except UserError as error:
            raise Refused(str(error)) from error
        kinds = OmegaConf.select(config, "figures.format", default=())
        formats = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        begun.append(Begun(folder, config.get("report") is True, formats, made))
        launcher, sweeper = config.hydra.launcher, config.hydra.sweeper
        with open_dict(config.hydra), read_write(config.hydra):
            launcher._target_ = launcher._target_.replace(*SUBMITIT)
            sweeper._target_ = sweeper._target_.replace(*GRID)
        if launcher._target_ not in (IN_PROCESS, RAY, VECTORIZED):
            signal.signal(signal.SIGINT, _end_jobs)


class Refused(BaseException):
    """Raised for a sweep that must not begin: Hydra turns what callbacks raise into warnings, but a BaseException."""


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that no sweep can have: a run's own."""
    if runs.is_run(folder):
        raise UserError(f"sweep.dir={folder}: this is the folder of a run: name another for the sweep")


def _claim(folder: Path) -> None:
    """Locks a sweep's folder until `release`, or until this process ends. Raises UserError if that fails."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = SweepFiles(folder).lock.open("a")
    except OSError as error:
        raise UserError(f"sweep.dir={folder}: it cannot be written to ({error.strerror}): name another") from error
    _locks.append(file)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # there is no fcntl on Windows
        pass
    except OSError as error:
        raise UserError(
            f"sweep.dir={folder}: another sweep works in it: wait for it, or name another folder"
        ) from error


def _end_jobs(number: int, frame: Any) -> None:
    """Handles Ctrl-C: launchers would kill their jobs at once. A second one does not wait."""
    from vaelab.training import launch

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


def close(sweep: Begun, code: int) -> int:
    """Prints what became of every job, and writes the sweep's tables and report. Returns 1 if a job is not done.

    code: the sweep's exit code so far. Nothing is written for a refused one (2): its reason has been
    printed, and what an earlier start has left is no answer.
    """
    from vaelab.training.checks import FIRST
    from vaelab.training.summary import sweep_table

    folders = runs.jobs_of(sweep.folder)
    if code == 130 and not folders:
        print("no job had begun: the same command begins them", file=sys.stderr)
    if code == 2 or not folders:
        files = SweepFiles(sweep.folder)
        if {*sweep.folder.glob("*")} <= {files.lock, files.hydra, files.submitit}:
            shutil.rmtree(sweep.folder, ignore_errors=True)
            with suppress(OSError):  # something else lies there by now
                for folder in sweep.made:
                    folder.rmdir()
        return 0
    summaries = {folder.name: jobs.summary_of(folder) for folder in folders}
    print(f"\n{sweep_table(summaries)}")
    unfinished = [folder for folder in folders if jobs.state_of(folder) != "done"]
    for folder in unfinished:
        print(_failure(folder, summaries[folder.name]), file=sys.stderr)
    if len(folders) > 1 and FIRST:
        _answer(sweep)
    if any(offline.unsent(folder) for folder in folders):
        print(f"to send its W&B runs: {offline.sync_line_of_sweep(sweep.folder)}")
    print(f"sweep: {sweep.folder}")
    return int(bool(unfinished))


def _failure(folder: Path, summary: dict[str, Any]) -> str:
    """Returns the last line of a job's error, and where to read all of it; of one that was asked to stop neither."""
    status, error = summary.get("status", "unfinished"), summary.get("error")
    if status == "interrupted" and not error:
        return f"{folder.name} interrupted: the same command goes on with it"
    why = (error or "it was killed, or another process is at it").strip().splitlines()[-1]
    files = Files(folder)
    log = files.output if files.output.is_file() and status not in ("failed", "diverged") else files.log
    return f"{folder.name} {status}: {why}\n  {log}"


def _answer(sweep: Begun) -> None:
    """Prints and writes a sweep's tables and report. A failure of these does not undo the sweep."""
    from vaelab.evaluation.comparison import outcome
    from vaelab.report import build

    folder = sweep.folder
    try:
        files = SweepFiles(folder)
        if tables := outcome.answer(folder):
            print(f"\n{tables}\n\nwritten: {files.table}, {files.content}")
        page = files.report
        if sweep.report:
            build.of_sweep(folder, page, formats=sweep.formats)
            print(f"report: {page}")
        elif page.is_file():
            print(f"{page} is of an earlier start: vaelab report run={folder} makes it anew")
    except Exception as error:
        again = f"vaelab compare {folder} and vaelab report run={folder} try again"
        print(f"warning: its tables or report could not be made ({error}); {again}", file=sys.stderr)


def do(config: dict[str, Any], run: Path, title: str, launcher: Any) -> Path:
    """Does a job of a sweep, unless it is done. Returns its folder; raises nothing that concerns this job alone.

    run: the folder that Hydra has made for it. title: what to call it. launcher: Hydra's config of what runs the jobs.
    """
    from vaelab.training import launch

    how = launcher["_target_"]
    if how == IN_PROCESS:
        print(f"\n{title}")
    try:
        run, state = jobs.place(run, config)
        config["run"]["dir"], config["resume"] = str(run), str(run) if state == "begun" else None
        if state == "done":
            print(f"  {run.name} done already")
            _page_of(run, config)
        elif how == IN_PROCESS:
            if state == "begun":
                print(f"  {run.name} goes on", flush=True)
            launch.attempt(config, run, in_sweep=True)
        else:
            print(f"{title}\n  {run.name} {'goes on' if state == 'begun' else 'begins'}", flush=True)
            if how == VECTORIZED:
                _in_step(config, run)
            else:
                launch.in_child(config, run, threads(launcher))
            print(f"  {run.name} {jobs.summary_of(run).get('status', 'unfinished')}", flush=True)
    except (UserError, DivergenceError) as error:
        print(f"vaelab: {'' if how == IN_PROCESS else f'{run.name}: '}{error}", file=sys.stderr)
    except BrokenPipeError:  # the reader has seen enough
        raise
    except Exception as error:
        print_error(error)
    return run


def _in_step(config: dict[str, Any], run: Path) -> None:
    """Trains in this thread, which is one of several; what it prints goes to output.txt in the run folder."""
    from vaelab.training import launch
    from vaelab.training.vectorized.turns import printing_to

    with Files(run).output.open("a") as output, printing_to(output, run.name):
        launch.attempt(config, run, in_sweep=True)


def _page_of(run: Path, config: dict[str, Any]) -> None:
    """Makes the page of a run that was ended before it had one."""
    from vaelab.report import build

    if config["report"] and not Files(run).report.is_file() and jobs.summary_of(run)["status"] == "finished":
        own = runs.read_config(run)
        trust = all(
            own.get(part) == config[part] for part in ("model", "dataset", "figures")
        )  # the user has just named them
        build.of_folder(run, Files(run).report, trust=trust)
        print(f"  report: {Files(run).report}")


def threads(launcher: dict[str, Any]) -> int | None:
    """Returns the threads of each job of a parallel launcher, so that all jobs fill the cores; None sets none."""
    if launcher["_target_"] == IN_PROCESS or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = os.cpu_count() or 1
    at_once = launcher.get("n_jobs")
    if at_once is not None:
        return max(1, cores // (cores if at_once < 0 else max(1, min(at_once, cores))))
    return launcher.get("cpus_per_task") or launcher.get("cpus") or 1
