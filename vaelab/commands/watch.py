"""`vaelab watch` shows a run or a sweep that is training, live in the terminal, from its files alone."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.core.metrics import in_order, metric
from vaelab.core.terminal import BAR, bar, cut, duration, plain, spark
from vaelab.core.types import PositiveFloat
from vaelab.core.words import number
from vaelab.runs import Files, SweepFiles, overview, read_config_if_any, runs_below, sweep_of

SPARK = 32
"""Most characters of a small curve."""
NO_LIMIT = 10_000
"""Width and height, in characters and lines, where the output is no terminal."""
SETTLED = 10.0
"""Seconds without a running job after which a sweep is over, where no lock tells."""
WORDS = {"finished": "done", "stopped": "it was killed"}


class Options(NamedTuple):
    """The keys of conf/watch.yaml."""

    run: str
    refresh: PositiveFloat


class Progress(NamedTuple):
    """Progress of a run. epochs: done. total: steps, None where it is not known yet."""

    epochs: int
    of: int | None
    step: int
    total: int | None

    @property
    def done(self) -> float:
        """The fraction that is done, from 0 to 1."""
        return self.step / self.total if self.total else 0.0


class View(NamedTuple):
    """The lines that the terminal shows, and whether they will change."""

    lines: list[str]
    live: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab watch` with these arguments. Returns the exit code."""
    return command.single("watch", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: shows the run or the sweep until it ends."""
    from vaelab.core.conf import target_names
    from vaelab.core.config import options

    asked = options(Options, config)
    folder = _find(asked.run)
    watched = Watched(folder, {target.rpartition(".")[2]: name for target, name in target_names().items()})
    try:
        _show(watched, asked.refresh)
    except KeyboardInterrupt:
        print()


def _find(asked: str) -> Path:
    """Finds the folder to watch. `last` is the newest run, or the sweep that it is a job of."""
    if asked == "last":
        candidates = list(runs_below([Path("outputs")]))
        if not candidates:
            raise UserError("run=last: there is no run under ./outputs yet; vaelab train makes one")
        newest = max(candidates, key=lambda run: overview.modified(Files(run).log))
        return sweep_of(newest) or newest
    folder = Path(asked)
    if not folder.is_dir():
        raise UserError(f"run={asked}: there is no such folder")
    if next(runs_below([folder]), None) is None:
        raise UserError(f"run={asked}: there is no run in it; give the folder that vaelab train printed")
    return folder


def _show(watched: Watched, refresh: float) -> None:
    """Redraws the view in place, until nothing changes any more."""
    if not sys.stdout.isatty():
        print("\n".join(watched.look(NO_LIMIT, NO_LIMIT).lines))
        return
    drawn, terminal = 0, getattr(sys.stdout, "stream", sys.stdout)  # which takes control sequences, too
    terminal.write("\x1b[?25l")  # hides the cursor
    try:
        while True:
            size = shutil.get_terminal_size((100, 24))
            view = watched.look(size.columns, size.lines - 1)
            text = "".join(f"{plain(line)}\x1b[K\n" for line in view.lines)
            terminal.write((f"\x1b[{drawn}A" if drawn else "") + text + "\x1b[J")
            terminal.flush()
            drawn = len(view.lines)
            if not view.live:
                return
            time.sleep(refresh)
    finally:
        terminal.write("\x1b[?25h")
        terminal.flush()


class Watched:
    """A folder that is looked at again and again; speeds are measured between the looks."""

    def __init__(self, folder: Path, options: dict[str, str]):
        self.folder, self.options = folder, options
        self.rows: dict[Path, tuple[float, list[dict[str, float]]]] = {}  # time and rows of each metrics.csv
        self.first: dict[Path, tuple[float, int]] = {}  # modification time and step at the first look
        self.settings: dict[Path, dict[str, Any]] = {}

    def look(self, width: int, height: int) -> View:
        """Returns the current view, in at most `width` characters and `height` lines."""
        runs = [overview.read(folder, self.options) for folder in runs_below([self.folder])]
        if len(runs) == 1 and runs[0].folder == self.folder:
            lines, live = self._run(runs[0], width), runs[0].status == "running"
        else:
            lock = SweepFiles(self.folder).lock
            idle = time.time() - max((overview.modified(Files(run.folder).log) for run in runs), default=0.0)
            live = any(run.status == "running" for run in runs) or overview.locked(lock)
            live = live or (not lock.exists() and idle < SETTLED)
            lines = self._sweep(runs, width, height, live)
        return View([cut(line, width) for line in lines[:height]], live)

    # --- one run --------------------------------------------------------------------------------

    def _run(self, run: overview.Run, width: int) -> list[str]:
        rows, progress = self._rows(run.folder), self._progress(run)
        lines = [f"{run.name}  {run.status}  {run.folder}", ""]
        lines += [self._bar(run, progress, width), ""]
        lines += _figures(rows, width)
        if run.best.get("by"):
            lines += ["", f"best {run.best['by']} {number(run.best['value'])} in epoch {run.best['epoch']}"]
        if run.error:
            lines += ["", *run.error.strip().splitlines()[:2]]
        if warnings := _warnings(run.folder):
            lines += ["", *(line for text in warnings for line in _wrapped(text, width))]
        return lines

    def _bar(self, run: overview.Run, progress: Progress, width: int) -> str:
        epoch = f"epoch {progress.epochs}/{progress.of or '?'}"
        if run.status != "running":
            took = f" in {duration(run.seconds)}" if run.seconds else ""
            return f"{epoch}  step {progress.step:,}  {WORDS.get(run.status, run.status)}{took}"
        rate, left = self._rate(run, progress), ""
        if rate and progress.total:
            left = f"  {duration((progress.total - progress.step) / rate)} left"
        speed = f"  {rate:.3g} steps/s" if rate else ""
        text = f"  {epoch}  step {progress.step:,}{speed}{left}"
        return bar(progress.done, width - len(text)) + text

    def _rows(self, folder: Path) -> list[dict[str, float]]:
        """Reads metrics.csv, again when it has changed; a row that is just being written waits for the next look."""
        from vaelab import runs

        changed = overview.modified(Files(folder).metrics)
        before = self.rows.get(folder, (0.0, []))
        if changed != before[0]:
            with suppress(UserError):
                self.rows[folder] = before = changed, runs.read_metrics(folder)
        return before[1]

    def _progress(self, run: overview.Run) -> Progress:
        rows, settings = self._rows(run.folder), self._settings(run.folder)
        trainer = settings.get("trainer") or {}
        step = int(max((row["step"] for row in rows), default=0))
        ended = [row for row in rows if "train/loss" in row]
        epochs = int(ended[-1].get("epoch", -1)) + 1 if ended else 0
        epochs = run.epochs if run.status == "finished" and run.epochs else epochs
        limits = [trainer["max_steps"]] if (trainer.get("max_steps") or -1) > 0 else []
        of = trainer.get("max_epochs") if (trainer.get("max_epochs") or -1) > 0 else None
        if of and ended and epochs:
            limits.append(round(of * ended[-1]["step"] / epochs))
        return Progress(epochs, of, step, max(min(limits), step) if limits else None)

    def _settings(self, folder: Path) -> dict[str, Any]:
        if folder not in self.settings:
            try:
                config = read_config_if_any(folder)
            except UserError:
                return {}
            if not config:  # the run is about to begin
                return {}
            self.settings[folder] = config
        return self.settings[folder]

    def _rate(self, run: overview.Run, progress: Progress) -> float | None:
        """Returns steps per second since the first look; since the run began if nothing has changed yet."""
        written = overview.modified(Files(run.folder).metrics)
        began, step = self.first.setdefault(run.folder, (written, progress.step))
        if written - began < 1:
            if self._settings(run.folder).get("resume"):
                return None
            began, step = overview.modified(Files(run.folder).config), 0
        seconds = written - began
        return (progress.step - step) / seconds if seconds > 0 and progress.step > step else None

    # --- a sweep --------------------------------------------------------------------------------

    def _sweep(self, runs: list[overview.Run], width: int, height: int, live: bool) -> list[str]:
        runs = sorted(runs, key=lambda run: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", run.folder.name)])
        states = Counter(run.status for run in runs)
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        head = [
            f"{self.folder}  {'running' if live else 'over'}",
            f"{len(runs)} {'jobs' if len(runs) > 1 else 'job'} so far: {counts}",
            "",
        ]
        room = max(height - len(head) - 1, 1)
        names = max((len(run.folder.name) for run in runs), default=0)
        shown = sorted(runs, key=lambda run: (run.status == "finished", run.status != "running"))[:room]
        rest = len(runs) - len(shown)
        lines = [self._job(run, min(names, width // 3), width) for run in runs if run in shown]
        return [*head, *lines, *([f"… and {rest} more"] if rest else [])]

    def _job(self, run: overview.Run, names: int, width: int) -> str:
        start = f"{cut(run.folder.name, names):{names}}  {run.status:11}"
        if run.status in ("failed", "diverged", "damaged"):
            return f"{start}  " + run.error.strip().partition("\n")[0]
        if run.status != "running":
            best = f"{run.best['by']} {number(run.best['value'])}" if run.best.get("by") else ""
            return f"{start}  {best:28}" + (f"  {duration(run.seconds)}" if run.seconds else "")
        progress, rows = self._progress(run), self._rows(run.folder)
        logged = [name for name in ("val/elbo", "val/reconstruction", "step/loss") if any(name in row for row in rows)]
        series = [row[logged[0]] for row in rows if logged[0] in row] if logged else []
        newest = f"{logged[0]} {number(series[-1])}" if series else ""
        start, epoch = f"{start}  {newest:28}  ", f" {progress.epochs}/{progress.of or '?'}  "
        room = width - len(start) - len(epoch)
        return start + bar(progress.done, room) + epoch + spark(series, min(16, room - BAR - 5))


# --- text -------------------------------------------------------------------------------------


def _figures(rows: list[dict[str, float]], width: int) -> list[str]:
    """Formats a line per metric: its newest value in training and validation, and a small curve."""
    lines = []
    logged = {key.rpartition("/")[2] for row in rows for key in row if "/" in key}
    for name in in_order([name for name in logged if metric(name).colour or metric(name).brief]):
        series = {
            part: [row[f"{part}/{name}"] for row in rows if f"{part}/{name}" in row]
            for part in ("step", "train", "val")
        }
        curve = series["val"] or series["train"]
        curve = curve if len(curve) > 1 else series["step"]
        if not curve:
            continue
        newest = [number(series[part][-1]) if series[part] else "" for part in ("train", "val")]
        if not any(newest):
            newest[0] = number(curve[-1])
        lines.append(
            f"{name:15}"
            + "".join(f"{cell:>11}" for cell in newest)
            + f"  {spark(curve, min(SPARK, width - 39))}".rstrip()
        )
    return [f"{'':15}{'train':>11}{'val':>11}", *lines] if lines else ["no metrics yet"]


def _warnings(folder: Path) -> list[str]:
    """Returns the last two warnings of run.log."""
    try:
        text = Files(folder).log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    warnings = [line.partition(" WARNING ")[2] for line in text.splitlines() if " WARNING " in line]
    return list(dict.fromkeys(warnings))[-2:]


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(width, 20), initial_indent="! ", subsequent_indent="  ")
