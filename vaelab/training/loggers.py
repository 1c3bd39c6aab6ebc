"""Loggers of metrics: metrics.csv always, Weights & Biases and TensorBoard on request."""

from __future__ import annotations

import csv
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from vaelab.core.errors import UserError
from vaelab.core.files import whole
from vaelab.runs import Files, offline

log = logging.getLogger("vaelab")

CONNECT_SECONDS = 15
"""Seconds to wait for the W&B server before logging offline."""
SILENT_SECONDS, FINISH_SECONDS = 5, 120
"""Seconds that a run waits for the W&B server before it says so, and its end before it leaves the rest on disk."""


@runtime_checkable
class PictureLogger(Protocol):
    """A logger that also takes pictures and bars."""

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        """Logs a picture, [H, W, 3] uint8."""
        ...

    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        """Logs values as bars, one each, [n]."""
        ...


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


class WandB(WandbLogger):
    """A logger to Weights & Biases, offline unless asked; never asks for a key, and never waits long for a server.

    project, name, group, job_type, tags: as in W&B; a resumed run stays one run, by its id. mode:
    `offline` or `online`. tags_of: dotted names of classes, the last parts of which are tags, too.
    checkpoint: whether the best checkpoint is kept as an artifact of the run. run: the run folder.
    """

    def __init__(
        self,
        project: str,
        mode: Literal["offline", "online"],
        name: str | None,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        tags_of: list[str],
        checkpoint: bool,
        run: Path,
    ):
        self.run, self.in_sweep = run, group is not None and group == run.absolute().parent.name
        self.checkpoint, self.finalized = checkpoint, False
        if rank_zero_only.rank != 0:
            super().__init__(project=project, offline=True, save_dir=run)
            return
        import wandb

        if mode == "online" and wandb.setup().settings.api_key is None and not _has_key():
            log.warning("logger.wandb.mode=online, but there is no W&B key (wandb login makes one): logging offline")
            mode = "offline"
        settings = wandb.Settings(silent=True, console="off", init_timeout=CONNECT_SECONDS)
        settings.finish_timeout, settings.finish_timeout_raises = FINISH_SECONDS, True
        tags = list(dict.fromkeys([*(name.rpartition(".")[2] for name in tags_of), *tags]))
        arguments: dict[str, Any] = {"project": project, "name": name, "group": group, "job_type": job_type}
        arguments |= {"tags": tags, "dir": str(run.absolute()), "id": _run_id(run), "settings": settings}
        try:
            with _said("waiting for W&B to answer, up to a minute; Ctrl-C, and logger=csv or mode=offline, spare it"):
                experiment = wandb.init(**arguments, mode=mode, resume="allow" if mode == "online" else None)
        except wandb.Error as error:
            log.warning("W&B cannot be reached (%s): logging offline", str(error).splitlines()[0])
            wandb.teardown()  # its service holds the run's id otherwise
            experiment = wandb.init(**arguments, mode="offline")
        # as Lightning does for the runs it makes itself
        experiment.define_metric("trainer/global_step")
        experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(experiment=experiment, save_dir=str(run))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Keeps the best checkpoint, if wanted, and says how to send an offline run: once, after the training."""
        super().finalize(status)
        if self.finalized:  # it is called after the test, too
            return
        self.finalized = True
        best = Files(self.run).checkpoint("best")
        if self.checkpoint and best.is_file():
            import wandb

            artifact = wandb.Artifact(f"model-{self.experiment.id}", "model")
            artifact.add_file(str(best))
            self.experiment.log_artifact(artifact, aliases=["best"])
        if self.experiment.settings.mode == "offline" and not self.in_sweep:
            log.info("logged offline; to send it to W&B: %s", offline.sync_line([self.run]))

    @rank_zero_only
    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        import wandb

        # uint8 on purpose: floats in [0, 1] come out black
        self.experiment.log({f"pictures/{name}": wandb.Image(picture.numpy()), "trainer/global_step": step})

    @rank_zero_only
    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        import numpy as np
        import wandb

        joined = -(-len(values) // wandb.Histogram.MAX_LENGTH)  # neighbours that share a bar
        edges = np.append(np.arange(0, len(values), joined), len(values)) - 0.5
        bars = np.add.reduceat(values.numpy(), np.arange(0, len(values), joined))
        histogram = wandb.Histogram(np_histogram=(bars, edges))
        self.experiment.log({f"histograms/{name}": histogram, "trainer/global_step": step})


def finish_wandb(run: Path) -> None:
    """Ends the run of this process at W&B, if there is one: what the server does not take in time stays on disk."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    try:
        with _said("waiting for W&B to take the last metrics, up to 2 minutes"):
            wandb.finish()
    except TimeoutError:
        log.warning("W&B did not take all of it; it is on disk, to send it: %s", offline.sync_line([run]))


@contextmanager
def _said(text: str) -> Iterator[None]:
    """Says what is waited for, if the block takes more than a few seconds."""
    word = threading.Timer(SILENT_SECONDS, log.info, (text,))
    word.start()
    try:
        yield
    finally:
        word.cancel()


def _run_id(run: Path) -> str:
    """Returns the W&B id of a run folder: drawn once, or given by a W&B sweep; the same after a resume or a move."""
    path = run / "wandb" / "id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        path.write_text(given or secrets.token_hex(6))
    return path.read_text()


def _has_key() -> bool:
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class TensorBoard(TensorBoardLogger):
    """A logger to TensorBoard event files in the run folder.

    run: the run folder.
    """

    def __init__(self, run: Path):
        try:
            super().__init__(run, name="tensorboard", version="")
        except ModuleNotFoundError as error:
            raise UserError('logger=tensorboard needs TensorBoard: pip install "vaelab[tensorboard]"') from error

    @rank_zero_only
    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self.experiment.add_image(f"pictures/{name}", picture.numpy(), step, dataformats="HWC")

    @rank_zero_only
    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        counts = values.double()
        index = [float(i) for i in range(len(counts))]
        self.experiment.add_histogram_raw(
            f"histograms/{name}",
            min=0.0,
            max=float(len(counts)),
            num=float(counts.sum()),
            sum=float((counts * counts.new_tensor(index)).sum()),
            sum_squares=float((counts * counts.new_tensor(index).square()).sum()),
            bucket_limits=[i + 0.5 for i in index],
            bucket_counts=counts.tolist(),
            global_step=step,
        )
