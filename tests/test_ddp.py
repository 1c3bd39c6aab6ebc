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


@pytest.mark.parametrize("model", ["capacity"])
def test_both_numbers_of_processes_see_every_image_once(tmp_path, model):
    """The test split's figures are exact means, whatever the number of processes: no padding, no image twice."""
    done = run(tmp_path, f"model={model}", "run.dir=run", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4  # header, two steps (the second shared with the epoch's row), the test's row
