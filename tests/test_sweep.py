"""Sweeps: a folder per job, each done once, failures that stop nothing else, an exit code that says so."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import SMALL, once
from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.report import gallery
from vaelab.runs import jobs, jobs_of, read_config
from vaelab.training import checks
from vaelab.training.summary import sweep_table

SWEEP = ("-m", "model=vae,ae", "sweep.dir=sweep", "trainer.max_epochs=1")


@pytest.fixture
def swept(train, shared) -> None:
    """Puts the finished SWEEP into the test's folder."""

    def make(folder: Path) -> None:
        assert train(*SWEEP).code == 0
        shutil.move("sweep", folder)

    shutil.copytree(once(shared / "swept", make), "sweep")


def test_every_combination_has_its_own_folder(train, tmp_path):
    result = train("-m", "model=vae,ae", "seed=0,1", "sweep.dir=sweep", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    folders = sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir())
    assert folders == ["0-vae-fake", "1-vae-fake", "2-ae-fake", "3-ae-fake"]
    for name in folders:
        assert (tmp_path / "sweep" / name / "checkpoints" / "best.ckpt").exists()
        assert name in result.out
    assert "finished" in result.out


def test_a_failed_job_stops_no_other_and_the_exit_code_says_so(train, tmp_path):
    result = train("-m", "model=vae,cvae,ae", "dataset.classes=null", "sweep.dir=sweep", "trainer.max_epochs=1")
    assert result.code == 1
    states = {p.parent.name: json.loads(p.read_text())["status"] for p in (tmp_path / "sweep").glob("*/summary.json")}
    assert states == {"0-vae-fake": "finished", "1-cvae-fake": "failed", "2-ae-fake": "finished"}
    assert "condition=label needs labels" in (tmp_path / "sweep" / "1-cvae-fake" / "run.log").read_text()
    assert "1-cvae-fake" in result.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["seed=0,1", "model.latent_dim=0"], ["all jobs: model.latent_dim=0: must be greater than 0"]),
        (
            ["model=vae,ae", "model.latent_dim=0,-1"],
            ["jobs 0, 2: model.latent_dim=0: must", "jobs 1, 3: model.latent_"],
        ),
        (["model.latent_dim=0,-1,-2,-3"], ["job 0: ", "3 other reasons for other jobs: vaelab plan -m … has them all"]),
    ],
)
def test_a_sweep_of_which_no_job_can_be_trained_begins_none(train, tmp_path, arguments, says):
    result = train("-m", *arguments, "sweep.dir=a/sweep")
    assert (result.code, result.out) == (2, "")
    lines = result.err.removeprefix("vaelab: ").splitlines()
    assert [line[: len(said)] for line, said in zip(lines, says, strict=True)] == says
    assert not (tmp_path / "a").exists()


def test_ctrl_c_before_the_first_job_leaves_nothing(train, tmp_path, monkeypatch):
    def press(config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "check_options", press)
    result = train("-m", "seed=0,1", "sweep.dir=a/sweep")
    assert result.code == 130
    assert "no job had begun: the same command begins them" in result.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("more", [[], ["hydra.sweeper.max_batch_size=1"]])
def test_jobs_that_cannot_be_trained_are_named_before_the_others_begin(train, tmp_path, more):
    result = train("-m", "model.latent_dim=2,3,0", "sweep.dir=sweep", "trainer.max_epochs=1", *more)
    assert result.code == 1
    assert result.err.startswith("warning: job 2: model.latent_dim=0: must be greater than 0\n")
    assert result.err.count("warning: job 2") == 1
    states = {p.parent.name: json.loads(p.read_text())["status"] for p in (tmp_path / "sweep").glob("*/summary.json")}
    assert states == {"0-vae-fake": "finished", "1-vae-fake": "finished", "2-vae-fake": "failed"}


def test_the_exit_code_does_not_depend_on_how_the_folder_is_given(train):
    for folder in ("hydra.sweep.dir=a", "sweep.dir='b c'"):
        result = train("-m", "model=cvae", "seed=0,1", "dataset.classes=null", folder)
        assert result.code == 1
        assert result.out.count("failed") == 2


def test_a_sweep_again_leaves_finished_runs_alone(train, swept, tmp_path):
    before = {p: p.is_file() and p.read_bytes() for p in (tmp_path / "sweep").glob("[0-9]*/**/*")}
    again = train(*SWEEP)
    assert again.code == 0
    assert again.out.count("done already") == 2
    assert before == {p: p.is_file() and p.read_bytes() for p in (tmp_path / "sweep").glob("[0-9]*/**/*")}


def test_a_job_without_a_needed_value_fails_alone(train):
    result = train("-m", "dataset=folder,fake", "trainer.max_epochs=1", "sweep.dir=sweep", small=False)
    assert result.code == 1
    assert "\nvaelab: dataset.root: this value must be given: dataset.root=…\n" in result.err
    assert "finished" in result.out
    with pytest.raises(UserError, match=r"0-vae-folder was never trained: dataset\.root: this value must be given"):
        read_config(Path("sweep/0-vae-folder"))


def test_a_job_of_a_sweep_can_be_resumed(train, swept, tmp_path):
    result = train("resume=sweep/1-ae-fake", "trainer.max_epochs=2")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "sweep" / "1-ae-fake" / "summary.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_every_job_is_a_wandb_run_of_its_own_in_one_group(train, tmp_path):
    arguments = ("logger=wandb", "sweep.dir=sweep", "trainer.max_epochs=1", "model.latent_dim=2")
    result = train("-m", "model=vae,ae", *arguments)
    assert result.code == 0, result.err
    for name in ("0-vae-fake", "1-ae-fake"):
        (log,) = (tmp_path / "sweep" / name).glob("wandb/offline-run-*/run-*.wandb")
        text = log.read_bytes()
        assert text.count(b"train/reconstruction") > 0
        assert b"sweep" in text
        assert b"latent_dim" in text


def test_resume_is_not_for_sweeps(train):
    result = train("-m", "resume=somewhere", "seed=0,1")
    assert result.code == 2
    assert "-m" in result.err


LONG = ("-m", "model=vae,beta", "sweep.dir=sweep", "trainer.max_epochs=4")


def states(sweep: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["status"] for path in sweep.glob("*/summary.json")}


def checkpoint(run: Path) -> dict:
    import torch

    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def weights(run: Path) -> bytes:
    return b"".join(values.numpy().tobytes() for values in checkpoint(run)["state_dict"].values())


@pytest.mark.slow
def test_an_interrupted_job_goes_on_and_a_failed_one_begins_anew(train, tmp_path):
    """And the end is that of a sweep that was left alone."""
    whole = train(*LONG[:2], "sweep.dir=whole", LONG[3])
    assert whole.code == 0, whole.err
    train(*LONG[:3], "trainer.max_epochs=2")
    for folder in (tmp_path / "sweep").glob("*-fake"):  # as a kill in the middle leaves them
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("max_epochs: 2", "max_epochs: 4"))
        (folder / "summary.json").unlink()
    failed = tmp_path / "sweep" / "1-beta-fake"
    (failed / "summary.json").write_text('{"status": "failed", "error": "no luck"}')
    again = train(*LONG)
    assert again.code == 0, again.err
    assert states(tmp_path / "sweep") == {"0-vae-fake": "finished", "1-beta-fake": "finished"}
    for name in states(tmp_path / "sweep"):
        assert weights(tmp_path / "sweep" / name) == weights(tmp_path / "whole" / name)
    epochs = [row["epoch"] for row in csv.DictReader((failed / "kl_per_dim.csv").open(newline=""))]
    assert epochs == ["0.0", "1.0", "2.0", "3.0"]
    assert (tmp_path / "sweep" / "sweep.csv").read_text() == (tmp_path / "whole" / "sweep.csv").read_text().replace(
        "whole/", "sweep/"
    )


@pytest.mark.slow
def test_a_sweep_that_grows_does_the_new_jobs_alone(train, tmp_path):
    train("-m", "model=vae", "seed=1,2", "sweep.dir=sweep", "trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/checkpoints/*")}
    more = train("-m", "model=vae", "seed=0,1,2", "sweep.dir=sweep", "trainer.max_epochs=1")
    assert more.code == 0, more.err
    assert more.out.count("done already") == 2
    assert {path: path.read_bytes() for path in before} == before
    seeds = {folder.name: read_config(folder)["seed"] for folder in jobs_of(tmp_path / "sweep")}
    assert seeds == {"0-vae-fake": 1, "1-vae-fake": 2, "2-vae-fake": 0}


MOVES = {"download": True}  # data that may lie anywhere


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"run": {"dir": "elsewhere"}}, True),
        ({"logger": {"wandb": {}}}, True),
        ({"dataset": {"root": "b", "size": 3} | MOVES}, True),
        ({"dataset": {"root": "a", "size": 3}}, False),
        ({"dataset": {"root": "a", "size": 4} | MOVES}, False),
        ({"seed": 2}, False),
        ({"model": {"beta": 4.0}}, False),
    ],
)
def test_the_identity_of_a_job_is_what_it_trains(change, same):
    config = {"seed": 1, "model": {"beta": 1.0}, "dataset": {"root": "a", "size": 3} | MOVES, "run": {"dir": "here"}}
    assert (jobs.identity(config) == jobs.identity(config | change)) is same


@pytest.mark.parametrize(
    ("status", "checkpoint", "state"),
    [
        ("finished", True, "done"),
        ("pruned", True, "done"),
        ("interrupted", True, "begun"),
        (None, True, "begun"),  # killed
        (None, "cut short", "new"),
        (None, False, "new"),
        ("interrupted", False, "new"),
        ("failed", True, "new"),
        ("diverged", True, "new"),
    ],
)
def test_how_far_a_job_is(status, checkpoint, state, tmp_path):
    if status:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    if checkpoint:
        (tmp_path / "checkpoints").mkdir()
        with zipfile.ZipFile(tmp_path / "checkpoints" / "last.ckpt", "w"):
            pass
        if checkpoint == "cut short":
            (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    assert jobs.state_of(tmp_path) == state


def test_two_sweeps_in_one_folder_at_once_are_refused(train, tmp_path):
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = train("-m", "model=vae,ae", "sweep.dir=sweep")
    assert refused.code == 2
    assert "sweep.dir=sweep: another sweep" in refused.err
    assert "Traceback" not in refused.err
    assert not list((tmp_path / "sweep").glob("*/*"))
    assert train("-m", "model=vae,ae", "sweep.dir=sweep", "trainer.max_epochs=1").code == 0


def test_a_sweep_over_a_key_that_is_not_leaves_nothing(train, tmp_path):
    result = train("-m", "nokey=1,2", "sweep.dir=sweep")
    assert result.code == 2
    assert "nokey: no such key" in result.err
    assert "sweep:" not in result.out
    assert not (tmp_path / "sweep").exists()


def test_a_launcher_that_is_not_installed_names_its_extra(train, monkeypatch):
    from hydra.errors import MissingConfigException

    from vaelab.commands.answers import message

    listed = (
        "Could not find 'hydra/launcher/joblib'\n\nAvailable options in 'hydra/launcher':\n\tbasic\nConfig search path"
    )
    said = message(MissingConfigException(listed, "hydra/launcher/joblib"), "train", [])
    assert said.endswith('pip install "vaelab[joblib]"')
    assert train("-m", "hydra/launcher=nope", "seed=0,1").code == 2


def test_the_answer_has_means_over_seeds(train, tmp_path):
    result = train("-m", "model=vae", "model.latent_dim=2,3", "seed=0,1", "sweep.dir=sweep", "trainer.max_epochs=1")
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").open(newline="")))
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(rows) == len(content["configurations"]) == 2
    assert "±" in result.out
    assert "latent_dim" in result.out


PLAIN = {"seed": 1, "model": {"beta": 1.0}, "dataset": {"size": 3}}


def begin(folder: Path, config: dict, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text(json.dumps(config | {"run": {}}) if name == "config.yaml" else "{}")
    return folder


@pytest.mark.parametrize("left", [[], ["run.log"], ["run.log", "output.txt"]])
def test_a_job_killed_before_it_had_a_config_begins_anew_in_its_folder(left, tmp_path):
    run = begin(tmp_path / "0-vae", PLAIN, *left)
    assert jobs.place(run, PLAIN) == (run, "new")


def test_a_folder_of_another_job_is_left_alone(tmp_path):
    other = begin(tmp_path / "0-vae", PLAIN, "config.yaml")
    begin(tmp_path / "7-vae", PLAIN | {"seed": 2}, "config.yaml")
    begin(tmp_path / "mine", {}, "summary.json")
    assert jobs.place(other, PLAIN | {"seed": 3}) == (tmp_path / "8-vae", "new")
    assert jobs.place(tmp_path / "9-vae", PLAIN | {"seed": 2}) == (tmp_path / "7-vae", "new")
    assert (other / "config.yaml").is_file()


@pytest.mark.slow
def test_a_job_that_is_still_trained_is_waited_for(tmp_path):
    """Nothing of it is touched: what its process leaves is what counts."""
    run = begin(tmp_path / "0-vae", PLAIN, "config.yaml", "run.log")
    script = """
import fcntl, sys, time
with open("run.log", "a") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    print("locked", flush=True)
    time.sleep(0.5)
    open("summary.json", "w").write('{"status": "finished"}')
"""
    other = subprocess.Popen([sys.executable, "-c", script], cwd=run, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    assert jobs.place(run, PLAIN) == (run, "done")
    other.wait()


def test_a_damaged_summary_is_put_aside_and_its_job_goes_on(train, swept, tmp_path):
    summary = tmp_path / "sweep" / "0-vae-fake" / "summary.json"
    before = json.loads(summary.read_text())
    summary.write_text("{")
    again = train("-m", "model=vae,ae,beta", "sweep.dir=sweep", "trainer.max_epochs=1")
    assert again.code == 0, again.err
    assert "0-vae-fake: summary.json is damaged, and put aside" in again.out
    assert (summary.parent / "summary.json.damaged").read_text() == "{"
    assert json.loads(summary.read_text())["metrics"]["test/elbo"] == before["metrics"]["test/elbo"]
    assert (tmp_path / "sweep" / "2-beta-fake" / "checkpoints" / "best.ckpt").is_file()


def test_a_refused_sweep_shows_nothing_of_an_earlier_one(train, swept):
    for wrong in ("model.betta=1", "model.latent_dim=0"):
        again = train(*SWEEP, wrong)
        assert (again.code, again.out) == (2, "")


@pytest.mark.slow
def test_a_page_that_was_not_made_in_time_is_made_by_the_same_command(train, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", {"samples": gallery.FIGURES["samples"]})
    arguments = ("-m", "model=vae", "seed=0,1", "sweep.dir=sweep", "trainer.max_epochs=1", "report=true")
    train(*arguments)
    page = tmp_path / "sweep" / "1-vae-fake" / "report.html"
    page.unlink()
    assert train(*arguments).code == 0
    assert page.is_file()
    later = train(*(a for a in arguments if "report" not in a))
    assert "sweep/report.html is of an earlier start: vaelab report run=sweep makes it anew" in later.out


def test_what_health_says_of_a_job_is_in_the_sweeps_table():
    finding = {"code": "posterior_collapse", "evidence": "", "remedy": ""}
    best = {"by": "val/elbo", "value": -3.0}
    summaries = {"0-beta": {"status": "finished", "best": best, "findings": [finding, finding]}, "1-ae": {"error": "x"}}
    ill, lost = sweep_table(summaries).splitlines()
    assert ill.split() == ["0-beta", "finished", "val/elbo", "-3.000", "posterior_collapse"]
    assert lost.split() == ["1-ae", "?", "x"]


def launched(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A sweep on joblib, in a process group of its own, as a terminal has it."""
    small = [a for a in SMALL if "max_epochs" not in a]
    command = [sys.executable, "-m", "vaelab", "train", "-m", "hydra/launcher=joblib", *small, *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.mark.slow
def test_parallel_jobs_outlive_one_that_fails_and_one_that_is_killed(tmp_path):
    """On joblib; for the other launchers, see `test_launchers`."""
    name = f"sweep{os.getpid()}"  # by which pgrep finds the job, and not one of another test
    arguments = ["model=vae,cvae,beta", "dataset.classes=null", f"sweep.dir={name}", "trainer.max_epochs=100"]
    sweep = launched(tmp_path, *arguments)
    wait_for(tmp_path / name / "2-beta-fake" / "checkpoints" / "last.ckpt")
    (job,) = subprocess.run(["pgrep", "-f", f"_job {name}/2-beta-fake"], capture_output=True, text=True).stdout.split()
    os.kill(int(job), signal.SIGKILL)
    out = sweep.communicate(timeout=400)[0].decode()
    assert sweep.returncode == 1, out
    assert states(tmp_path / name) == {
        "0-vae-fake": "finished",
        "1-cvae-fake": "failed",
        "2-beta-fake": "interrupted",
    }
    assert f"2-beta-fake interrupted: killed by SIGKILL\n  {name}/2-beta-fake/output.txt" in out
    assert "1-cvae-fake failed: condition=label needs labels" in out


@pytest.mark.slow
def test_a_sweep_whose_parent_is_killed_ends_in_the_same_table(train, tmp_path):
    """Its figures, to the last digit, and its weights are those of the same sweep that was left alone."""
    arguments = ["model=vae", "model.latent_dim=2,3", "trainer.max_epochs=40"]
    sweep, run = launched(tmp_path, *arguments, "sweep.dir=sweep"), tmp_path / "sweep" / "0-vae-fake"
    wait_for(run / "checkpoints" / "last.ckpt")
    sweep.kill()
    sweep.communicate()
    again = train("-m", *arguments, "sweep.dir=sweep")  # on any launcher
    assert again.code == 0, again.err
    assert "0-vae-fake goes on" in again.out

    whole = train("-m", *arguments, "sweep.dir=whole")
    assert whole.code == 0, whole.err
    for name in ("sweep.csv", "sweep.json"):
        text = (tmp_path / "whole" / name).read_text()
        assert (tmp_path / "sweep" / name).read_text() == text.replace("whole/", "sweep/")
        assert "whole/" in text
    assert weights(run) == weights(tmp_path / "whole" / run.name)


@pytest.mark.slow
def test_ctrl_c_writes_the_checkpoints_of_parallel_jobs(tmp_path):
    """Those of the moment, though joblib kills its workers."""
    sweep = launched(tmp_path, "model=vae", "seed=0,1", "sweep.dir=sweep", "trainer.max_epochs=2000")
    run = tmp_path / "sweep" / "0-vae-fake"
    wait_for(run / "checkpoints" / "last.ckpt")
    os.killpg(sweep.pid, signal.SIGINT)
    out = sweep.communicate(timeout=400)[0].decode()
    assert sweep.returncode == 130, out
    assert "Traceback" not in out
    assert "0-vae-fake interrupted: the same command goes on with it" in out
    assert "output.txt" not in out
    with (run / "metrics.csv").open(newline="") as file:
        assert checkpoint(run)["global_step"] == max(int(row["step"]) for row in csv.DictReader(file))


@pytest.mark.parametrize("command", ["train", "plan"])
def test_the_folder_of_a_run_is_not_a_sweeps(train, capsys, command):
    run = train("model=vae").run
    before = sorted(run.rglob("*"))
    code = main([command, "-m", "model=vae", "seed=0,1", f"sweep.dir={run}"])
    assert code == 2
    assert (
        capsys.readouterr().err == f"vaelab: sweep.dir={run}: this is the folder of a run: name another for the sweep\n"
    )
    assert sorted(run.rglob("*")) == before
