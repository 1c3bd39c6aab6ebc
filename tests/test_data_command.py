"""`vaelab data prepare` and `vaelab data check`: what they write, print and refuse."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import vaelab.training.callbacks
from tests.conftest import SMALL
from tests.test_resume import Stop
from vaelab.cli import main
from vaelab.datasets import Folder
from vaelab.datasets.prepared import PreparedSplit
from vaelab.datasets.prepared.file import read_header

FAKE = ("dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96")


@pytest.fixture
def data(tmp_path, monkeypatch, capsys):
    """Runs `vaelab data` in an empty folder: (exit code, what it printed, its errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["data", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def refused(result: tuple[int, str, str], *says: str) -> None:
    code, _, err = result
    assert code == 2
    assert len(err.strip().splitlines()) <= 2, err
    assert not [part for part in says if part not in err], err


def photos(root: Path, count: int = 12) -> None:
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_a_folder_is_prepared_and_trained_on(data, train):
    photos(Path("photos"))
    code, out, err = data("prepare", "dataset=folder", "dataset.root=photos", "dataset.size=8", "out=my photos.vaelab")
    assert code == 0, err
    assert "22 images to train on" in out
    assert "dataset=prepared 'dataset.root=my photos.vaelab'" in out
    header = read_header(Path("my photos.vaelab"))
    assert header["class_names"] == ["ant", "bee"]
    assert header["source"]["size"] == 8
    assert "batch_size" not in header["source"]
    common = {"batch_size": 4, "val_size": 0, "binarize": "none", "pixel_range": (0.0, 1.0)}
    common |= {"storage": "stream", "num_workers": 0, "seed": 0, "split_seed": 0}
    _, source = Folder(root="photos", size=8, channels=3, test_size=0.1, **common).load()
    index = torch.arange(len(source))
    mine, theirs = PreparedSplit(Path("my photos.vaelab"), header, "test").batch(index), source.batch(index)
    assert mine.images.equal(theirs.images)
    assert mine.labels.equal(theirs.labels)
    result = train("model=cvae", "dataset=prepared", "dataset.root=my photos.vaelab", *SMALL[3:], small=False)
    assert result.code == 0, result.err
    assert result.summary["status"] == "finished"


def test_streamed_training_is_training_from_memory_and_resumes(data, train, monkeypatch):
    """Interrupted in the middle of an epoch, streamed; resumed from memory."""
    monkeypatch.setattr(vaelab.training.callbacks, "Stop", Stop, raising=False)
    assert data("prepare", *FAKE, "out=x.vaelab")[0] == 0
    own = ("dataset=prepared", "dataset.root=x.vaelab", "dataset.batch_size=16", *SMALL[4:])
    own = (*own, "dataset.window=0.002", "dataset.block=0.001")  # 2,097 and 1,048 bytes: 32 and 16 images of 86

    def losses(run: str, *arguments: str, code: int = 0) -> list[float]:
        result = train(*own, *arguments, f"run.dir={run}", small=False)
        assert result.code == code, result.err
        return result._replace(run=Path(run)).series("step/loss")

    held, streamed = losses("a", "dataset.storage=resident"), losses("b", "dataset.storage=stream")
    assert held == streamed
    assert len(held) == 12
    stop = "+callbacks.stop={_target_:vaelab.training.callbacks.Stop,hook:on_train_batch_end,step:8}"
    assert losses("c", "dataset.storage=stream", stop, code=130) == held[:7]
    again = train("resume=c", "~callbacks.stop", "dataset.storage=resident")
    assert again.code == 0, again.err
    assert again._replace(run=Path("c")).series("step/loss") == held


class Cut(pl.Callback):
    """Cuts a file short after some optimiser steps."""

    def __init__(self, file: str, step: int):
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.truncate(self.file, 4096)


def test_a_file_that_breaks_in_the_middle_of_training_loses_nothing_of_the_run(data, train, monkeypatch):
    monkeypatch.setattr(vaelab.training.callbacks, "Cut", Cut, raising=False)
    assert data("prepare", *FAKE, "out=x.vaelab")[0] == 0
    whole = Path("x.vaelab").read_bytes()
    own = ("dataset=prepared", "dataset.root=x.vaelab", "dataset.storage=stream", "dataset.num_workers=0")
    own = (
        *own,
        "dataset.batch_size=16",
        *SMALL[4:],
        "+callbacks.cut={_target_:vaelab.training.callbacks.Cut,file:x.vaelab,step:8}",
    )
    result = train(*own, small=False)
    assert result.code == 2
    assert (
        result.err.strip() == "vaelab: x.vaelab was changed while it was read: prepare it again (vaelab data prepare)"
    )
    assert result.summary["status"] == "failed"
    assert "changed while it was read" in result.summary["error"]
    Path("x.vaelab").write_bytes(whole)
    again = train(f"resume={result.run}", "~callbacks.cut")
    assert again.code == 0, again.err
    assert result.summary["status"] == "finished"
    assert len(result.series("step/loss")) == 12


def test_help_and_what_is_not_understood(data, capsys):
    with pytest.raises(SystemExit) as end:
        data("--help")
    assert end.value.code == 0
    assert "vaelab data prepare dataset=folder" in capsys.readouterr().out
    for arguments in ((), ("prepar", "dataset=digits"), ("check",), ("check", "a", "b")):
        refused(data(*arguments), "vaelab data prepare")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("out=x",), ("dataset",)),
        (FAKE, ("out",)),
        ((*FAKE, "out="), ("out= is empty",)),
        ((*FAKE, "out=x", "dataset.binarize=static"), ("dataset.binarize", "training")),
        ((*FAKE, "out=x", "dataset.batch_size=3"), ("dataset.batch_size", "training")),
        ((*FAKE, "out=x", "dataset.sise=3"), ("dataset.sise", "did you mean dataset.size?")),
        ((*FAKE, "out=x", "dataset.size=-1"), ("dataset.size=-1",)),
        ((*FAKE, "out=x", "+foo=1"), ("foo",)),
        ((*FAKE, "out=/dev/null/x"), ("out=/dev/null/x",)),
        (("dataset=folder", "dataset.root=nowhere", "out=x"), ("nowhere",)),
        (("dataset=folder", "out=x"), ("dataset.root",)),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(data, tmp_path, arguments, says):
    refused(data("prepare", *arguments), *says)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_as_it_is(data):
    Path("x").write_text("mine")
    refused(data("prepare", *FAKE, "out=x"), "out=x is there already")
    assert Path("x").read_text() == "mine"


def test_a_full_disk_is_told_before_anything_is_read(data, monkeypatch, tmp_path):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    monkeypatch.setattr("vaelab.datasets.prepared.file.write", lambda *_: pytest.fail("it was written"))
    refused(data("prepare", *FAKE, "out=x"), "out=x", "free")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named_before_the_others_are_decoded(data, tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "bee" / "7.png").write_bytes(b"not an image")
    refused(data("prepare", "dataset=folder", "dataset.root=photos", "dataset.size=8", "out=x"), "7.png")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_two_at_once_are_refused_and_what_a_killed_one_left_is_reused(data):
    Path("x.tmp").write_bytes(b"half a file")
    with open("x.tmp", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(data("prepare", *FAKE, "out=x"), "another process")
        assert Path("x.tmp").read_bytes() == b"half a file"
    assert data("prepare", *FAKE, "out=x")[0] == 0
    assert not Path("x.tmp").exists()
    assert data("check", "x")[0] == 0


def test_an_interruption_leaves_nothing(data, monkeypatch, tmp_path):
    from vaelab.datasets.prepared import file

    def stopped(*arguments):
        yield next(whole(*arguments))
        assert (tmp_path / "x.tmp").stat().st_size > 96 * 64
        raise KeyboardInterrupt

    whole = file.write
    monkeypatch.setattr(file, "write", stopped)
    assert data("prepare", *FAKE, "out=x")[0] == 130
    assert list(tmp_path.iterdir()) == []


def test_check_reads_all_of_a_file(data, train):
    assert data("prepare", *FAKE, "out=x")[0] == 0
    code, out, _ = data("check", "x")
    assert code == 0
    assert "96 train and 20 test images, 1x8x8" in out
    place = read_header(Path("x"))["parts"]["test"]["arrays"]["images"]
    content = bytearray(Path("x").read_bytes())
    content[place["offset"]] ^= 1
    Path("x").write_bytes(content)
    refused(data("check", "x"), "images of its test part are damaged")
    refused(data("check", "nowhere"), "nowhere")
    result = train("dataset=prepared", "dataset.root=x", "dataset.storage=resident", small=False)
    assert result.code == 2
    assert "damaged" in result.err
    assert not (result.run / "config.yaml").exists()


def test_the_header_says_where_the_images_come_from(data):
    assert data("prepare", *FAKE, "out=x")[0] == 0
    header = read_header(Path("x"))
    assert header["source"]["_target_"] == "vaelab.datasets.Fake"
    assert (header["shape"], header["num_classes"]) == ([1, 8, 8], 10)
    json.dumps(header)
