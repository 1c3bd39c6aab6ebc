"""logger=mlflow, and several loggers at once."""

from __future__ import annotations

import csv
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.training.loggers import MLflow, PictureLogger, RunLogger

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make(run: Path, uri: str | None = "store", **arguments) -> MLflow:
    run.mkdir(parents=True, exist_ok=True)
    return MLflow(
        **{"experiment": "e", "uri": uri, "name": None, "group": None, "export": True, "run": run} | arguments
    )


def runs_of(folder: str = "mlruns", experiment: str = "vaelab") -> list:
    client = mlflow.MlflowClient(Path(folder).absolute().as_uri())
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def artifacts(run) -> set[str]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_job_and_its_resume_are_one_run_with_the_digits_of_metrics_csv(train):
    done = train("-m", "logger=[csv,mlflow,tensorboard]", "trainer.max_epochs=1", "sweep.dir=s")
    assert done.code == 0, done.err
    (folder,) = Path("s").glob("0-*")
    result = train(f"resume={folder}", "trainer.max_epochs=2")._replace(run=folder)
    assert result.code == 0, result.err
    assert "MLflow does not take" not in result.out + result.err
    (run,) = runs_of()
    assert (run.info.status, run.info.run_name, run.data.tags["group"]) == ("FINISHED", folder.name, "s")
    assert run.data.params["model.latent_dim"] == str(result.summary["model"]["latent_dimensions"])
    client = mlflow.MlflowClient(Path("mlruns").absolute().as_uri())
    with (result.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() - {"step", "epoch"}
    assert {"val/elbo", "test/elbo"} <= names
    for name in names:
        history = client.get_metric_history(run.info.run_id, name)
        logged = {str(metric.step): repr(metric.value) for metric in history}
        assert logged == {row["step"]: row[name] for row in rows if row[name]}, name
    assert {"config.yaml", "summary.json", "export/model.safetensors", "export/model.json"} <= artifacts(run)
    assert list((result.run / "tensorboard").glob("events*"))


def test_pictures_and_the_files_of_a_run_are_artifacts(finished):
    result = finished("model=vae")
    (result.run / "figures").mkdir()
    for name in ("figures/samples.png", "report.html"):
        (result.run / name).write_text("drawn")
    logger = make(result.run, uri=None, export=False)
    assert isinstance(logger, PictureLogger)
    assert isinstance(logger, RunLogger)
    logger.log_picture("samples", torch.zeros(4, 6, 3, dtype=torch.uint8), 7)
    logger.log_bars("kl_per_dim", torch.zeros(3), 7)
    logger.log_run(result.run)
    (run,) = runs_of(experiment="e")
    kept = artifacts(run)
    assert {"figures/samples.png", "report.html", "config.yaml", "summary.json", "kl_per_dim.csv"} <= kept
    assert any(name.startswith("images/pictures~samples+step+7") for name in kept)
    assert not any(name.startswith("export") for name in kept)


def test_jobs_that_begin_at_once_share_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create, made = mlflow.MlflowClient.create_experiment, []

    def slowly(*given):
        made.append(given)
        time.sleep(0.1)
        return create(*given)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", slowly)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: make(tmp_path / str(number)), range(3)))
    assert len(made) == 1
    assert len(runs_of("store", "e")) == 3


def test_one_that_a_server_has_just_got_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, found = make(tmp_path / "a"), mlflow.MlflowClient.get_experiment_by_name
    answers = iter([lambda *_: None])
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", lambda *given: next(answers, found)(*given))
    second = make(tmp_path / "b")
    ids = {logger.client.get_run(logger.version).info.experiment_id for logger in (first, second)}
    assert len(ids) == 1


def test_what_mlflow_does_not_take_is_said_once_and_ends_no_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaelab.training.loggers.mlflow.log.warning", lambda text, *words: said.append(text % words))
    logger = make(tmp_path / "run")

    def full(*_, **__):
        raise mlflow.exceptions.MlflowException("no space\nleft")

    monkeypatch.setattr(logger.client, "log_batch", full)
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0}, 2)
    logger.finalize("failed")
    assert said == ["MLflow does not take all of it (no space); metrics.csv has it"]
    assert runs_of("store", "e")[0].info.status == "FAILED"


def test_a_run_that_the_store_has_lost_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = make(tmp_path / "run")
    second = make(tmp_path / "run")
    assert second.version == first.version
    assert make(tmp_path / "run", uri="other").version != first.version
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "third")
    make(tmp_path / "new", uri=None)
    assert len(runs_of("third", "e")) == 1


def test_a_place_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for uri in (str(tmp_path / "file"), "nothing://x"):
        with pytest.raises(UserError, match=f"logger.mlflow.uri={uri}: it cannot be used"):
            make(tmp_path / "run", uri=uri)


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named_before_any_work(train, monkeypatch, name):
    from vaelab.core import errors

    monkeypatch.setattr(errors, "find_spec", lambda package: None if package == name else 1)
    result = train(f"logger=[csv,{name}]")
    assert result.code == 2
    assert result.err.strip() == f'vaelab: logger={name} needs {name}: pip install "vaelab[{name}]"'
    assert not result.run.exists()


def test_one_of_a_list_that_is_no_option_is_named_with_those_that_are(train):
    result = train("logger=[csv,mlflw]")
    assert result.code == 2
    assert "logger=mlflw: no such option; did you mean mlflow?" in result.err
    assert "csv, mlflow, tensorboard, wandb" in result.err


def test_a_strangers_run_names_no_place_to_log_to(finished, capsys):
    result = finished("model=vae")
    path = result.run / "config.yaml"
    given = "overrides:\n  - logger=[csv,mlflow]\n  - logger.mlflow.uri=/etc"
    path.write_text(path.read_text().replace("overrides:", given, 1))
    assert main(["train", f"resume={result.run}", "trainer.max_epochs=3"]) == 2
    assert "would write to /etc" in capsys.readouterr().err
