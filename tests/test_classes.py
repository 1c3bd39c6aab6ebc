"""Classes by name: in the run folder, in figures and the explorer, and as label=."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.report import gallery
from vaelab.runs import read_summary
from vaelab.runs.classes import Classes
from vaelab.runs.trained import Trained

NUMBERED = Classes(3, ["1", "10", "2"])


@pytest.mark.parametrize(
    ("classes", "label", "number"),
    [
        (NUMBERED, 1, 0),
        (NUMBERED, 10, 1),
        (NUMBERED, "2", 2),
        (NUMBERED, 0, None),  # a name is no place
        (Classes(2, ["cat", "Dog"]), "dog", 1),
        (Classes(2, ["cat", "Dog"]), 1, 1),
        (Classes(2, ["cat", "Dog"]), 2, None),
        (Classes(2, ["cat", "Cat"]), "CAT", None),
        (Classes(2, ["01", "02"]), 2, 1),  # as the command line reads 02
        (Classes(3, None), 2, 2),
        (Classes(3, None), "cat", None),
        (Classes(3, None), 3, None),
    ],
)
def test_a_class_is_found_by_its_name_before_its_number(classes, label, number):
    assert classes.find(label) == number


def test_what_is_no_class_is_told_with_what_there_is():
    with pytest.raises(UserError, match=r"label=cta: did you mean cat\? the model's classes are cat, dog"):
        Classes(2, ["cat", "dog"]).require("cta")
    with pytest.raises(UserError, match="label=10: the model's classes are 0 to 9"):
        Classes(10, [str(k) for k in range(10)]).require(10)  # and not: did you mean 1?
    with pytest.raises(UserError, match="label=7: the model's classes are 0 to 3"):
        Classes(4, list("0123")).require(7)


@pytest.fixture
def run(train, tmp_path):
    """A conditional run of three class folders, 1, 10 and a$b, and the folder of its images."""
    for name in ("1", "10", "a$b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    given = ("dataset=folder", f"dataset.root={tmp_path / 'images'}", "dataset.channels=1", "trainer.max_epochs=1")
    return train("model=cvae", *given, small=False).run


def test_names_of_folders_are_kept_and_shown(run, monkeypatch):
    assert read_summary(run)["data"]["class_names"] == ["1", "10", "a$b"]
    trained, given = Trained(run), {}
    monkeypatch.setattr(gallery.latents, "scatter", lambda *a: given.update(latents=a[-1]))
    monkeypatch.setattr(gallery.images, "classes", lambda *a: given.update(classes=a[1]))
    monkeypatch.setattr(gallery.images, "data", lambda *a: given.update(data=a[-1]))
    list(gallery.draw(trained.model, trained.data, 8, ["latents", "classes", "data"]))
    assert given == {name: ["1", "10", r"a\$b"] for name in ("latents", "classes", "data")}  # no formula


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_is_the_class_of_its_name(run, tmp_path, capsys, known):
    """Also of a run that was killed before it wrote its summary: the data say it."""
    if not known:
        (run / "summary.json").unlink()
    (tmp_path / "images/10").rename("10")
    Path("some").mkdir()
    Path("10").rename("some/10")
    if not known:
        (tmp_path / "images/10").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "images/10/0.png")
    assert main(["encode", f"run={run}", "input=some"]) == 0
    with np.load("codes.npz") as codes:
        assert set(codes["labels"].tolist()) == {1}
        assert json.loads(str(codes["about"]))["classes"] == {"1": "10"}
    assert main(["sample", f"run={run}", "label=10", "n=2", "out=ten.npz"]) == 0
    assert " as class 10" in capsys.readouterr().out
    with np.load("ten.npz") as made:
        assert made["labels"].tolist() == [1, 1]
    Path("some/10").rename("some/cat")
    assert main(["encode", f"run={run}", "input=some"]) == 2
    assert "`cat` is no class of the model, whose classes are 1, 10, a$b" in capsys.readouterr().err
    assert main(["encode", f"run={run}", "input=some", "label=1"]) == 0


def test_damaged_names_are_told(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["class_names"] = [1, 2, 3]
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["sample", f"run={run}", "label=1"]) == 2
    assert "class_names" in capsys.readouterr().err
