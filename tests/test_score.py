"""`vaelab score`: which of a user's own images are unlike those of training; and classes that were left out of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.commands import eval as evaluating
from vaelab.core.config import build
from vaelab.runs import read_config
from vaelab.runs.trained import Trained


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Test images of the fake data as files, and one of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def written(run: Path, folder: Path, count: int = 12) -> torch.Tensor:
    batch = Trained(run).data.test.batch(torch.arange(count))
    for number, image in enumerate(batch.images):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02}.png")
    noise = np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8) * 255
    Image.fromarray(noise).save(folder / "noise.png")
    return batch.images


def table(path: str = "scores.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_of_files_are_those_that_an_evaluation_has_of_the_images(finished, command, pictures):
    run = finished("model=vae", "trainer.max_epochs=15", "network=mlp_512_256").run
    written(run, pictures)
    code, out, err = command("score", f"run={run}", "input=pictures", "importance_samples=2000")
    assert (code, err) == (0, "")
    rows = table()
    assert len(rows) == 13
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert rows[0]["file"] == "noise.png"
    assert "noise.png" in out
    assert command("eval", f"run={run}", "sections=[likelihood,reconstruction]", "importance_samples=2000")[0] == 0
    with np.load(run / "evaluation.npz") as arrays:
        for row in (row for row in rows if row["file"] != "noise.png"):
            number = int(row["file"][:2])
            assert float(row["log_p_hat"]) == -float(row["score"])
            assert float(row["log_p_hat"]) == pytest.approx(arrays["log_p_hat"][number], abs=0.15)
            assert float(row["elbo"]) == pytest.approx(-float(row["reconstruction"]) - float(row["kl"]))
            assert float(row["kl"]) == pytest.approx(arrays["kl"][number], rel=1e-4)
            assert float(row["mse"]) == pytest.approx(arrays["mse"][number], rel=1e-4)
    with Image.open("scores.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize("model", ["ae", "vqvae", "cvae"])
def test_a_model_without_a_bound_scores_by_its_reconstruction_and_one_with_labels_takes_them(
    finished, command, pictures, model
):
    run = finished(f"model={model}").run
    written(run, pictures, 3)
    label = ["label=1"] if model == "cvae" else []
    assert command("score", f"run={run}", "input=pictures", "out=made/odd.csv", *label)[0] == 0
    rows = table("made/odd.csv")
    assert Path("made/odd.png").is_file()
    assert all(row["score"] == row["reconstruction"] for row in rows) == (model != "cvae")
    assert ("log_p_hat" in rows[0]) == (model == "cvae")
    if model == "cvae":
        code, _, err = command("score", f"run={run}", "input=pictures")
        assert (code, "label" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["input=nowhere"], "input=nowhere: there is no such file or folder"),
        (["input=pictures", "out=scores.txt"], "out=scores.txt: scores are written to a file that ends in .csv"),
        (["input=pictures"], "pictures"),
        (["input=pictures", "n=0"], "n=0"),
        (["input=pictures", "importance_samples=0"], "importance_samples=0"),
    ],
)
def test_what_cannot_be_scored_is_said(finished, command, pictures, arguments, said):
    code, _, err = command("score", f"run={finished('model=vae').run}", *arguments)
    assert (code, said in err) == (2, True), err
    assert len(err.splitlines()) <= 2
    assert not Path("scores.csv").exists()


# --- classes that were left out ---------------------------------------------------------------

FEW = ["dataset.size=200", "dataset.classes=4"]


def test_a_class_that_is_left_out_is_in_no_part_and_an_evaluation_tells_it_from_the_others(finished, command):
    run = finished("model=vae", *FEW, "dataset.leave_out=[2]").run
    data = build(read_config(run)["dataset"])
    data.setup()
    parts = [part.batch(torch.arange(len(part))).labels for part in (data.train, data.val, data.test)]
    assert all(2 not in labels for labels in parts)
    assert set(data.left_out.batch(torch.arange(len(data.left_out))).labels.tolist()) == {2}
    assert sum(map(len, parts[:2])) == 150
    assert len(parts[2]) + len(data.left_out) == 40
    assert data.num_classes == 4
    code, out, err = command("eval", f"run={run}", "sections=[anomaly,reconstruction]", "importance_samples=8")
    assert (code, err) == (0, "")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["figures"]["anomaly/images"] == 10
    assert "classes that training was without (2)" in found["protocols"]["anomaly"]
    assert f"figure: {run}/figures/roc.png" in out
    curve = found["vectors"]["anomaly/roc_elbo"]
    assert curve[-1] == 1
    assert curve == sorted(curve)
    with Image.open(run / "figures" / "roc.png") as picture:
        assert min(picture.size) > 300


def test_a_conditional_model_is_not_asked_for_a_class_that_it_does_not_know(finished, command, monkeypatch):
    monkeypatch.setattr(
        evaluating, "SECTIONS", {name: evaluating.SECTIONS[name] for name in ("reconstruction", "anomaly")}
    )
    run = finished("model=cvae", *FEW, "dataset.leave_out=[2]").run
    code, out, _ = command("eval", f"run={run}")
    assert code == 0
    assert "anomaly: a conditional model scores an image with its label" in out


@pytest.mark.parametrize(
    ("leave_out", "said"),
    [
        ("[7]", "dataset.leave_out=[7]: give classes by name or number: 0, 1, 2, 3"),
        ("[three]", "dataset.leave_out=['three']: give classes by name or number"),
        ("[]", "dataset.leave_out=[]: give classes"),
        ("[0,1,2,3]", "no image is left"),
        ("3", "dataset.leave_out=3: must be a list"),
    ],
)
def test_classes_that_are_not_there_cannot_be_left_out(train, leave_out, said):
    result = train(*FEW, f"dataset.leave_out={leave_out}")
    assert (result.code, said in result.err) == (2, True), result.err
    assert "no classes" in train("dataset.classes=null", "dataset.leave_out=[1]").err
