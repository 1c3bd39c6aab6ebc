"""Commands on a run of a table: rows become codes, codes rows, what is missing is filled in."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vaelab
from vaelab.cli import main
from vaelab.core.config import build
from vaelab.inference import imputation
from vaelab.nn.likelihoods.columns import decode
from vaelab.runs.trained import Trained

QUICK = ["model.latent_dim=2", "network.hidden_dims=[16]", "report=false", "trainer.accelerator=cpu"]


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of four columns that go together, with holes, and a run of it."""
    root = tmp_path_factory.mktemp("table")
    dice = np.random.default_rng(0)
    z, lines = dice.normal(size=200), ["age,sick,colour,visits,city"]
    for i, at in enumerate(z):
        cells = [f"{40 + 10 * at:.4f}", str(int(at > 0)), ["red", "blue"][int(at > 0)], str(dice.poisson(math.exp(at)))]
        lines.append(",".join("" if dice.random() < 0.1 else cell for cell in cells) + "," + ["Oslo", "Rome"][i % 2])
    (root / "x.csv").write_text("\n".join(lines) + "\n")
    words = ["dataset=table", f"dataset.root={root / 'x.csv'}", "dataset.label=city", "dataset.missing=mask"]
    words += ["dataset.columns={visits: poisson}", "likelihood=table", "trainer.max_epochs=15", "optimizer.lr=0.01"]
    assert main(["train", *words, *QUICK, f"run.dir={root / 'run'}"]) == 0
    return root


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    return tmp_path / "x"


def test_latents_come_back_as_a_table_and_rows_of_them(here):
    assert main(["encode", "run=run", "input=x.csv", "out=codes.csv"]) == 0
    codes = read("codes.csv")
    assert len(codes) == 200
    assert [*codes[0]] == ["file", "mean_0", "mean_1", "logvar_0", "logvar_1", "label"]
    assert [row["label"] for row in codes[:2]] == ["Oslo", "Rome"]
    assert main(["encode", "run=run", "input=x.csv", "out=codes.npz"]) == 0
    arrays = np.load("codes.npz")
    np.testing.assert_allclose([float(row["mean_0"]) for row in codes], arrays["mean"][:, 0], rtol=1e-6)
    for name in ("codes.csv", "codes.npz"):
        assert main(["decode", "run=run", f"codes={name}", "out=rows.csv"]) == 0
        rows = read("rows.csv")
        assert [*rows[0]] == ["age", "sick", "colour", "visits"]
        model = vaelab.load("run")
        with torch.no_grad():
            mean = model.likelihood.mean(model.decode(torch.from_numpy(arrays["mean"])))[:, 0, 0].numpy()
        for column, name in zip(decode(model.likelihood.columns, mean), rows[0], strict=True):
            shown = [row[name] for row in rows]
            if name == "age":
                np.testing.assert_allclose(np.array(shown, float), column, rtol=1e-6)
            else:
                assert shown == [str(cell) for cell in column]


def test_samples_and_reconstructions_are_tables_with_the_columns_of_the_run(here, capsys):
    assert main(["sample", "run=run", "n=300"]) == 0
    rows = read("run/sample.csv")
    assert len(rows) == 300
    assert {row["colour"] for row in rows} == {"red", "blue"}
    assert all(row["visits"].isdigit() for row in rows)
    known = [float(row["age"]) for row in read("x.csv") if row["age"]]
    ages = np.array([float(row["age"]) for row in rows])
    assert abs(ages.mean() - np.mean(known)) < 5
    assert 0.6 < ages.std() / np.std(known) < 1.6  # draws, and not means
    assert main(["sample", "run=run", "n=300", "out=again.csv"]) == 0
    assert read("again.csv") == rows
    assert main(["reconstruct", "run=run", "n=5", "out=made.csv"]) == 0
    assert len(read("made.csv")) == 5
    assert "mean squared error" in capsys.readouterr().out


def test_what_is_missing_is_filled_in_and_the_rest_stays(here, capsys):
    assert main(["impute", "run=run", "input=x.csv", "out=whole.csv", "draws=200"]) == 0
    assert "values filled in" in capsys.readouterr().out
    holed, whole = read("x.csv"), read("whole.csv")
    wrong = []
    for before, after in zip(holed, whole, strict=True):
        for name, cell in before.items():
            if cell and name != "age":
                assert after[name].removesuffix(".0") == cell
            elif cell:
                assert float(after[name]) == pytest.approx(float(cell))
            else:
                assert after[name] != ""
        if not before["colour"] and before["age"]:
            wrong.append(after["colour"] != ["red", "blue"][float(before["age"]) > 40])
    assert sum(wrong) < 0.25 * len(wrong)  # the age tells


def test_imputation_is_the_weighted_mean_over_draws(here):
    """Against all draws at once, weighed by softmax; and what no draw is needed for stays as it is."""
    model = vaelab.load("run")
    x = torch.tensor([[[[0.3, math.nan, 1.0, 0.0, math.nan]]], [[[math.nan] * 5]], [[[0.1, 1, 0, 1, 0.2]]]])
    filled = imputation.impute(model, x, None, 5000, seed=1)
    assert torch.equal(filled[2], x[2])
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    torch.manual_seed(0)
    with torch.no_grad():
        for row in (0, 1):
            part = x[row : row + 1]
            posterior = model.encode(part)
            z, log_ratio = posterior.draw(torch.randn(20_000, 1, 2), model.prior)
            raw = model.decode(z[:, 0])
            log_w = model.likelihood.log_prob(raw, part.expand(20_000, -1, -1, -1)) + log_ratio[:, 0]
            expected = (log_w.softmax(0)[:, None] * model.likelihood.mean(raw)[:, 0, 0]).sum(0)
            at = part[0, 0, 0].isnan()
            torch.testing.assert_close(filled[row, 0, 0][at], expected[at], rtol=0, atol=0.06)


def test_an_array_is_filled_in_with_the_values_and_the_axes_that_it_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    x = 100 * dice.normal(size=(60, 6, 2)).astype(np.float32)
    holed = np.where(dice.random(x.shape) < 0.2, np.nan, x).astype(np.float32)
    np.save("x.npy", holed)
    words = ["dataset=arrays", "dataset.root=x.npy", "dataset.layout=nlc", "dataset.missing=mask"]
    assert main(["train", *words, "likelihood=gaussian_learned", "trainer.max_epochs=1", *QUICK, "run.dir=run"]) == 0
    assert main(["impute", "run=run", "input=x.npy", "out=whole.npy", "draws=20"]) == 0
    whole, holes = np.load("whole.npy"), np.isnan(holed)
    np.testing.assert_array_equal(whole[~holes], holed[~holes])
    assert np.isfinite(whole).all()
    assert np.abs(whole[holes]).max() > 100  # in the units of the file
    data = build(Trained("run").dataset)
    seen, array = data.images_of((2, 1, 6), "input")
    np.testing.assert_allclose(data.values_of(seen), array, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("encode input=x.csv out=codes.txt", ["out=codes.txt", ".csv"]),
        ("encode input=y.csv out=codes.csv", ["input=y.csv", "no column age"]),
        ("encode input=pink.csv out=codes.csv", ["input=pink.csv", "'pink'"]),
        ("encode input=text.csv out=codes.csv", ["input=text.csv", "column age holds texts"]),
        ("encode input=commas.csv out=codes.csv", ["input=commas.csv", "column age has numbers with a decimal comma"]),
        ("sample out=made.png", ["out=made.png", ".csv"]),
        ("sample out=made/", ["out=made/", ".csv"]),
        ("decode codes=x.csv out=rows.csv", ["codes=x.csv", "`mean`"]),
        ("traverse", ["traverse", "table"]),
        ("interpolate from=0 to=1", ["interpolate", "table"]),
        ("impute input=x.csv out=whole.npy", ["out=whole.npy", ".csv"]),
        ("impute input=none.csv", ["input=none.csv"]),
        ("impute input=x.csv draws=0", ["draws"]),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(here, capsys, command, words):
    Path("y.csv").write_text("a,b\n1,2\n")
    Path("pink.csv").write_text("age,sick,colour,visits\n1,0,pink,2\n")
    Path("commas.csv").write_text("age;sick;colour;visits\n20,5;0;red;2\n")
    Path("text.csv").write_text("age,sick,colour,visits\nold,0,red,2\n")
    name, *rest = command.split()
    assert main([name, "run=run", *rest]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_a_column_of_one_value_has_a_warning(train, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,c,d\n" + "".join(f"{i / 7},3.5,{i % 2},x\n" for i in range(60)))
    given = (
        "dataset=table",
        "dataset.root=rows.csv",
        "likelihood=table",
        "dataset.batch_size=16",
        "trainer.max_epochs=1",
    )
    found = train(*given, "accelerator=cpu", small=False)
    assert found.code == 0, found.err
    (line,) = [line for line in found.out.splitlines() if "one value" in line]
    assert line.startswith("warning: column b has one value in all training rows")
    assert "dataset.columns={b: none} leaves it out" in line


def test_images_are_no_rows_and_a_run_of_whole_examples_fills_nothing_in(finished, capsys):
    run = finished("model=vae").run
    assert main(["sample", f"run={run}", "out=made.csv"]) == 2
    assert "out=made.csv" in capsys.readouterr().err
    Path("x.csv").write_text("a\n1\n")
    assert main(["impute", f"run={run}", "input=x.csv"]) == 2
    assert "dataset.missing=mask" in capsys.readouterr().err


def test_a_run_of_a_table_is_measured_and_reported_without_pictures_of_rows(here, capsys):
    assert main(["eval", "run=run", "importance_samples=20", "gap_images=8", "device=cpu"]) == 0
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert evaluation["skipped"]["samples"] == "rows of a table are no pictures"
    assert all(map(math.isfinite, evaluation["figures"].values()))
    assert "reconstruction/psnr_mean" not in evaluation["figures"]
    assert "likelihood/bits_per_dim" not in evaluation["figures"]
    assert main(["report", "run=run", "device=cpu"]) == 0
    figures = {path.stem for path in Path("run/figures").glob("*.png")}
    assert figures >= {"marginals", "correlations", "curves", "latents"}
    assert not figures & {"samples", "reconstructions", "data"}
    assert "explorer-data" not in Path("run/report.html").read_text()


def test_rows_are_scored_the_least_typical_first(here, capsys):
    """One row is far from all others; a missing value counts nothing in the score of its row."""
    lines = (here / "x.csv").read_text().splitlines()[:9]
    (here / "few.csv").write_text("\n".join([*lines, "99,0,red,40,Oslo", ",,,,Rome"]) + "\n")
    assert main(["score", "run=run", "input=few.csv"]) == 0
    rows = read("scores.csv")
    assert [*rows[0]] == ["file", "score", "elbo", "log_p_hat", "reconstruction", "kl"]
    assert (len(rows), rows[0]["file"]) == (10, "row 9")
    assert float(next(row for row in rows if row["file"] == "row 10")["reconstruction"]) == pytest.approx(0, abs=1e-6)
    assert not Path("scores.png").exists()


def test_rows_of_another_table_are_anomalies_in_the_scale_of_the_training(here):
    """Told by values that the run has not seen, though the other table, standardised by itself, would look the same."""
    lines = Path("x.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    other = [[str(float(age) + 500) if age else "", *rest] for age, *rest in rows]
    Path("other.csv").write_text("\n".join([lines[0], *map(",".join, other)]) + "\n")
    words = ["sections=[anomaly]", "ood=table", "ood.root=other.csv", "ood.missing=mask", "ood.label=city"]
    assert main(["eval", "run=run", *words, "importance_samples=20", "device=cpu"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["figures"]["anomaly/auroc_elbo"] > 0.8
