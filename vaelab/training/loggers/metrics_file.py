"""The logger to metrics.csv, which is always written."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from vaelab.core.files import whole


class MetricsFile(Logger):
    """A logger to metrics.csv: a row per step at which something was logged, a column per metric.

    Metrics logged at the same step share a row, also one that is written already, before a resume even. The
    file is complete after every row; a new column, or more of a row that is written, rewrites it by a rename.
    When a run is resumed, rows after the resumed step are dropped.

    path: the file. resumed_step: the step that training goes on from, None for a fresh run.
    """

    def __init__(self, path: Path, resumed_step: int | None):
        super().__init__()
        self.path, self.columns = path, ["step", "epoch"]
        self.rows: list[dict[str, Any]] = []
        self.written, self.changed = 0, False  # rows that the file has, and whether the last one has more by now
        if resumed_step is not None and path.exists() and rank_zero_only.rank == 0:
            text = path.read_text(encoding="utf-8")
            reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a last line that was cut short is none
            self.columns = list(reader.fieldnames or self.columns)
            self.rows = [row | {"step": int(row["step"])} for row in reader if int(row["step"]) <= resumed_step]
            self._rewrite()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if not self.rows or self.rows[-1]["step"] != step:
            self.save()
            self.rows.append({"step": step})
        row = self.rows[-1]  # which keeps its epoch: the test comes after the last one, and Lightning's is an integer
        row |= {name: float(value) for name, value in metrics.items() if name != "epoch" or name not in row}
        self.changed = True

    @rank_zero_only
    def save(self) -> None:
        """Writes the row that is being filled; it may get more."""
        if not self.changed:
            return
        known = set(self.columns)
        new = [name for name in self.rows[-1] if name not in known]
        if new or self.written == len(self.rows) or not self.path.exists():
            self.columns += new
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[-1])
        self.written, self.changed = len(self.rows), False

    @rank_zero_only
    def sync(self) -> None:
        """Writes what there is, and waits until the disk has it."""
        self.save()
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def _rewrite(self) -> None:
        with whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.written = len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
