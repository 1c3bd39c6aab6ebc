"""The logger to Weights & Biases."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from vaelab.core.errors import require
from vaelab.runs import Files, offline

log = logging.getLogger("vaelab")

CONNECT_SECONDS = 15
"""Seconds to wait for the W&B server before logging offline."""
SILENT_SECONDS, FINISH_SECONDS = 5, 120
"""Seconds that a run waits for the W&B server before it says so, and its end before it leaves the rest on disk."""


class WandB(WandbLogger):
    """A logger to Weights & Biases, offline unless asked; never asks for a key, and never waits long for a server.

    project, name, group, job_type, tags: as in W&B; a resumed run stays one run, by its id. mode:
    `offline` or `online`. tags_of: dotted names of classes, the last parts of which are tags, too.
    checkpoint: whether the best checkpoint is kept as an artifact of the run. run: the run folder.
    """

    one_per_process = True  # whether a process has one run at a time

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

    @staticmethod
    def require() -> None:
        """Raises UserError if wandb is not installed."""
        require("wandb", "logger=wandb", "wandb")

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
