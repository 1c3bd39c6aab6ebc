"""dataset=table: the columns of a CSV, Parquet or .npz file."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vaelab
from tests.test_conf import composed
from vaelab.cli import main
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.nn.likelihoods.columns import columns_of, decode

HEADER = "age,smoker,colour,visits,city"
ROWS = [f"{20 + i}.5,{i % 2},{('red', 'green', 'blue')[i % 3]},{i % 5},{('Rome', 'Oslo')[i % 2]}" for i in range(40)]
CSV = "\n".join([HEADER, *ROWS]) + "\n"

COMMAS = "a;b\n" + "".join(f"{i};{'7' if i == 3 else f'{i % 4},5'}\n" for i in range(40))


def written(folder: Path, text: str | bytes = CSV, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def opened(path: Path, *more: str) -> Any:
    data = build(composed("dataset=table", f"dataset.root={path}", "dataset.val_size=0", *more)["dataset"])
    data.setup()
    return data


def rows(split: Any) -> np.ndarray:
    return split.batch(torch.arange(len(split))).images[:, 0, 0].numpy()


def test_kinds_are_those_of_the_values_and_cells_come_back(tmp_path):
    data = opened(written(tmp_path), "dataset.label=city", "dataset.columns={visits: poisson}")
    assert {c.name: c.kind for c in data.fields} == {
        "age": "gaussian",
        "smoker": "bernoulli",
        "colour": "categorical",
        "visits": "poisson",
    }
    assert data.shape == (1, 1, 6)
    assert (data.num_classes, data.class_names) == (2, ["Oslo", "Rome"])
    assert data.fields[2].values == ("blue", "green", "red")
    cells = decode(data.fields, rows(data.train))
    labels = data.train.batch(torch.arange(len(data.train))).labels
    for age, smoker, colour, visits, city in zip(*cells, labels.tolist(), strict=True):
        i = round(age - 20.5)
        assert ROWS[i] == f"{age:.1f},{smoker},{colour},{visits},{data.class_names[city]}"


def test_numbers_are_standardised_by_the_training_rows_alone(tmp_path):
    data = opened(written(tmp_path), "dataset.test_size=0.3")
    seen = rows(data.train)[:, 0]
    assert seen.mean() == pytest.approx(0, abs=1e-6)
    assert seen.std() == pytest.approx(1, abs=1e-6)
    assert abs(rows(data.test)[:, 0].mean()) > 1e-3


def test_a_run_keeps_its_columns_and_sees_other_rows_as_it_saw_those_of_the_training(tmp_path, monkeypatch):
    """Opened elsewhere, without the training file; a resumed run and a repeated sweep know it again."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    words = ["dataset=table", "dataset.root=x.csv", "likelihood=table", "report=false", "trainer.max_epochs=1"]
    assert main(["train", *words, "run.dir=run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["run"]["found"] == ["schema"]
    assert config["model"]["likelihood"]["columns"] == config["dataset"]["schema"]
    assert columns_of(config["dataset"]["schema"]) == opened(Path("x.csv"), "dataset.val_size=0.1").fields
    Path("x.csv").write_text(CSV.replace("20.5", "1020.5"))  # the file changes, what a value means does not
    assert main(["train", "resume=run", "trainer.max_epochs=2"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["dataset"]["schema"] == config["dataset"]["schema"]
    Path("x.csv").unlink()
    assert vaelab.load("run").likelihood.columns == columns_of(config["dataset"]["schema"])


def test_a_network_of_sequences_takes_a_table_too(tmp_path, monkeypatch):
    """Its output has one bias for all columns, whatever their kinds."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    words = ["dataset=table", "dataset.root=x.csv", "likelihood=table", "network=conv1d", "trainer.max_epochs=1"]
    assert main(["train", *words, "report=false", "run.dir=run"]) == 0


def test_a_repeated_sweep_finds_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    words = ["dataset=table", "dataset.root=x.csv", "likelihood=table", "report=false", "trainer.max_epochs=1"]
    for _ in range(2):
        assert main(["train", "-m", *words, "seed=1,2", "sweep.dir=sweep"]) == 0
    assert len(list(Path("sweep").glob("*/config.yaml"))) == 2
    assert "done" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["", "NA", "nan", "?"])
def test_what_is_missing_is_nan_with_a_mask_and_refused_without(tmp_path, missing):
    text = CSV.replace("22.5,0,blue", f"{missing},0,{missing}")
    with pytest.raises(UserError, match=r"column age has 1 missing values, the first in row 3\ndataset.missing=mask"):
        opened(written(tmp_path, text))
    data = opened(written(tmp_path, text), "dataset.missing=mask")
    all_rows = np.concatenate([rows(data.train), rows(data.test)])
    (holed,) = all_rows[np.isnan(all_rows).any(1)]
    assert np.isnan(holed).tolist() == [True, False, True, True, True, False, False, False]
    assert np.isfinite(data.mean_image).all()
    assert data.spread > 0


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + CSV.encode(),
        CSV.replace("\n", "\r\n"),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace("age", '"age"').replace("red", '"red"'),
        CSV.rstrip("\n") + "\n\n",
    ],
    ids=["mark", "crlf", "semicolon", "tab", "quotes", "empty line"],
)
def test_files_as_other_programs_write_them_are_the_same_table(tmp_path, text):
    expected, found = opened(written(tmp_path)), opened(written(tmp_path, text))
    assert found.fields == expected.fields
    np.testing.assert_array_equal(rows(found.train), rows(expected.train))


def test_an_npz_file_holds_columns_by_name_or_a_matrix(tmp_path):
    x = np.random.default_rng(0).random((20, 3))
    np.savez(tmp_path / "a.npz", age=x[:, 0], b=x[:, 1], c=x[:, 2], kind=np.array(["u", "v"] * 10))
    np.savez(tmp_path / "b.npz", x=x, columns=np.array(["age", "b", "c"]), kind=np.array(["u", "v"] * 10))
    one, other = (opened(tmp_path / f"{n}.npz", "dataset.label=kind") for n in "ab")
    assert [c.name for c in one.fields] == [c.name for c in other.fields] == ["age", "b", "c"]
    np.testing.assert_array_equal(rows(one.train), rows(other.train))


def test_a_parquet_file_is_the_same_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines = [*csv.DictReader(CSV.splitlines())]
    numbers = {"age": float, "smoker": int, "visits": int}
    columns = {name: [numbers.get(name, str)(line[name]) for line in lines] for name in lines[0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    expected, found = opened(written(tmp_path)), opened(tmp_path / "x.parquet")
    assert found.fields == expected.fields
    np.testing.assert_array_equal(rows(found.train), rows(expected.train))


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("", [], ["the file is empty"]),
        (HEADER + "\n", [], ["no rows"]),
        (CSV.replace("smoker", "age"), [], ["two columns are named age"]),
        (CSV.replace("smoker", ""), [], ["column 2 has no name", "index=False"]),
        ("\n".join(["1,2", "3,4", "5,6"]), [], ["first line must name the columns"]),
        (CSV.replace("22.5,0,blue", "22.5,0"), [], ["line 4 has 4 values", "header 5"]),
        (CSV.replace("age", "äge").encode("latin-1"), [], ["no UTF-8"]),
        (CSV.encode("utf-16"), [], ["no UTF-8"]),
        (CSV.replace("22.5", "inf"), [], ["column age has infinite values"]),
        ("id,b\n" + "".join(f"p{i},{i}\n" for i in range(40)), [], ["column id holds 40 different texts", "id: none"]),
        (COMMAS, [], ["column b has numbers with a decimal comma, such as '0,5'", "{b: categorical}"]),
        (COMMAS, ["dataset.columns={b: gaussian}"], ["column b has numbers with a decimal comma", "with a point"]),
        (CSV, ["dataset.columns={aeg: poisson}"], ["dataset.columns.aeg", "it has age, smoker"]),
        (CSV, ["dataset.columns={age: poisson}"], ["dataset.columns.age=poisson", "whole numbers"]),
        (CSV, ["dataset.columns={colour: gaussian}"], ["dataset.columns.colour=gaussian", "such as '"]),
        (CSV, ["dataset.columns={colour: bernoulli}"], ["dataset.columns.colour=bernoulli", "3 different"]),
        (CSV, ["dataset.label=town"], ["dataset.label=town", "it has age"]),
        (CSV, ["dataset.label=age"], ["dataset.label=age", "rows are no classes"]),
        (CSV.replace(",Rome", ",", 1), ["dataset.label=city"], ["dataset.label=city", "row 1"]),
        (CSV, ["dataset.pixel_range=[-1,1]"], ["dataset.pixel_range", "leave it out"]),
        (CSV, ["dataset.binarize=static"], ["dataset.binarize", "leave it out"]),
        ("\n".join(CSV.splitlines()[:3]), [], ["2 rows are too few"]),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(tmp_path, text, more, words):
    with pytest.raises(UserError) as error:
        opened(written(tmp_path, text), *more)
    assert str(error.value).count("\n") <= 1
    for word in words:
        assert word in str(error.value)


def test_texts_that_look_like_numbers_with_commas_can_be_categories(tmp_path):
    (_, field) = opened(written(tmp_path, COMMAS), "dataset.columns={b: categorical}").fields
    assert field.values == ("0,5", "1,5", "2,5", "3,5", "7")
    text = COMMAS.replace(";7", ";red")
    assert opened(written(tmp_path, text)).fields[1].kind == "categorical"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["likelihood=bernoulli"], "use likelihood=table"),
        (["likelihood=table", "dataset.columns={age: cauchy}"], "dataset.columns"),
        (["likelihood=table", "network=conv"], "use network=mlp"),
        (["likelihood=table", "dataset.missing=maks"], "dataset.missing"),
    ],
)
def test_a_wrong_word_ends_before_training_in_a_line(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    assert main(["train", "dataset=table", "dataset.root=x.csv", "report=false", "run.dir=run", *words]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 3
    assert not Path("run/config.yaml").exists()


def test_rows_of_another_file_are_held_to_the_columns_of_the_run(tmp_path):
    schema = json.dumps(opened(written(tmp_path), "dataset.columns={city: none}").found["schema"])
    given = ["dataset.schema=" + re.sub(r'"(\w+)":', r"\1:", schema)]
    other = opened(written(tmp_path, CSV.replace("20.5", "1020.5"), "y.csv"), *given)
    same = decode(other.fields, rows(other.train))[0]
    assert max(same.max(), decode(other.fields, rows(other.test))[0].max()) == pytest.approx(1020.5)
    with pytest.raises(UserError, match="column colour holds 'pink', which the training rows have not"):
        opened(written(tmp_path, CSV.replace("red", "pink"), "y.csv"), *given)
    with pytest.raises(UserError, match="no column colour"):
        opened(written(tmp_path, CSV.replace("colour", "color"), "y.csv"), *given)
