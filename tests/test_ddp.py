"""Two processes on the processor, from the installed command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL

VAELAB = Path(sys.executable).parent / "vaelab"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    small = [a for a in SMALL if not a.startswith("trainer.accelerator")]
    command = [VAELAB, "train", *small, "accelerator=ddp_cpu", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_two_processes_train_and_one_resumes(tmp_path):
    done = run(tmp_path, "model=capacity", "run.dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["processes"] == 2
    assert done.stdout.count("run: run") == 1
    # 87 training images in global batches of 64: 64 and 23
    assert summary["steps"] == 4
    command = [VAELAB, "train", "resume=run", "accelerator=cpu", "trainer.max_epochs=3"]
    resumed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_two_jobs_of_a_sweep(tmp_path):
    done = run(tmp_path, "-m", "model=vae,vqvae", "sweep.dir=sweep", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    for name in ("0-vae-fake", "1-vqvae-fake"):
        summary = json.loads((tmp_path / "sweep" / name / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert summary["processes"] == 2


def test_every_image_is_seen_once_whatever_the_number_of_processes(tmp_path):
    """A noise-free model's figures agree: no padding, no image twice, also in the short last batches."""
    arguments = ["model=ae", "optimizer.lr=1e-9", "trainer.max_epochs=1", "trainer.log_every_n_steps=50"]
    two = run(tmp_path, *arguments, "run.dir=two")
    assert two.returncode == 0, two.stderr
    command = [VAELAB, "train", *SMALL, *arguments, "run.dir=one"]
    one = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert one.returncode == 0, one.stderr
    a, b = (json.loads((tmp_path / r / "summary.json").read_text())["metrics"] for r in ("one", "two"))
    for name in ("train/reconstruction", "val/reconstruction", "test/reconstruction"):
        assert a[name] == pytest.approx(b[name], rel=1e-6)


def test_a_run_interrupted_in_an_epoch_goes_on_with_two_processes(tmp_path):
    """The figures of the unfinished epoch lie in the first process; no other waits for them."""
    command = [VAELAB, "train", *SMALL, "run.dir=run", "trainer.max_epochs=-1", "trainer.max_steps=4"]
    one = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert one.returncode == 0, one.stderr
    longer = ["trainer.max_steps=-1", "trainer.max_epochs=3"]
    command = [VAELAB, "train", "resume=run", "accelerator=ddp_cpu", *longer]
    two = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2
