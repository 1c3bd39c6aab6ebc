"""Every option of Lightning's Trainer that a config takes has its effect, or is refused with its key."""

from __future__ import annotations

import csv
import inspect

import pytest
import pytorch_lightning as pl
import torch

from vaelab.training import fit
from vaelab.training.options import Trainer

GIVEN = {"self", "callbacks", "logger"}
"""Arguments that the program gives."""
TOGETHER = [
    {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "num_nodes": 1, "precision": "32-true", "max_epochs": 2,
        "min_epochs": 1, "max_steps": 3, "min_steps": 1, "max_time": "00:01:00:00", "limit_train_batches": 2,
        "limit_val_batches": 1, "limit_test_batches": 1, "limit_predict_batches": 1, "val_check_interval": 1,
        "num_sanity_val_steps": 1, "log_every_n_steps": 1, "enable_checkpointing": True, "enable_progress_bar": True,
        "enable_model_summary": True, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value", "benchmark": False,
        "inference_mode": True, "use_distributed_sampler": True, "detect_anomaly": True, "sync_batchnorm": True,
        "default_root_dir": "elsewhere", "profiler": "simple",
    },
    {
        "check_val_every_n_epoch": 2, "accumulate_grad_batches": 2, "deterministic": "warn", "overfit_batches": 2,
        "enable_checkpointing": False, "enable_progress_bar": False,
    },
    {"precision": "bf16-mixed", "fast_dev_run": 2},
]  # fmt: skip
"""Options that are tried in one run."""
REFUSED_OR_NOT = {
    "barebones": True,
    "plugins": "{_target_:pytorch_lightning.plugins.environments.LightningEnvironment}",
    "reload_dataloaders_every_n_epochs": 1,
    "enable_autolog_hparams": False,
    "model_registry": "models",
}
"""Options that are tried alone."""


def test_every_option_of_lightning_is_known_and_tried():
    offered = Trainer.__annotations__.keys() - {"_target_"}
    assert offered == inspect.signature(pl.Trainer.__init__).parameters.keys() - GIVEN
    assert offered == {name for options in (*TOGETHER, REFUSED_OR_NOT) for name in options}


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_options_have_their_effect(train):
    made = [train(*(f"trainer.{name}={value}" for name, value in options.items())) for options in TOGETHER]
    assert [run.code for run in made] == [0, 0, 0], [run.err for run in made]
    first, second, _ = made
    steps = [row["step"] for row in rows(first.run) if row.get("step/loss")]
    assert steps == ["1", "2", "3"]  # log_every_n_steps, max_steps
    assert len([row for row in rows(first.run) if row.get("val/loss")]) == 3  # val_check_interval
    assert (first.run / "checkpoints" / "last.ckpt").is_file()
    assert not (second.run / "checkpoints").exists()  # enable_checkpointing
    assert second.summary["steps"] == second.summary["epochs"]  # two batches of an epoch, accumulated


@pytest.mark.parametrize("name", REFUSED_OR_NOT)
def test_an_option_works_or_is_refused_with_its_key(train, name):
    made = train(f"trainer.{name}={REFUSED_OR_NOT[name]}")
    assert made.code in (0, 2), made.err
    assert "Traceback" not in made.err
    if made.code == 2:
        assert f"trainer.{name}" in made.err or "trainer:" in made.err


def test_products_in_lower_precision_are_for_a_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    config = {"channels_last": False, "compile": False, "matmul_precision": "high"}
    for device in ("cpu", "cuda"):
        fit.hasten(config, None, None, device)  # type: ignore[arg-type]
    assert chosen == ["high"]
