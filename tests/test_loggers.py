import csv
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

from tests.wandb_server import wandb_server
from vaelab.training.loggers import MetricsFile, PictureLogger
from vaelab.training.loggers import wandb as loggers


def rows(path):
    """Rows of a metrics file, without empty cells."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name != "metrics.csv"]


@pytest.fixture
def warnings():
    """What the lab's log says."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("vaelab")
    log.addHandler(handler)
    yield said
    log.removeHandler(handler)


# --- metrics.csv ------------------------------------------------------------------------------


def test_figures_of_one_step_share_a_row(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    logger.log_metrics({"step/loss": 1.5, "epoch": 0.0}, step=10)
    logger.log_metrics({"train/loss": 2.5, "epoch": 0.0}, step=10)
    logger.log_metrics({"val/loss": 3.5, "epoch": 0.0}, step=10)
    logger.log_metrics({"step/loss": 1.25, "epoch": 1.0}, step=20)
    logger.finalize("success")
    assert rows(logger.path) == [
        {"step": "10", "epoch": "0.0", "step/loss": "1.5", "train/loss": "2.5", "val/loss": "3.5"},
        {"step": "20", "epoch": "1.0", "step/loss": "1.25"},
    ]


def test_figures_keep_their_digits(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    logger.log_metrics({"train/elbo": -103.12345678901234}, step=1)
    logger.save()
    assert float(rows(logger.path)[0]["train/elbo"]) == -103.12345678901234


def test_the_file_is_complete_after_every_row(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    for step in range(1, 6):
        logger.log_metrics({"loss": float(step)} | ({"late": 0.5} if step == 3 else {}), step=step)
        if step > 1:  # the row of this step is still open
            assert [row["step"] for row in rows(logger.path)] == [str(s) for s in range(1, step)]
        assert step == 1 or leftovers(tmp_path) == []
    logger.save()
    assert [row["loss"] for row in rows(logger.path)] == ["1.0", "2.0", "3.0", "4.0", "5.0"]


def test_a_new_column_leaves_earlier_rows_as_they_were(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    logger.log_metrics({"b": 1.0}, step=1)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.log_metrics({"b": 3.0, "c": 4.0}, step=3)
    logger.save()
    assert logger.path.read_text().splitlines()[0] == "step,epoch,b,a,c"
    assert rows(logger.path) == [
        {"step": "1", "b": "1.0"},
        {"step": "2", "a": "2.0"},
        {"step": "3", "b": "3.0", "c": "4.0"},
    ]
    assert leftovers(tmp_path) == []


def test_a_row_without_new_columns_is_appended(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    inode = logger.path.stat().st_ino
    logger.log_metrics({"a": 2.0}, step=2)
    logger.save()
    assert logger.path.stat().st_ino == inode
    logger.log_metrics({"b": 2.0}, step=3)
    logger.save()
    assert logger.path.stat().st_ino != inode  # by a rename: a reader never sees half a file


def test_saving_twice_writes_once(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", None)
    logger.save()
    assert not logger.path.exists()
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    logger.save()
    logger.finalize("success")
    assert len(rows(logger.path)) == 1


@pytest.mark.parametrize("resumed", [0, 20, 25, 99])
def test_a_resumed_file_drops_what_came_after_the_resumed_step(tmp_path, resumed):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path, None)
    for step in (10, 20, 30, 40):
        first.log_metrics({"loss": float(step), "epoch": 0.0}, step=step)
    first.finalize("interrupted")
    second = MetricsFile(path, resumed)
    kept = [str(step) for step in (10, 20, 30, 40) if step <= resumed]
    assert [row["step"] for row in rows(path)] == kept  # at once: nothing stale is left to read
    second.log_metrics({"loss": 0.5, "new": 7.0}, step=100)
    second.log_metrics({"loss": 0.25}, step=110)
    second.finalize("success")
    assert [row["step"] for row in rows(path)] == [*kept, "100", "110"]
    assert rows(path)[len(kept)] == {"step": "100", "loss": "0.5", "new": "7.0"}
    assert all(row["loss"] == f"{row['step']}.0" for row in rows(path)[: len(kept)])
    assert leftovers(tmp_path) == []


def test_resuming_without_a_file_starts_one(tmp_path):
    logger = MetricsFile(tmp_path / "metrics.csv", 50)
    logger.log_metrics({"a": 1.0}, step=60)
    logger.save()
    assert rows(logger.path) == [{"step": "60", "a": "1.0"}]


def test_resuming_goes_on_after_a_row_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss,kl\n10,0.0,5.0,1.0\n2")
    logger = MetricsFile(path, 10)
    logger.log_metrics({"loss": 4.0}, step=20)
    logger.save()
    assert rows(path)[0] == {"step": "10", "epoch": "0.0", "loss": "5.0", "kl": "1.0"}
    assert rows(path)[-1] == {"step": "20", "loss": "4.0"}


def test_metrics_csv_takes_no_pictures(tmp_path):
    assert not isinstance(MetricsFile(tmp_path / "metrics.csv", None), PictureLogger)


# --- Weights & Biases -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def no_key(tmp_path_factory):
    """A user without a W&B key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL", "NETRC"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        wandb.teardown()
        yield
        wandb.teardown()


def make_wandb(run, mode="offline", group="a sweep", checkpoint=False):
    from vaelab.training.loggers import WandB

    return WandB(
        project="lab",
        mode=mode,
        name="a run",
        group=group,
        job_type="train",
        tags=["one", "two"],
        tags_of=["vaelab.models.VAE", "vaelab.datasets.MNIST"],
        checkpoint=checkpoint,
        run=run,
    )


def records(run):
    """What W&B's own reader finds in the files of an offline run, by kind."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    lines = [json.loads(line) for line in text.splitlines()]
    return {kind: [line[kind] for line in lines if line["type"] == kind] for kind in {line["type"] for line in lines}}


PICTURE = torch.arange(20 * 30 * 3, dtype=torch.uint8).view(20, 30, 3)
BARS = {"kl_per_dim": 20, "code_counts": 512, "many": 1024, "odd": 515}


@pytest.fixture(scope="module")
def logged(no_key, tmp_path_factory):
    """An offline run's folder and its records."""
    run = tmp_path_factory.mktemp("run")
    logger = make_wandb(run)
    assert isinstance(logger, PictureLogger)
    logger.log_hyperparams({"seed": 3, "model": {"_target_": "vaelab.models.VAE", "latent_dim": 20}})
    logger.log_metrics({"val/elbo": -103.5, "epoch": 1.0}, step=700)
    logger.log_metrics({"val/elbo": -99.5, "epoch": 2.0}, step=1400)
    logger.log_picture("samples", PICTURE, 2100)
    for name, count in BARS.items():
        logger.log_bars(name, torch.arange(count).double(), 2800)
    logger.finalize("success")
    logger.experiment.finish()
    return run, records(run)


def history(logged, name):
    """(trainer/global_step, value) of everything logged under a name."""
    items = [record["item"] for record in logged[1]["history"]]
    return [(item["trainer/global_step"], item[name]) for item in items if name in item]


def histogram(logged, name):
    ((step, bins),) = history(logged, f"histograms/{name}.bins")
    ((_, values),) = history(logged, f"histograms/{name}.values")
    assert step == 2800
    return bins, values


def test_wandb_keeps_project_name_group_job_type_and_tags(logged):
    run = logged[1]["run"][0]
    kept = [run[key] for key in ("project", "display_name", "run_group", "job_type")]
    assert kept == ["lab", "a run", "a sweep", "train"]
    assert run["tags"] == ["VAE", "MNIST", "one", "two"]


def test_wandb_keeps_the_config(logged):
    updates = [record.get("update", {}) for record in logged[1].get("config", [])]
    updates.append(logged[1]["run"][0]["config"]["update"])
    seen = json.dumps(updates)
    assert '"seed"' in seen
    assert "latent_dim" in seen


def test_wandb_keeps_metrics_at_their_steps(logged):
    assert history(logged, "val/elbo") == [(700, -103.5), (1400, -99.5)]


def test_wandb_draws_all_metrics_over_the_trainers_step(logged):
    axes = {record.get("glob_name") or record.get("name"): record for record in logged[1].get("metric", [])}
    assert axes["*"]["step_metric"] == "trainer/global_step"


def test_wandb_keeps_pictures_as_they_are(logged):
    ((step, path),) = history(logged, "pictures/samples.path")
    assert step == 2100
    (file,) = logged[0].glob(f"wandb/offline-run-*/files/{path}")
    with Image.open(file) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    assert torch.equal(pixels.view(20, 30, 3), PICTURE)


@pytest.mark.parametrize("name", ["kl_per_dim", "code_counts"])
def test_wandb_keeps_one_bar_per_value(logged, name):
    bins, values = histogram(logged, name)
    assert values == list(range(BARS[name]))
    assert bins == [i - 0.5 for i in range(BARS[name] + 1)]


@pytest.mark.parametrize("name", ["many", "odd"])
def test_wandb_joins_neighbours_where_there_are_too_many_bars(logged, name):
    bins, values = histogram(logged, name)
    assert len(values) <= 512
    assert len(bins) == len(values) + 1
    assert (bins[0], bins[-1]) == (-0.5, BARS[name] - 0.5)
    for low, high, value in zip(bins, bins[1:], values, strict=False):
        assert value == sum(range(int(low + 0.5), int(high + 0.5)))


def test_wandb_goes_on_in_the_same_run_after_a_resume(logged, no_key):
    logger = make_wandb(logged[0])
    resumed = logger.experiment.id
    logger.experiment.finish()
    assert resumed == logged[1]["run"][0]["run_id"]


def test_wandb_online_without_a_key_logs_offline_at_once(no_key, tmp_path, warnings):
    start = time.monotonic()
    logger = make_wandb(tmp_path, mode="online")
    assert time.monotonic() - start < 5
    assert logger.experiment.settings.mode == "offline"
    (line,) = warnings
    assert "key" in line
    assert "offline" in line
    logger.log_metrics({"val/elbo": -1.5}, step=7)
    logger.experiment.finish()
    assert any(record["item"].get("val/elbo") == -1.5 for record in records(tmp_path)["history"])


def test_wandb_logs_offline_when_the_server_cannot_be_reached(no_key, tmp_path, warnings, monkeypatch):
    init, modes = wandb.init, []

    def unreachable(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no route\nto the server")
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    wandb.teardown()
    logger = make_wandb(tmp_path, mode="online")
    monkeypatch.delenv("WANDB_API_KEY")
    logger.experiment.finish()
    wandb.teardown()
    assert modes == ["online", "offline"]
    assert any("no route" in line and "offline" in line and "\n" not in line for line in warnings)


def test_a_run_does_not_wait_for_wandb_without_a_word(no_key, tmp_path, warnings, monkeypatch):
    def never(**_):
        time.sleep(0.3)
        raise TimeoutError

    said = []
    monkeypatch.setattr(loggers, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(loggers.log, "info", said.append)
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "finish", lambda: never())
    loggers.finish_wandb(tmp_path)
    assert len(said) == 1
    assert "waiting for W&B" in said[0]
    assert any("wandb sync" in line for line in warnings)


def test_an_unreachable_server_leaves_no_service_behind(no_key, tmp_path, warnings, monkeypatch):
    """Nobody listens on the port: the second init needs the id that the first one holds."""
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(loggers, "CONNECT_SECONDS", 2)
    wandb.teardown()
    logger = make_wandb(tmp_path, mode="online")
    assert logger.experiment.settings.mode == "offline"
    logger.experiment.finish()
    wandb.teardown()
    assert any("offline" in line for line in warnings)


@pytest.mark.parametrize("wanted", [False, True])
def test_wandb_keeps_the_best_checkpoint_once_and_only_if_wanted(no_key, tmp_path, wanted):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    logger = make_wandb(tmp_path, checkpoint=wanted)
    logger.finalize("success")
    logger.finalize("success")  # after the test
    logger.experiment.finish()
    kept = records(tmp_path).get("artifact", [])
    assert len(kept) == wanted
    if wanted:
        assert (kept[0]["type"], sorted(kept[0]["aliases"])) == ("model", ["best", "latest"])
        assert [content["path"] for content in kept[0]["manifest"]["contents"]] == ["best.ckpt"]


@pytest.fixture
def messages(warnings):
    """What the lab's log says, hints too."""
    log = logging.getLogger("vaelab")
    level = log.level
    log.setLevel(logging.INFO)
    yield warnings
    log.setLevel(level)


@pytest.mark.parametrize("in_sweep", [False, True])
def test_an_offline_run_says_once_how_to_send_it_and_one_of_a_sweep_does_not(no_key, tmp_path, messages, in_sweep):
    run = tmp_path / "a sweep" / "0 run"
    run.mkdir(parents=True)
    logger = make_wandb(run, group="a sweep" if in_sweep else None)
    logger.finalize("success")
    logger.finalize("success")
    logger.experiment.finish()
    said = [line for line in messages if "wandb sync" in line]
    assert len(said) == (not in_sweep)
    assert in_sweep or said[0].endswith(f"WANDB_RESUME=allow wandb sync '{run}'/wandb")


def test_a_run_of_a_wandb_sweep_has_the_id_that_its_agent_gives_it(tmp_path, monkeypatch):
    from vaelab.training.loggers.wandb import _run_id

    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert _run_id(tmp_path / "alone") != "given"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert _run_id(tmp_path / "a") == "given"
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    assert _run_id(tmp_path / "a") == "given"


# --- sending offline runs -----------------------------------------------------------------------


def test_a_run_resumed_offline_becomes_one_whole_run_when_it_is_sent(no_key, tmp_path, monkeypatch):
    """By the command that is printed; without WANDB_RESUME the second folder is written over the first."""
    from vaelab.runs import offline

    monkeypatch.chdir(tmp_path)
    run = Path("a run")
    for part in ((10, 20, 30), (40, 50)):
        logger = make_wandb(run)
        for step in part:
            logger.log_metrics({"val/elbo": float(-step)}, step=step)
        logger.finalize("success")
        logger.experiment.finish()
        time.sleep(1.1)  # the names of the folders have seconds
    assert len(offline.unsent(run)) == 2

    line = offline.sync_line([run]).replace(" wandb ", f" {sys.executable} -m wandb ", 1)
    with wandb_server() as server:
        environment = os.environ | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": 40 * "0"}
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ((_, files),) = server.runs.items()  # one run
    history = [json.loads(text) for _, text in sorted(files["wandb-history.jsonl"].items())]
    assert [item["trainer/global_step"] for item in history] == [10, 20, 30, 40, 50]
    assert [item["_step"] for item in history] == [0, 1, 2, 3, 4]
    assert offline.unsent(run) == []


# --- TensorBoard ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What TensorBoard reads of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from vaelab.training.loggers import TensorBoard

    run = tmp_path_factory.mktemp("run")
    logger = TensorBoard(run=run)
    assert isinstance(logger, PictureLogger)
    logger.log_hyperparams({"seed": 3, "model": {"latent_dim": 20}})
    logger.log_metrics({"val/elbo": -103.5}, step=700)
    logger.log_metrics({"val/elbo": -99.5}, step=1400)
    logger.log_picture("samples", PICTURE, 1400)
    logger.log_bars("code_counts", torch.arange(1024).double(), 1400)
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_keeps_metrics_at_their_steps(events):
    assert [(event.step, event.value) for event in events.Scalars("val/elbo")] == [(700, -103.5), (1400, -99.5)]


def test_tensorboard_keeps_pictures_as_they_are(events, tmp_path):
    (event,) = events.Images("pictures/samples")
    assert event.step == 1400
    path = tmp_path / "picture.png"
    path.write_bytes(event.encoded_image_string)
    with Image.open(path) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    assert torch.equal(pixels.view(20, 30, 3), PICTURE)


def test_tensorboard_keeps_one_bar_per_value(events):
    (event,) = events.Histograms("histograms/code_counts")
    histogram = event.histogram_value
    assert event.step == 1400
    assert list(histogram.bucket) == list(range(1024))
    assert list(histogram.bucket_limit) == [i + 0.5 for i in range(1024)]
    assert histogram.num == 1023 * 512
    assert histogram.sum == sum(i * i for i in range(1024))
    assert histogram.sum_squares == sum(i**3 for i in range(1024))
