"""The logger to MLflow."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from vaelab.core.errors import UserError, require
from vaelab.core.files import locked
from vaelab.core.terminal import cut
from vaelab.runs import Files

log = logging.getLogger("vaelab")

FOLDER = "mlruns"
"""Name of the folder, where the command was given, that runs are logged to unless a place is named."""
AT_ONCE, WIDTH = 100, 120
"""Most parameters that MLflow takes at once, and most characters that are shown of what it complains of."""


class MLflow(Logger):
    """A logger to MLflow: by default to a folder, without a server.

    experiment, name: as in MLflow; a run without a name has that of its folder. uri: a folder, `sqlite:///FILE` or the
    address of a server; None for the environment's MLFLOW_TRACKING_URI, or else the folder ./mlruns. group: a tag that
    the runs of a sweep share. export: whether the model's weights and description are kept as artifacts at the end.
    run: the run folder, which keeps the run's id: a resumed run stays one run.
    Raises UserError if there is no MLflow at the place.
    """

    def __init__(self, experiment: str, uri: str | None, name: str | None, group: str | None, export: bool, run: Path):
        super().__init__()
        self.export, self.lost, self._version = export, False, ""
        if rank_zero_only.rank != 0:
            return
        self.require()
        place = uri or os.environ.get("MLFLOW_TRACKING_URI") or FOLDER
        folder = Path(place.removeprefix("file://")) if "://" not in place or place.startswith("file://") else None
        # MLflow reads these when it is imported or opens the place: it keeps folders working, but no longer by default;
        # a server that is away is asked for seconds, and not for many minutes
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                place = folder.absolute().as_uri()
            with locked(folder and folder / ".vaelab"):  # jobs that begin at once would each make the experiment
                self.client = MlflowClient(place)
                self._version = self._begin(experiment, name or run.name, group, Files(run).mlflow)
        except (MlflowException, OSError, ImportError) as error:
            where = f"logger.mlflow.uri={uri}" if uri else f"logger=mlflow, to {place}"
            raise UserError(f"{where}: it cannot be used ({_first_line(error)}): name a folder or a server") from error

    @staticmethod
    def require() -> None:
        """Raises UserError if MLflow is not installed."""
        require("mlflow", "logger=mlflow", "mlflow")

    def _begin(self, experiment: str, name: str, group: str | None, known: Path) -> str:
        """Returns the id of a new run; or that of the resumed one, if the file `known` has it and MLflow knows it."""
        from mlflow.exceptions import MlflowException

        if known.exists():
            try:
                self.client.update_run(known.read_text(), "RUNNING")
                return known.read_text()
            except MlflowException:
                log.warning("MLflow does not know the run that is resumed: a new one is begun")
        tags = {"group": group} if group else None
        run = self.client.create_run(self._experiment_id(experiment), run_name=name, tags=tags)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(run.info.run_id)
        return run.info.run_id

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name)
        except MlflowException:
            if found := self.client.get_experiment_by_name(name):  # another job has just made it
                return found.experiment_id
            raise

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        """The id of the run."""
        return self._version

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Says once that MLflow does not take what the block logs: training goes on."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            if not self.lost:
                log.warning("MLflow does not take all of it (%s); metrics.csv has it", _first_line(error))
            self.lost = True

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Logs a config, by dotted keys. A parameter never changes in MLflow: of a resumed run the first is kept."""
        from mlflow.entities import Param

        with self._kept():
            known = self.client.get_run(self.version).data.params
            new = [Param(key, str(value)) for key, value in _flat(params) if key not in known]
            for start in range(0, len(new), AT_ONCE):
                self.client.log_batch(self.version, params=new[start : start + AT_ONCE])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        with self._kept():
            logged = [Metric(name, float(value), now, step or 0) for name, value in metrics.items()]
            self.client.log_batch(self.version, metrics=logged)

    @rank_zero_only
    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        with self._kept():
            self.client.log_image(self.version, picture.numpy(), key=f"pictures/{name}", step=step)

    @rank_zero_only
    def log_bars(self, name: str, values: Tensor, step: int) -> None:
        """Does nothing: MLflow has no histograms. The files with these values are kept at the end."""

    @rank_zero_only
    def log_run(self, run: Path) -> None:
        """Keeps the config, the summary, the values per dimension, figures, report and export as artifacts."""
        files = Files(run)
        with self._kept():
            for path in (files.config, files.summary, files.report, *files.vectors.values()):
                if path.exists():
                    self.client.log_artifact(self.version, str(path))
            if files.figures.exists():
                self.client.log_artifacts(self.version, str(files.figures), "figures")
            if self.export and files.saved:
                self._log_export(run)

    def _log_export(self, run: Path) -> None:
        from vaelab.runs import exported
        from vaelab.runs.trained import Trained

        trained = Trained(run, device="cpu", trust=True)  # of this very training
        with tempfile.TemporaryDirectory() as folder:
            exported.save(trained.model, Path(folder), exported.describe(trained))
            self.client.log_artifacts(self.version, folder, "export")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._kept():
            self.client.set_terminated(self.version, "FINISHED" if status == "success" else "FAILED")


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Lists the values of nested mappings with their dotted keys."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _first_line(error: Exception) -> str:
    return cut(next(iter(str(error).strip().splitlines()), type(error).__name__), WIDTH)
