"""Sweeps: a folder per job, failures that stop nothing else, an exit code that says so."""

from __future__ import annotations

import json


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
    assert "model=cvae needs labels" in (tmp_path / "sweep" / "1-cvae-fake" / "run.log").read_text()
    assert "1-cvae-fake" in result.out


def test_the_exit_code_does_not_depend_on_how_the_folder_is_given(train):
    for folder in ("hydra.sweep.dir=a", "sweep.dir='b c'"):
        result = train("-m", "model=cvae", "seed=0,1", "dataset.classes=null", folder)
        assert result.code == 1
        assert result.out.count("failed") == 2


def test_a_sweep_again_leaves_finished_runs_alone(train, tmp_path):
    arguments = ("-m", "model=vae,ae", "sweep.dir=sweep", "trainer.max_epochs=1")
    train(*arguments)
    before = {p: p.read_text() for p in (tmp_path / "sweep").glob("*/summary.json")}
    again = train(*arguments)
    assert again.code == 0
    assert again.out.count("done already") == 2
    assert before == {p: p.read_text() for p in (tmp_path / "sweep").glob("*/summary.json")}


def test_a_job_without_a_needed_value_fails_alone(train):
    result = train("-m", "dataset=folder,fake", "trainer.max_epochs=1", "sweep.dir=sweep", small=False)
    assert result.code == 1
    assert "dataset.root" in result.out + result.err
    assert "finished" in result.out


def test_a_job_of_a_sweep_can_be_resumed(train, tmp_path):
    train("-m", "model=vae,ae", "sweep.dir=sweep", "trainer.max_epochs=1")
    result = train("resume=sweep/1-ae-fake", "trainer.max_epochs=2")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "sweep" / "1-ae-fake" / "summary.json").read_text())["epochs"] == 2


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
