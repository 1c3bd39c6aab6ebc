"""`vaelab plan`: what it says beforehand is what `vaelab train` then does, and it leaves nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import pytorch_lightning as pl
import yaml

import vaelab.sweeps.forecast
import vaelab.training.callbacks
from tests.conftest import SMALL
from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.sweeps.forecast import Cost, Length, _length, _limited, _seconds

BRIEF = [*SMALL, "plan.steps=2"]


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(vaelab.sweeps.forecast, "SHORT", 0.0)


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Runs `vaelab plan` in an empty folder. Returns exit code, rows, printed text, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = {a.partition("=")[0] for a in arguments}
        defaults = [a for a in BRIEF if a.partition("=")[0] not in given]
        file = tmp_path / "plan.json"
        file.unlink(missing_ok=True)
        capsys.readouterr()
        code = main(["plan", *defaults, f"plan.output={file}", *arguments])
        return code, json.loads(file.read_text()) if file.exists() else [], *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_plan_is_what_training_does(train, plan, tmp_path):
    """Keys, steps, epochs and the weights at the end, against the runs' own files."""
    arguments = ("model=beta,capacity", "trainer.max_epochs=2,3", "dataset.batch_size=20", "sweep.dir=sweep")
    code, rows, _, err = plan("-m", *arguments)
    assert code == 0, err
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    train("-m", *arguments)
    for row in rows:
        (folder,) = (tmp_path / "sweep").glob(f"{row['number']}-*")
        summary = json.loads((folder / "summary.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (row["steps"], row["epochs"]) == (summary["steps"], summary["epochs"])
        assert row["settings"]["trainer.max_epochs"] == config["trainer"]["max_epochs"]
        assert row["settings"]["model"] == folder.name.split("-")[1]
        objective = summary["objective"]
        last = 1 - 1 / row["steps"]  # schedules are set before a step, the plan's value is after the last
        if row["settings"]["model"] == "beta":
            assert 1 + (row["beta"] - 1) * last == pytest.approx(objective["beta"])  # a ramp from 1
            ratio = objective["beta_if_mean_reduced"] / objective["beta"]
            assert row["beta_if_mean_reduced"] == pytest.approx(row["beta"] * ratio)
        else:
            assert row["capacity"] == summary["metrics"]["val/capacity"] == 25  # from three quarters of the run on


@pytest.mark.slow
def test_states_are_those_that_training_finds(train, plan, tmp_path):
    """Done, begun and new: of a run that was cut off, the steps of its checkpoint are not counted again."""
    arguments = ("-m", "model=vae", "seed=0,1,2", "trainer.max_epochs=2", "sweep.dir=sweep")
    train(*arguments)
    summary = tmp_path / "sweep/1-vae-fake/summary.json"
    steps = json.loads(summary.read_text())["steps"]
    summary.unlink()
    shutil.rmtree(tmp_path / "sweep/2-vae-fake")
    before = sorted(tmp_path.glob("sweep/**/*"))
    code, rows, out, err = plan(*arguments[:-2], "trainer.max_epochs=2", arguments[-1])
    assert code == 0, err
    assert [row["state"] for row in rows] == ["done", "begun", "new"]
    assert [row["steps_done"] for row in rows] == [0, steps, 0]
    assert rows[0]["seconds"] is None
    assert 0 < rows[1]["seconds"] < rows[2]["seconds"]
    assert "3 jobs: 1 done, 1 begun, 1 new" in out
    assert sorted(tmp_path.glob("sweep/**/*")) == before


def test_one_kind_of_job_is_measured_once(plan, monkeypatch):
    measured = []
    real = vaelab.sweeps.forecast._measure

    def counted(config, run, steps):
        measured.append(config["model"]["latent_dim"])
        return real(config, run, steps)

    monkeypatch.setattr(vaelab.sweeps.forecast, "_measure", counted)
    code, rows, *_ = plan("-m", "model=beta", "model.beta=1,2.5", "seed=0,1", "model.latent_dim=2,3")
    assert code == 0
    assert sorted(measured) == [2, 3]
    assert len({row["seconds"] for row in rows}) == 2


def test_nothing_is_measured_if_not_asked(plan, monkeypatch):
    monkeypatch.setattr(vaelab.sweeps.forecast.pl.Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    code, rows, out, _ = plan("plan.steps=0")
    assert code == 0
    assert rows[0]["seconds"] is None
    assert "one run" in out


class Stop(pl.Callback):
    """Ends a measurement after some steps: as Ctrl-C does, or as training that has reached its aim."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_end(self, trainer, *_):
        if self.how == "interrupt":
            raise KeyboardInterrupt
        trainer.should_stop = True


@pytest.mark.parametrize(("how", "ends"), [("interrupt", 130), ("stop", 0)])
def test_a_measurement_that_ends_early(plan, monkeypatch, how, ends):
    monkeypatch.setattr(vaelab.training.callbacks, "Stop", Stop, raising=False)
    code, rows, _, err = plan(f"+callbacks.stop={{_target_:vaelab.training.callbacks.Stop,how:{how}}}", "model=vae")
    assert code == ends, err
    assert [row["seconds"] for row in rows] == [None] * (ends == 0)
    assert ("interrupted" in err) == (ends == 130)


def test_jobs_that_would_be_refused_are_named_and_the_others_planned(plan):
    code, rows, out, err = plan("-m", "model=vae,cvae", "dataset.classes=null")
    assert code == 2
    assert [row["state"] for row in rows] == ["new", "refused"]
    assert err.startswith("vaelab: job 1: condition=label needs labels")
    assert "2 jobs: 1 new, 1 refused" in out


def test_a_search_is_told_by_its_first_trial(plan):
    pytest.importorskip("optuna")
    search = ("hydra/sweeper=optuna", "n_trials=7", "optimize=val/elbo", "model.latent_dim=range(2,9)")
    code, rows, out, err = plan("-m", *search, "sweep.dir=sweep")
    assert code == 0, err
    assert len(rows) == 1
    assert "a search of 7 trials, 0 of them made" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "model.betta=1,2"], "model.betta: no such key"),
        (["-m", "model=vae,nope"], "model=nope"),
        (["plan.steps=-1"], "steps=-1"),
        (["plan.stepps=3"], "plan.stepps"),
        (["plan.output=no/such/folder.json"], "plan.output="),
        (["resume=last"], "resume="),
        (["trainer.fast_dev_run=true"], "trainer.fast_dev_run"),
        (["-m", "run.dir=run", "seed=0,1"], "name the sweep's with sweep.dir="),
        (["-m", "sweep.dir=file", "seed=0,1"], "sweep.dir=file: it is no folder"),
        (["run.dir=."], "run.dir=. is not empty"),
        (["-m", "model=cvae", "dataset.classes=null", "seed=0,1,2"], "all jobs: condition=label needs labels"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: there is nothing"),
        (["-m", "hydra/launcher=nope"], "hydra/launcher=nope"),
    ],
)
def test_bad_input(plan, tmp_path, arguments, says):
    (tmp_path / "file").touch()
    code, rows, _, err = plan(*arguments)
    assert code == 2
    assert all(row["state"] == "refused" for row in rows)
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


# --- arithmetic -------------------------------------------------------------------------------


class Data:
    train, val, test, batch_size = range(1000), range(100), range(250), 100


def length(processes=1, test=True, **trainer):
    ends = {"max_epochs": 5, "max_steps": -1, "max_time": None, "accumulate_grad_batches": 1, "overfit_batches": 0.0}
    limits = {"limit_train_batches": None, "limit_val_batches": None, "limit_test_batches": None}
    intervals = {"val_check_interval": None, "check_val_every_n_epoch": 1}
    return _length({"trainer": ends | limits | intervals | trainer, "test": test}, Data, processes)


def test_lengths():
    assert length() == Length(batches=10, per_epoch=10, validated=1, validations=1, tested=3, steps=50, epochs=5)
    assert length(processes=2)[:2] == (5, 5)
    assert length(accumulate_grad_batches=4)[:2] == (10, 3)
    assert length(max_steps=25)[-2:] == (25, 3)
    assert length(max_steps=70)[-2:] == (50, 5)
    assert length(max_epochs=-1)[-2:] == (None, None)
    assert length(max_epochs=None)[-2:] == (10_000, 1000)
    assert length(max_epochs=None, max_time="00:01:00:00")[-2:] == (None, None)
    assert length(limit_train_batches=0.25).batches == 2
    assert length(limit_train_batches=4).batches == 4
    assert length(check_val_every_n_epoch=5).validations == 0.2
    assert length(val_check_interval=0.5).validations == 2
    assert length(val_check_interval=2).validations == 5
    assert length(val_check_interval=4).validations == 2
    assert length(val_check_interval=4, check_val_every_n_epoch=None).validations == 2.5
    assert length(val_check_interval=0.01).validations == 10  # after every batch, and no more often
    assert length(val_check_interval="00:00:10:00").validations == 0
    assert length(limit_val_batches=0, val_check_interval=11).validations == 0
    with pytest.raises(UserError, match=r"val_check_interval=11: an epoch has 10 batches"):
        length(val_check_interval=11)
    assert length(test=False).tested == 0
    assert _limited(10, 0) == 0


def test_time_is_the_sum_of_its_parts():
    cost = Cost(start=7.0, batch=0.1, validation=0.02, end=0.5)
    of_an_epoch = 10 * 0.1 + 0.02 + 0.5
    assert _seconds(cost, length(), 0.0) == pytest.approx(7 + 5 * of_an_epoch + 3 * 0.02)
    assert _seconds(cost, length(), 0.6) == pytest.approx(7 + 2 * of_an_epoch + 3 * 0.02)
    assert _seconds(cost, length(max_steps=25), 0.0) == pytest.approx(7 + 2.5 * of_an_epoch + 3 * 0.02)
