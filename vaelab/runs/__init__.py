"""Run folders: their layout, what is in them, and the models that they hold. Importing this imports no torch."""

from vaelab.runs.config import read_config, read_config_if_any, write_config
from vaelab.runs.layout import FORMAT, Files, SweepFiles, find, is_run, is_sweep, jobs_of, runs_below, shown, sweep_of
from vaelab.runs.model import load
from vaelab.runs.records import (
    RESTORE,
    checkpoint_name,
    checkpoint_path,
    read_checkpoint,
    read_evaluation,
    read_metrics,
    read_summary,
    read_vectors,
    write_evaluation,
    write_summary,
)

__all__ = [
    "FORMAT",
    "RESTORE",
    "Files",
    "SweepFiles",
    "checkpoint_name",
    "checkpoint_path",
    "find",
    "is_run",
    "is_sweep",
    "jobs_of",
    "load",
    "read_checkpoint",
    "read_config",
    "read_config_if_any",
    "read_evaluation",
    "read_metrics",
    "read_summary",
    "read_vectors",
    "runs_below",
    "shown",
    "sweep_of",
    "write_config",
    "write_evaluation",
    "write_summary",
]
