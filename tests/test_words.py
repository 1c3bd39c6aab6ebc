"""What is neither a flag nor key=value is told so in a line."""

from __future__ import annotations

import pytest

from vaelab.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reconstruct", "--run=runs/x"], "write run=runs/x"),
        (["reconstruct", "runs/x"], "as in run=runs/x"),
        (["train", "--foo"], "--foo: no such flag"),
        (["eval", "-z"], "-z: no such flag"),
        (["train", "seed=0,1"], "vaelab train -m"),
        (["train", "model"], "write key=value"),
    ],
)
def test_words_that_are_no_keys(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert "usage" not in err
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--cfg=job", "-c=job", "--info=defaults"])
def test_flags_of_hydra_work(flag, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", flag]) == 0
    assert capsys.readouterr().out


def test_flags_with_a_value_apart(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--cfg", "job", "model=ae"]) == 0
    assert "vaelab.models.AE" in capsys.readouterr().out


def test_flags_may_come_after_what_takes_a_key_back(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model=ae", "~model.latent_dim", "--cfg", "job"]) == 0
    assert "latent_dim: 20" not in capsys.readouterr().out


def test_completion_has_help(capsys):
    assert main(["completion", "--help"]) == 0
    assert "bash" in capsys.readouterr().out
