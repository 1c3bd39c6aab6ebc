"""Two processes on the processor, from the installed command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from tests.conftest import SMALL
from tests.test_resume import interrupted
from vaelab.runs import read_metrics

pytestmark = pytest.mark.slow

VAELAB = [sys.executable, "-m", "vaelab"]


class Told(pl.Callback):
    """The first process alone is told to end, in the step after `step` steps."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def vaelab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # of Told
    return subprocess.run(
        [*VAELAB, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = [a.partition("=")[0] for a in ("trainer.accelerator", *arguments)]
    small = [a for a in [*SMALL, "accelerator=ddp_cpu"] if a.partition("=")[0] not in given]
    return vaelab(folder, "train", *small, *arguments)


def test_two_processes_take_over_from_one_and_one_from_two(train, monkeypatch, tmp_path):
    """One is interrupted, two go on and are told to end, one ends the run; each image of an epoch is seen once.

    A noise-free model that does not learn has the same figures in every epoch. Its batches are of 32, 32 and 23 images
    with one process, of 64 and 23 with two: the second epoch has two steps of one and one of two.
    """
    frozen = ["model=ae", "optimizer.lr=1e-9", "dataset.size=97", "trainer.max_epochs=3"]
    stopped = interrupted(train, monkeypatch, "on_train_batch_end", 4, *frozen).run
    two = ["accelerator=ddp_cpu", "trainer.accelerator=cpu", "+callbacks.told={_target_:tests.test_ddp.Told,step:5}"]
    told = vaelab(tmp_path, "train", f"resume={stopped}", "~callbacks.stop", *two)
    assert told.returncode == 143, told.stderr
    assert told.stdout.count(f"interrupted; continue with: vaelab train resume={stopped}") == 1
    assert json.loads((stopped / "summary.json").read_text())["status"] == "interrupted"
    # in the middle of the third epoch, after the step in which the first process alone was told
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    rest = train(f"resume={stopped}", "~callbacks.told", "accelerator=cpu")
    assert rest.code == 0, rest.err
    summary = json.loads((stopped / "summary.json").read_text())
    assert (summary["status"], summary["processes"]) == ("finished", 1)
    assert (summary["epochs"], summary["steps"]) == (3, 7)
    one, *others = [row["train/reconstruction"] for row in read_metrics(stopped) if "train/reconstruction" in row]
    assert others == pytest.approx([one, one], rel=1e-6)


def test_two_jobs_of_a_sweep_see_every_image_once(train, tmp_path):
    """A noise-free model's figures are those of one process: no padding, no image twice, also in short last batches."""
    arguments = ["optimizer.lr=1e-9", "trainer.max_epochs=1", "trainer.log_every_n_steps=50"]
    arguments.append("dataset.size=160")  # as many vectors as codes
    done = run(tmp_path, "-m", "model=ae,vqvae", "sweep.dir=sweep", *arguments)
    assert done.returncode == 0, done.stderr
    summaries = []
    for name in ("0-ae-fake", "1-vqvae-fake"):
        assert done.stdout.count(f"run: sweep/{name}\n") == 1, done.stdout
        summaries.append(json.loads((tmp_path / "sweep" / name / "summary.json").read_text()))
        assert (summaries[-1]["status"], summaries[-1]["processes"]) == ("finished", 2)
    assert train("model=ae", *arguments, "run.dir=one").code == 0
    a, b = summaries[0]["metrics"], json.loads((tmp_path / "one" / "summary.json").read_text())["metrics"]
    for name in ("train/reconstruction", "val/reconstruction", "test/reconstruction"):
        assert a[name] == pytest.approx(b[name], rel=1e-6)


def test_two_nodes_make_one_run(tmp_path):
    """Two torchrun agents on loopback: nothing is written twice."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "x"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "vaelab", "train"]
    small = [a for a in SMALL if not a.startswith(("trainer.accelerator", "report"))]
    cpu = ["accelerator=multinode", "trainer.accelerator=cpu", "trainer.devices=1", "logger=wandb"]
    nodes = [
        subprocess.Popen(
            [*agent, *small, *cpu], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum(out.count("run: outputs") for out, _ in said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    (folder,) = tmp_path.glob("outputs/*/*")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert len(list(folder.rglob("*.wandb"))) == 1
    assert (folder / "figures" / "reconstructions.png").exists()
    assert (folder / "report.html").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["processes"], summary["steps"]) == ("finished", 2, 4)
    assert [row["step"] for row in read_metrics(folder) if "step/loss" in row] == [1, 2, 3, 4]
