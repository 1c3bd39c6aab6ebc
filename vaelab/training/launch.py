"""Launches one training: alone in its folder, with its end noted there, in this process or in one of its own."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, NoReturn

from vaelab import runs
from vaelab.core.errors import DivergenceError, MachineError, Stopped, UserError
from vaelab.core.files import clear_partial
from vaelab.core.own import print_error
from vaelab.runs import Files, jobs
from vaelab.training.checks import FIRST, check_run


def attempt(config: dict[str, Any], run: Path, in_sweep: bool = False) -> None:
    """Trains, and writes an error into the run folder before it raises it.

    Nothing is written for a refused run: it has not begun. A refused job of a sweep is a failed one.
    """
    used = Files(run).config.exists()
    if link := Files(run).leading_out:
        raise UserError(f"{link} is a link that leads out of the run's folder: training would write there: remove it")
    try:
        with _claimed(run):
            if FIRST:
                clear_partial(run)
            check_run(config, run)
            _train(config, run)
    except Exception as error:
        began = not used and Files(run).config.exists()  # a file of its data broke during training
        if (in_sweep and not used) or began or not isinstance(error, UserError):
            record(run, "diverged" if isinstance(error, DivergenceError) else "failed", error, config)
        if fault := _fault(error, run):
            raise MachineError(fault) from error
        raise


def _fault(error: Exception, run: Path) -> str:
    """Words an error for which the machine is to blame, the traceback of which is in run.log; empty for any other."""
    again = f"\nthen continue with: vaelab train {shlex.quote(f'resume={run}')}" if Files(run).saved else ""
    if "out of memory" in str(error) or "allocate memory" in str(error):  # torch has several classes for it
        return f"the memory is too small: lower dataset.batch_size, or the sizes of the network{again}"
    if not isinstance(error, OSError) or error.strerror is None:
        return ""
    if not run.is_dir():
        return f"{run} was removed while it was being trained"
    remedy = "free some space" if error.errno in (ENOSPC, EDQUOT) else "mend that"
    return f"{error.filename or run}: {error.strerror}: {remedy}{again}"


def discard_unused(run: Path) -> None:
    """Removes a run's folder in which nothing was trained, or of a folder of other things an empty log alone.

    Nothing is removed where another process is about to train.
    """
    log = Files(run).log
    if run.is_dir() and ({*run.iterdir()} <= {log} or (log.is_file() and not log.stat().st_size)):
        with suppress(UserError, OSError), _claimed(run, lock=True):
            log.unlink(missing_ok=True)
            run.rmdir()


def in_child(config: dict[str, Any], run: Path, threads: int | None) -> None:
    """Trains in a process of its own, which may be killed without harm to other jobs.

    What it prints goes to output.txt in the run folder. It has a session of its own, so that signals
    for a terminal's or a batch system's processes end it in one way only: this process, when it is
    asked to end, has the child write its last checkpoint, and waits for it. threads: of the child,
    None for as many as it takes.
    """
    die_with_parent()
    # a job is the only one on its machine, whatever started it: Lightning must not look for SLURM's other tasks
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "vaelab", "_job", str(run)]
    with Files(run).output.open("ab") as output, _term() as asked:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(json.dumps({"parent": os.getpid(), "config": config}).encode())
            ended = False
            while child.poll() is None:
                if asked and not ended:
                    child.terminate()
                    ended = True
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)  # a wait without end cannot be interrupted from another thread, as Ray does
        except BaseException:  # raised by Ctrl-C, or by submitit at the time limit
            child.terminate()
            child.wait()
            raise
    if child.returncode < 0:
        killed = f"killed by {signal.Signals(-child.returncode).name}"
        record(run, "interrupted", RuntimeError(killed), config)


@contextmanager
def _term() -> Iterator[list[int]]:
    """Records SIGTERM in a list, and passes it on to the former handler afterwards."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, former)
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)


def child(run: str) -> int:
    """Runs the process of a job: trains the config on standard input."""
    die_with_parent()
    given = json.load(sys.stdin)
    if os.getppid() != given["parent"]:
        return 1  # the parent has ended already
    try:
        attempt(given["config"], Path(run), in_sweep=True)
    except Exception as error:
        print_error(error)
        return 1
    return 0


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Has this process end, its last checkpoint written, when the one that started it does (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)  # PR_SET_PDEATHSIG


def end_jobs() -> None:
    """Has the launcher's processes below this one end, and their jobs with their last checkpoints written."""
    import psutil

    sessions, others = [], []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) != os.getsid(0):
                sessions.append(process)  # a job: its launcher's process ends it
            elif "resource_tracker" not in " ".join(process.cmdline()):
                process.terminate()
                others.append(process)
    psutil.wait_procs(sessions, timeout=60)
    for process in others:  # a process of submitit that has not begun its job ignores SIGTERM
        with suppress(psutil.Error):
            process.kill()


def record(run: Path, status: str, error: BaseException | None, config: dict[str, Any] | None) -> None:
    """Writes how a run ended into its summary.json and run.log; the errors of further processes into run.log alone."""
    text = "".join(traceback.format_exception(error)) if error else status
    ended = {"status": status, "error": str(error) if error else None, "identity": config and jobs.identity(config)}
    with suppress(OSError):  # the disk may be full, or the folder gone: the error itself says so
        if FIRST or error:
            with Files(run).log.open("a") as file:
                file.write(f"{text}\n")
        if FIRST:
            runs.write_summary(run, runs.read_summary(run) | ended)


def worker(run: str) -> int:
    """Runs a further process of a distributed run, which reads what to do from the run folder."""
    from vaelab.training.fit import fit

    path = Path(run)
    die_with_parent(signal.SIGKILL)  # otherwise it would wait for the first process for ever
    try:
        fit(runs.read_config(path), path)
    except (UserError, DivergenceError):  # the first process reports it
        return 1
    except SystemExit:  # all were asked to stop; Lightning kills them all if one ends with an error
        return 0
    _leave_process_group({})
    return 0


def end(code: int) -> NoReturn:
    """Ends a further process at once: where threads of torch are in the way of an orderly end it would abort now and
    then, for which Lightning kills the first process, though all is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@contextmanager
def _claimed(run: Path, lock: bool = FIRST) -> Iterator[None]:
    """Keeps any other process from training into the run folder; a lock that ends with this process."""
    try:
        import fcntl
    except ImportError:  # there is no fcntl on Windows
        yield
        return
    try:
        file = Files(run).log.open("a")
    except OSError as error:
        raise UserError(f"cannot write to {run} ({error.strerror}): set run.dir to another folder") from error
    with file:
        try:
            if lock:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{run} is being trained by another process: wait for it, or choose another run") from error
        yield


def _train(config: dict[str, Any], run: Path) -> None:
    """Trains in this process, and puts back what training changes about it."""
    from vaelab.training.fit import fit
    from vaelab.training.loggers import finish_wandb

    sys_argv, sys.argv = sys.argv, [sys.argv[0], "_worker", str(run)]  # Lightning starts further processes with these
    environment = {name: os.environ.get(name) for name in (*LAUNCH_VARIABLES, "PYTORCH_NVML_BASED_CUDA_CHECK")}
    try:
        fit(config, run)
    except (KeyboardInterrupt, SystemExit) as stop:  # after Ctrl-C, Lightning exits with 1
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        if Files(run).config.exists():
            with _deaf():  # whoever ends a sweep's jobs may ask twice
                record(run, "interrupted", None, config)
        if FIRST:
            again = f"continue with: vaelab train {shlex.quote(f'resume={run}')}"
            print(
                f"interrupted; {again if Files(run).saved else 'nothing was saved yet: the same command begins anew'}"
            )
        if FIRST and signal.Signals(number).name == "SIGUSR1":
            _requeue()
        if number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Stopped(number) from None
    finally:
        sys.argv = sys_argv
        _leave_process_group(environment)
        finish_wandb(run)  # otherwise a sweep's next job would log into it


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignores SIGTERM and SIGHUP."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    own = threading.current_thread() is threading.main_thread()
    former = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in names if own}
    try:
        yield
    finally:
        for name, handler in former.items():
            signal.signal(getattr(signal, name), handler)


def _requeue() -> None:
    """Has SLURM start this job anew, which its warning signal asks for; `scripts/slurm/train.sbatch` then resumes."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        print(f"SLURM will start job {job} anew")
    except (OSError, subprocess.SubprocessError) as error:
        print(f"vaelab: SLURM does not start job {job} anew ({error}): submit it again", file=sys.stderr)


def _leave_process_group(environment: dict[str, str | None]) -> None:
    """Undoes what a distributed run leaves behind, so that a sweep's next job starts afresh."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
