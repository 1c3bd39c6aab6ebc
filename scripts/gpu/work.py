"""What the stages of check.py share: where they write, how long they may take, processes that end in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
VAELAB = [sys.executable, "-m", "vaelab"]
SAID = 3000
"""Characters of a failed command's output that are kept."""


class Done(NamedTuple):
    """A command that has ended. code: its exit code, None if its time was up. said: what it printed."""

    code: int | None
    seconds: float
    said: str

    def brief(self) -> dict[str, Any]:
        """Returns what stands in the results: the end of the output only if it failed."""
        return {"code": self.code, "seconds": self.seconds} | ({"said": self.said[-SAID:]} if self.code != 0 else {})


class Started(NamedTuple):
    """A command that runs. printed: the file of its output. started: when, on the monotonic clock."""

    child: subprocess.Popen[bytes]
    printed: Path
    started: float


@dataclass
class Work:
    """One run of the checks. until: when the stage of the moment has to end. found: its results, saved as they come."""

    out: Path
    cpu: bool
    threads: int
    jobs: int
    launcher: str
    variants: list[str]
    options: list[str]
    until: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def accelerator(self) -> str:
        return "cpu" if self.cpu else "gpu"

    def left(self) -> float:
        """Returns the seconds that the stage has left."""
        return self.until - time.monotonic()

    def keep(self, name: str, value: Any) -> None:
        """Adds a result of the stage to the file."""
        self.found[name] = value
        self.save()

    def save(self) -> None:
        """Writes results.json, whole or not at all."""
        part = self.out / "results.json.part"
        part.write_text(json.dumps(self.report, indent=1) + "\n")
        part.replace(self.out / "results.json")

    def run(self, command: list[str], folder: Path | None = None, threads: int | None = None) -> Done:
        """Runs a command until it ends or the stage's time is up."""
        return self.finish(self.start(command, folder, threads))

    def start(self, command: list[str], folder: Path | None = None, threads: int | None = None) -> Started:
        """Starts a command in a process group of its own; what it prints goes to a file, which cannot fill up."""
        paths = [str(ROOT), str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        added = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads or self.threads)}
        printed = Path(tempfile.mkstemp(suffix=".log", dir=self.out)[1])
        with printed.open("w") as file:
            child = subprocess.Popen(
                command,
                cwd=folder or self.out,
                env=os.environ | added,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(child, printed, time.monotonic())

    def finish(self, command: Started) -> Done:
        """Waits for a command, or ends it and all that it has started when the stage's time is up."""
        child, printed, started = command
        try:
            code, note = child.wait(max(0.1, self.left())), ""
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            code, note = None, "\nout of time"
        said = printed.read_text(errors="replace") + note
        printed.unlink()
        return Done(code, round(time.monotonic() - started, 1), said)
