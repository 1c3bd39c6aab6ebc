"""A full disk, a removed folder, too little memory: one line, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil

import pytest
import pytorch_lightning as pl
import torch

import vaelab.commands.doctor
import vaelab.training.callbacks
from tests.test_resume import same_weights
from vaelab.cli import main


class Fault(pl.Callback):
    """Does `what` at the start of the second epoch."""

    def __init__(self, what):
        self.what = what

    def on_train_epoch_start(self, trainer, model):
        if trainer.current_epoch == 1:
            self.what()


@pytest.fixture
def faulty(train, monkeypatch):
    """Trains three epochs, with a fault at the start of the second."""

    def run(what):
        def fault() -> pl.Callback:
            return Fault(what)

        monkeypatch.setattr(vaelab.training.callbacks, "Fault", fault, raising=False)
        return train("trainer.max_epochs=3", "+callbacks.fault={_target_:vaelab.training.callbacks.Fault}")

    return run


def goes_on(train, finished, stopped):
    resumed = train(f"resume={stopped.run}", "~callbacks.fault")
    assert resumed.code == 0, resumed.err
    whole = finished("trainer.max_epochs=3")
    assert same_weights(stopped.run, whole.run)
    assert (stopped.run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()


@pytest.fixture
def no_large_files():
    """Has every write beyond 100 kB fail, in the operating system, once `begin` is called."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_harms_none_before_it(train, finished, faulty, no_large_files):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stopped = faulty(no_large_files)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stopped.code == 1
    assert "last.ckpt: File too large" in stopped.err or "best.ckpt: File too large" in stopped.err
    assert f"resume={stopped.run}" in stopped.err
    assert "Traceback" not in stopped.err
    assert not list(stopped.run.rglob(".*.tmp"))
    goes_on(train, finished, stopped)


def test_a_full_disk_is_said_to_be_full(train, faulty, monkeypatch):
    def full(checkpoint, file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 576 vs 534")  # noqa: B904 - as torch raises it

    stopped = faulty(lambda: monkeypatch.setattr(torch, "save", full))
    assert stopped.code == 1
    assert "No space left on device: free some space" in stopped.err
    assert "Traceback" not in stopped.err


def test_a_removed_folder(train, faulty):
    stopped = faulty(lambda: shutil.rmtree("run0"))
    assert stopped.code == 1
    assert stopped.err.splitlines()[-1] == "vaelab: run0 was removed while it was being trained"
    assert "Traceback" not in stopped.err


def test_too_little_memory(train, finished, faulty):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    stopped = faulty(full)
    assert stopped.code == 1
    assert "lower dataset.batch_size" in stopped.err
    assert "Traceback" not in stopped.err
    assert "CUDA out of memory" in stopped.summary["error"]
    goes_on(train, finished, stopped)


@pytest.mark.parametrize("seen", [True, False], ids=["a file", "in a closed folder"])
def test_a_file_of_another_owner_is_said_to_be_unreadable(finished, monkeypatch, capsys, seen):
    """The tests may be run by a user who can read everything, so what the system would say is said for it."""
    run = finished("model=vae").run

    def closed(path, remedy):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        monkeypatch.setattr(os.path, "exists", lambda path: seen)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(vaelab.commands.doctor, "read_json", closed)
    assert main(["doctor", f"run={run}"]) == 2
    said = f"vaelab: cannot read {run}/summary.json (Permission denied): change its owner or its rights\n"
    assert capsys.readouterr().err == said
