"""`vaelab bench`: what it measures moves with what it is about, and it keeps nothing."""

from __future__ import annotations

import json
import time

import pytest
import pytorch_lightning as pl

import vaelab.sweeps.timing
from tests.conftest import SMALL
from tests.test_conf import options
from vaelab.cli import main

QUICK = [*(s for s in SMALL if "epochs" not in s), "bench.steps=3", "bench.rounds=2"]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Runs `vaelab bench` in an empty folder. Returns exit code, figures, printed text, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vaelab.sweeps.timing, "MATRIX", 256)

    def run(*arguments):
        given = {a.partition("=")[0] for a in arguments}
        defaults = [a for a in QUICK if a.partition("=")[0] not in given]
        code = main(["bench", *defaults, "bench.output=figures.json", *arguments])
        file = tmp_path / "figures.json"
        return code, json.loads(file.read_text()) if file.exists() else {}, *capsys.readouterr()

    return run


@pytest.mark.parametrize("model", options("model"))
def test_every_variant(bench, tmp_path, model):
    code, figures, out, err = bench(f"model={model}")
    assert code == 0, err
    assert 0 < figures["bare_ms"]["least"] <= figures["bare_ms"]["median"] <= figures["bare_ms"]["greatest"]
    assert figures["lab_ms"]["median"] > 0
    assert set(figures["parts_ms"]) == {"data", "forward", "backward", "optimiser"}
    assert figures["operations"] > 0
    assert figures["batch_size"] == 32
    assert figures["lean_loop"]
    assert f"{model}-fake on cpu" in out
    parts = [line.rsplit(maxsplit=2) for line in out.splitlines() if line.endswith("%")]
    assert sum(float(ms) for _, ms, _ in parts) == pytest.approx(
        figures["bare_ms"]["median"] * figures["ratio"]["median"], abs=0.04
    )
    assert sum(float(share.rstrip("%")) for *_, share in parts) == pytest.approx(100, abs=0.4)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_operations_of_a_linear_layer_are_counted(bench):
    _, figures, *_ = bench("model=ae", "network.hidden_dims=[]", "model.latent_dim=5")
    once = 2 * 32 * 64 * 5  # a matrix product, 32 images of 64 pixels
    assert figures["operations"] == 5 * once  # two forward; backward twice each, less that of the images


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer.fast_dev_run=true"],
        ["trainer.max_time=00:00:00:01"],
        ["dataset.val_size=0"],
        pytest.param(["compile=true"], marks=pytest.mark.slow),
    ],
)
def test_what_would_bend_a_run_does_not_bend_the_figures(bench, arguments):
    code, figures, _, err = bench(*arguments)
    assert code == 0, err
    assert figures["operations"] == bench()[1]["operations"]


class Slow(pl.Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.05)


def test_what_slows_the_lab_shows_in_the_labs_figures_alone(bench, monkeypatch):
    monkeypatch.setattr(vaelab.sweeps.timing, "Slow", Slow, raising=False)
    _, figures, out, _ = bench("+callbacks.slow={_target_: vaelab.sweeps.timing.Slow}")
    assert figures["lab_ms"]["least"] >= 50
    assert figures["bare_ms"]["median"] < 50
    assert figures["ratio"]["median"] > 1
    assert not figures["lean_loop"]
    assert "Lightning's own" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-m", "seed=0,1"], "-m"),
        (["resume=last"], "resume="),
        (["bench.rounds=1"], "bench.rounds"),
        (["bench.steps=many"], "bench.steps"),
        (["bench.output=nowhere/figures.json"], "bench.output"),
        (["accelerator=ddp_cpu"], "accelerator"),
        (["dataset.batch_size=2000"], "dataset.batch_size"),
        (["trainer.limit_train_batches=1"], "dataset.batch_size"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches"),
        (["logger=wandb"], "logger=wandb"),
        (["logger=[csv,mlflow]"], "logger=mlflow"),
        (["bench=null"], "bench"),
        (["~bench.steps"], "bench.steps"),
        (["model.latnt_dim=3"], "model.latent_dim"),
        (["model.latent_dim=-3"], "model.latent_dim"),
    ],
)
def test_refusals(bench, arguments, named):
    code, figures, _, err = bench(*arguments)
    assert code == 2
    assert named in err
    assert len(err.strip().splitlines()) <= 2
    assert not figures
