"""The lab from Python: what the command line does, as functions. Importing this imports no torch."""

from vaelab.lab.commands import bench, compare, doctor, explain, list_runs, new, plan, prepare, sweep
from vaelab.lab.run import Run, open_run
from vaelab.lab.training import train

__all__ = [
    "Run", "bench", "compare", "doctor", "explain", "list_runs", "new", "open_run", "plan", "prepare", "sweep", "train",
]  # fmt: skip
