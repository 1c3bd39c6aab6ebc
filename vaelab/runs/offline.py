"""W&B runs on this disk that have not been uploaded, and the command that uploads them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def unsent(run: Path) -> list[Path]:
    """Lists W&B's folders of a run, logged offline and never synced, oldest first; a resume makes another one."""
    logs = (run / "wandb").glob("offline-run-*/run-*.wandb")
    return sorted(log.parent for log in logs if not log.with_name(f"{log.name}.synced").exists())


def sync_line(runs: Sequence[Path]) -> str:
    """Returns the command that uploads what these runs have not uploaded yet.

    With WANDB_RESUME=allow, `wandb sync` asks the server how far the run is before it sends a folder,
    and appends. Without, a run that was resumed offline loses its first part: its second folder is
    written over it from the first step on.
    """
    return f"WANDB_RESUME=allow wandb sync {' '.join(f'{shlex.quote(str(run))}/wandb' for run in runs)}"


def sync_line_of_sweep(sweep: Path) -> str:
    """Returns the command that uploads what the jobs of a sweep have not uploaded yet."""
    return f"WANDB_RESUME=allow wandb sync {shlex.quote(str(sweep))}/*/wandb"
