"""Where the lab's messages go while a run trains: to the terminal and to its run.log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from vaelab.runs import Files
from vaelab.runs.quiet import Terminal
from vaelab.training.vectorized import turns

log = logging.getLogger("vaelab")
RUN, JOB = "vaelab run", "vaelab job "
"""Names of the handlers of a run that is alone in its process, and beginnings of those of jobs in turns."""


def log_to(run: Path) -> None:
    """Sends the lab's messages to the terminal and to run.log, until the next run; from the first process only.

    Of jobs in turns in one process each has its own.
    """
    job = turns.current()
    name = RUN if job is None else f"{JOB}{job.number}"

    def ours(record: logging.LogRecord) -> bool:
        return turns.current() in (None, job)

    _end(lambda given: given in (RUN, name))
    log.propagate = False
    log.setLevel(logging.INFO if rank_zero_only.rank == 0 else logging.ERROR)
    handlers: list[logging.Handler] = [Terminal()]
    if rank_zero_only.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Files(run).log)
        file.handleError = lambda record: None  # a full disk ends the run where it matters, and not its log
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.insert(0, file)
    for handler in handlers:
        handler.name = name
        handler.addFilter(ours)
        log.addHandler(handler)


def leave_jobs() -> None:
    """Ends what `log_to` has begun for jobs in turns: they are over."""
    _end(lambda name: name.startswith(JOB))


def _end(ours: Callable[[str], bool]) -> None:
    """Ends handlers of ours, by their names; those that a user has added are left alone."""
    for handler in [handler for handler in log.handlers if ours(handler.name or "")]:
        log.removeHandler(handler)
        handler.close()
