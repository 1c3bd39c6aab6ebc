"""vaelab compare: which figures are ranked, with what certainty, and what is said of the others."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from vaelab.cli import main
from vaelab.evaluation import compared, comparison, tables

ELBO, MSE, LOSS = "likelihood/elbo", "reconstruction/mse_mean", "training/loss"
OPTIONS = {"vaelab.models.VAE": "vae", "vaelab.models.BetaVAE": "beta", "vaelab.likelihoods.Bernoulli": "bernoulli"}

CONFIG = {
    "seed": 0,
    "run": {"name": "vae-digits", "dir": "x"},
    "trainer": {"max_epochs": 5, "default_root_dir": "x", "limit_test_batches": None},
    "likelihood": {"_target_": "vaelab.likelihoods.Bernoulli"},
    "schedule": {},
    "dataset": {
        "_target_": "vaelab.datasets.Digits",
        "batch_size": 32,
        "binarize": "none",
        "pixel_range": [0.0, 1.0],
        "seed": 0,
        "split_seed": 0,
    },
    "model": {
        "_target_": "vaelab.models.VAE",
        "likelihood": {"_target_": "vaelab.likelihoods.Bernoulli"},
        "latent_dim": 20,
    },
}
SUMMARY = {
    "status": "finished",
    "metrics": {"test/loss": 26.0, "test/elbo": -26.0, "test/reconstruction": 25.0, "test/kl": 1.0, "val/elbo": -27.0},
    "best": {"epoch": 4, "by": "val/elbo", "value": -27.0},
    "data": {"train": 1294, "val": 144, "test": 359},
    "objective": {"log_likelihood_is": "a density on pixels", "reduction": "sum over pixels, mean over images"},
}
EVALUATION = {
    "split": "test",
    "checkpoint": {"name": "best", "epoch": 4},
    "images": 359,
    "figures": {ELBO: -25.5, "likelihood/log_p_hat": -25.0, "likelihood/importance_samples": 500, MSE: 0.05},
    "protocols": {"likelihood": "500 samples"},
}


def changed(original: dict, changes: dict) -> dict:
    """A copy with some of its values replaced: keys are paths, parted by colons."""
    new = copy.deepcopy(original)
    for path, value in changes.items():
        *parents, last = path.split(":")
        node = new
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return new


def with_seed(seed: int) -> dict:
    return {"seed": seed, "dataset:seed": seed}


def run(name="x", config=None, summary=None, evaluation=None, split="test") -> compared.Run:
    measured = None if evaluation is None else changed(EVALUATION, evaluation)
    parts = changed(CONFIG, config or {}), changed(SUMMARY, summary or {}), measured
    return compared.describe(name, *parts, split, OPTIONS)


def beta(value: float, **figures: float) -> compared.Run:
    config = {"model:_target_": "vaelab.models.BetaVAE", "model:beta": value}
    return run(f"beta{value}", config, {f"metrics:test/{k}": v for k, v in figures.items()})


def rows_of(*runs: compared.Run) -> list[comparison.Configuration]:
    return comparison.group(runs)[0]


# --- intervals --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10])
def test_interval_is_students(n):
    values = np.random.default_rng(n).normal(5, 2, n)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    found = comparison.interval(values.tolist())
    assert found == pytest.approx((values.mean(), low, high, n))


def test_interval_holds_the_mean_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(1, 3, (2000, 4)).tolist()
    inside = sum(found.low <= 1 <= found.high for found in map(comparison.interval, draws))
    assert abs(inside / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval():
    assert comparison.interval([3.0]) == (3.0, None, None, 1)


# --- configurations ---------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_row():
    runs = [run(f"r{i}", with_seed(i), {"metrics:test/elbo": -20.0 - i}) for i in range(3)]
    (row,) = rows_of(*runs)
    assert row.figures[ELBO].mean == pytest.approx(-21)
    assert row.figures[ELBO].n == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset:seed": 7},
        {"model:latent_dim": 3},
        {"trainer:max_epochs": 9},
        {"model:likelihood:_target_": "vaelab.likelihoods.Laplace"},
        {"dataset:root": "other"},
    ],
)
def test_any_other_difference_makes_another_row(changes):
    assert len(rows_of(run("a"), run("b", changes))) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"run:name": "other", "run:dir": "y", "trainer:default_root_dir": "y"},
        {"logger": {"wandb": {"mode": "offline"}}},
        {"dataset:num_workers": 8},
        {"model:latent_dim": 20.0},
    ],
)
def test_bookkeeping_makes_no_other_row(changes):
    assert len(rows_of(run("a"), run("b", with_seed(1) | changes))) == 1


def test_a_downloaded_set_is_the_same_wherever_it_lies():
    one, two = ({"dataset:root": root, "dataset:download": True} for root in ("a", "b"))
    assert len(rows_of(run("a", one), run("b", with_seed(1) | two))) == 1


def test_a_seed_counts_once():
    rows, repeats = comparison.group([run("a"), run("b"), run("c", with_seed(1))])
    assert [row.figures[ELBO].n for row in rows] == [2]
    assert [(repeat.name, kept.name) for repeat, kept in repeats] == [("a", "b")]
    rows, repeats = comparison.group([run("a", evaluation={}), run("b")])
    assert [(repeat.name, kept.name) for repeat, kept in repeats] == [("b", "a")]


def test_order_of_runs_changes_nothing():
    runs = [run("a"), run("b", with_seed(1)), beta(2), beta(10), beta(4), run("c"), run("d", evaluation={})]
    expected = comparison.group(runs)
    for seed in range(5):
        random.Random(seed).shuffle(runs)
        assert comparison.group(runs) == expected
    assert [row.settings.get("model.beta") for row in expected[0]] == [2, 4, 10, None]


def test_columns_tell_all_rows_apart_with_the_fewest_keys():
    two = {"model:_target_": "vaelab.models.BetaVAE", "model:beta": 4, "model:latent_dim": 10}
    assert comparison.columns(rows_of(run("a"), run("b", two))) == (["model"], ["model.beta", "model.latent_dim"])
    shown, also = comparison.columns(rows_of(run("a"), beta(1), beta(2)))
    assert (shown, also) == (["model", "model.beta"], [])


def test_training_and_evaluation_have_the_same_names():
    trained, evaluated = run("a"), run("b", evaluation={})
    assert trained.figures[ELBO] == -26
    assert evaluated.figures[ELBO] == -25.5
    assert evaluated.figures[LOSS] == 26
    vq = run("c", evaluation={"figures": {"likelihood/distortion": 7.0}})
    assert vq.figures["likelihood/reconstruction"] == 7


def test_another_checkpoint_is_another_row_and_leaves_no_figures_of_the_best():
    last = run("b", with_seed(1), evaluation={"checkpoint:name": "last"})
    assert LOSS not in last.figures
    assert len(rows_of(run("a"), last)) == 2
    assert run("v", split="val").settings["checkpoint"] == "last"  # what training logs of val is of its last epoch


# --- what is ranked ---------------------------------------------------------------------------

APART = {
    "data": ({"dataset:_target_": "vaelab.datasets.MNIST"}, {}, {}),
    "data: binarisation": ({"dataset:binarize": "static"}, {}, {}),
    "data: range": ({"dataset:pixel_range": [-1.0, 1.0]}, {}, {}),
    "data: images": ({}, {"data:test": 100}, {"images": 100}),
    "likelihood": ({"model:likelihood:_target_": "vaelab.likelihoods.Gaussian"}, {}, {}),
    "likelihood: density": ({}, {"objective:log_likelihood_is": "not a density: x"}, {}),
    "condition": ({"model:label_dim": 10}, {}, {}),
    "reduction": ({}, {"objective:reduction": "mean"}, {}),
    "objective": ({"model:_target_": "vaelab.models.BetaVAE"}, {}, {}),
    "objective: weight": ({"model:beta": 2.0}, {}, {}),
    "objective: schedule": ({"schedule:beta": {"_target_": "vaelab.schedules.linear", "over": 3}}, {}, {}),
    "importance_samples": ({}, {}, {"figures:likelihood/importance_samples": 50}),
}


CONCERNED = {
    LOSS: {"objective", "data", "likelihood", "condition", "reduction"},
    ELBO: {"data", "likelihood", "condition", "reduction"},
    "likelihood/reconstruction": {"data", "likelihood", "condition", "reduction"},
    "likelihood/log_p_hat": {"data", "likelihood", "condition", "reduction", "importance_samples"},
    "likelihood/bits_per_dim": {"data", "likelihood", "condition", "reduction", "importance_samples"},
    MSE: {"data"},
    "disentanglement/mig": {"data"},
    "samples/frechet": {"data"},
    "anomaly/auroc_elbo": {"data"},
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("figure", CONCERNED)
def test_only_what_agrees_is_ranked(case, figure):
    """Each incompatibility alone stops the figures that it concerns and no others; without it they are ranked."""
    config, summary, evaluation = APART[case]
    width = {"model:latent_dim": 7}  # another configuration, of which all can be compared
    there = {} if figure == LOSS else {f"figures:{figure}": 1.0}
    one = run("a", evaluation=there)
    assert comparison.rank(rows_of(one, run("b", width, evaluation=there)), figure).best == {0, 1}
    apart = rows_of(one, run("b", width | config, summary, there | evaluation))
    ranking = comparison.rank(apart, figure)
    aspect = case.partition(":")[0]
    concerned = aspect in CONCERNED[figure]
    assert [name for name, _ in ranking.refused] == ([aspect] if concerned else [])
    assert bool(ranking.best) is not concerned


def test_neither_end_of_a_rate_is_better():
    rows = rows_of(beta(1, kl=1.0), beta(2, kl=2.0))
    assert comparison.rank(rows, "likelihood/kl") == (set(), set(), [])


def test_protocols_must_agree():
    def measured(name: str, protocol: str, latents: int) -> compared.Run:
        evaluation = {"figures:samples/frechet": 3.0 + latents, "protocols": {"samples": protocol}}
        return run(name, {"model:latent_dim": latents}, evaluation=evaluation)

    assert comparison.rank(rows_of(measured("a", "p", 2), measured("b", "p", 3)), "samples/frechet").best
    ranking = comparison.rank(rows_of(measured("a", "p", 2), measured("b", "q", 3)), "samples/frechet")
    assert not ranking.best
    assert ranking.refused == [("protocol", "protocol=p and q")]


def test_a_row_whose_own_seeds_disagree_is_not_ranked():
    """Means over importance bounds of different K are of nothing."""
    other = {"figures:likelihood/importance_samples": 50}
    mixed = [run("a", evaluation={}), run("b", with_seed(1), evaluation=other)]
    rows = rows_of(*mixed, run("c", {"model:latent_dim": 7}, evaluation={}))
    assert not comparison.rank(rows, "likelihood/log_p_hat").best
    assert comparison.rank(rows, ELBO).best


def test_within_each_comparable_set_the_best_is_marked():
    gaussian = {"model:likelihood:_target_": "vaelab.likelihoods.Gaussian"}
    runs = [
        run(f"{i}{j}", like | {"model:latent_dim": j}, {"metrics:test/elbo": -20.0 - j})
        for (i, like), j in itertools.product(enumerate(({}, gaussian)), (1, 2))
    ]
    rows = rows_of(*runs)
    best = [rows[i].settings["model.latent_dim"] for i in comparison.rank(rows, ELBO).best]
    assert best == [1, 1]


@pytest.mark.parametrize(("figure", "best"), [(ELBO, 2), ("likelihood/reconstruction", 1)])
def test_best_is_the_right_end(figure, best):
    key = {ELBO: "elbo", "likelihood/reconstruction": "reconstruction"}[figure]
    rows = rows_of(beta(1, **{key: 1.0}), beta(2, **{key: 2.0}))
    (i,) = comparison.rank(rows, figure).best
    assert rows[i].settings["model.beta"] == best
    assert comparison.ordered(rows, figure)[0] is rows[i]


def seeds(latents: int, *elbos: float) -> list[compared.Run]:
    return [
        run(f"{latents}-{i}", with_seed(i) | {"model:latent_dim": latents}, {"metrics:test/elbo": elbo})
        for i, elbo in enumerate(elbos)
    ]


def test_overlapping_intervals_are_not_separated():
    rows = rows_of(*seeds(1, -20.0, -20.1, -20.2), *seeds(2, -20.1, -20.2, -20.3), *seeds(3, -30.0, -30.1, -30.2))
    assert comparison.rank(rows, ELBO)[:2] == ({0}, {1})
    alone = rows_of(*seeds(1, -20.0), *seeds(2, -20.0001))
    assert comparison.rank(alone, ELBO)[:2] == ({0}, set())  # a single seed has no interval to overlap


def test_sorting_keeps_apart_what_cannot_be_compared():
    gaussian = {"model:likelihood:_target_": "vaelab.likelihoods.Gaussian"}
    runs = [
        run(f"{i}{j}", like | {"model:latent_dim": j}, {"metrics:test/elbo": -10.0 * j - 5 * i})
        for (i, like), j in itertools.product(enumerate(({}, gaussian)), (1, 2, 3))
    ]
    rows = comparison.ordered(rows_of(*runs), ELBO)
    assert [row.settings["model.latent_dim"] for row in rows] == [1, 2, 3, 1, 2, 3]
    assert len({row.settings["likelihood"] for row in rows[:3]}) == 1


# --- rate and distortion ----------------------------------------------------------------------


def test_dominated_points_are_marked():
    runs = [
        beta(b, kl=r, reconstruction=d) for b, r, d in ((8, 1, 30), (4, 2, 20), (3, 2.5, 25), (2, 4, 20), (1, 5, 9))
    ]
    rows = rows_of(*runs)
    (curve,) = comparison.rate_distortion(rows)
    assert [rows[point.index].settings["model.beta"] for point in curve] == [8, 4, 3, 2, 1]
    assert [point.dominated for point in curve] == [False, False, True, True, False]
    for one, other in itertools.permutations(curve, 2):  # no point left unmarked is worse than another in both
        assert one.dominated or not (other.rate < one.rate and other.distortion < one.distortion)


def test_a_curve_needs_something_that_moves_along_it():
    assert not comparison.rate_distortion(rows_of(run("a"), run("b", {"model:latent_dim": 3})))
    assert comparison.rate_distortion(rows_of(beta(1), beta(2)))
    other = run("g", {"model:likelihood:_target_": "vaelab.likelihoods.Gaussian", "model:beta": 2})
    assert not comparison.rate_distortion(rows_of(beta(1), other))


def test_rate_of_codes_is_in_nats():
    evaluation = {"figures": {"likelihood/distortion": 5.0, "likelihood/rate_uniform_bits": 16 * 9.0}}
    codes = run("vq", {"model:num_embeddings": 512}, {"metrics": {}}, evaluation)
    (curve,) = comparison.rate_distortion(rows_of(codes, beta(1)))
    assert max(point.rate for point in curve) == pytest.approx(16 * math.log(512))


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_line_is_wider_than_the_terminal(width):
    figures = {f"figures:section/a_figure_{i}": 10.0**i for i in range(12)}
    rows = rows_of(*(run(f"{s}", with_seed(s) | {"model:latent_dim": s % 2}, evaluation=figures) for s in range(6)))
    names = tables.titles(sorted(rows[0].figures))
    rankings = {name: comparison.rank(rows, name) for name in names}
    text = tables.figures_table(rows, ["model.latent_dim"], names, rankings, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in names.values())


# --- the command ------------------------------------------------------------------------------


def write(folder: Path, config=None, summary=None, evaluation=None) -> Path:
    """A run folder as vaelab train and vaelab eval leave it, without its checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(changed(CONFIG, config or {})))
    (folder / "run.log").write_text("")
    (folder / "summary.json").write_text(json.dumps(changed(SUMMARY, summary or {})))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(changed(EVALUATION, evaluation)))
    return folder


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Runs `vaelab compare` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["compare", *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Three seeds of two sizes of a model, none evaluated."""
    for latents, seed in itertools.product((5, 20), range(3)):
        config = with_seed(seed) | {"model:latent_dim": latents}
        summary = {"metrics:test/elbo": -20.0 - latents - 0.1 * seed}
        write(tmp_path / "sweep" / f"{latents}-{seed}", config, summary)
    (tmp_path / "sweep" / "multirun.yaml").write_text("")
    return tmp_path / "sweep"


def test_a_sweep_as_a_table(compare, sweep):
    code, out, err = compare("sweep")
    assert (code, err) == (0, "")
    heading, table = out.split("\n\n")[:2]
    assert heading.startswith("6 runs in 2 configurations: split=test, model=vae, dataset=digits")
    titles, best, other = table.splitlines()
    assert titles.split()[:3] == ["latent_dim", "n", "elbo"]
    assert best.split()[:5] == ["5", "3", "-25.10", "±", "0.25*"]
    assert other.split()[:5] == ["20", "3", "-40.10", "±", "0.25"]
    assert "kl: not ranked" in out
    assert "6 in sweep" in out
    assert "vaelab eval run=sweep/20-0" not in out  # an example is enough


def test_all_ways_to_name_the_same_runs(compare, sweep):
    _, expected, _ = compare("sweep")
    each = [f"sweep/{name}" for name in ("20-2", "5-0", "20-0", "5-2", "5-1", "20-1")]
    for part in ("wandb", "wandb/files"):  # nothing in a run is a run
        (sweep / "5-0" / part).mkdir()
        (sweep / "5-0" / part / "summary.json").write_text("{}")
    Path("alias").symlink_to("sweep")
    whole = [str(sweep), "sweep/../sweep", "alias", "sweep"]
    for arguments in (["."], each, whole, ["sweep/*-*"], [*each, "sweep"], [f"runs=[{','.join(each)}]"], ["./sweep/"]):
        assert compare(*arguments)[1] == expected, arguments
    assert "multirun.yaml: a file" in compare("sweep/multirun.yaml", "sweep")[1]


@pytest.mark.parametrize("name", ["a b", "lr=0.1,x=2", "it's", "a[1]", "ü", "a,b", "back\\", "x${y}", "#1"])
def test_any_name_of_a_folder(compare, tmp_path, name):
    write(tmp_path / name)
    code, out, err = compare(name)
    assert (code, err) == (0, "")
    assert "nothing to rank" in out


def test_reasons_are_given(compare, tmp_path):
    write(tmp_path / "a", {}, {"objective:log_likelihood_is": "not a density: x"})
    write(tmp_path / "b", {"model:likelihood:_target_": "vaelab.likelihoods.Gaussian"})
    write(tmp_path / "c", {"model:_target_": "vaelab.models.BetaVAE"})
    _, out, _ = compare(".")
    text = " ".join(out.split())
    assert "elbo, reconstruction, loss: not ranked across likelihood=bernoulli and gaussian" in text
    assert "loss: not ranked across model=beta and vae: they minimise different things" in text
    write(tmp_path / "d", {"model:latent_dim": 3}, {"objective:log_likelihood_is": "not a density: x"})
    text = " ".join(compare("a", "d")[1].split())
    assert "ranked as values of an objective only: likelihood=bernoulli is not a density" in text


def test_codes_have_no_elbo(compare, tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", {"model:_target_": "x.VQVAE"}, {"metrics": {"test/perplexity": 9.0}})
    assert "elbo: model=VQVAE has none" in compare(".")[1]


def test_evaluated_figures_come_first(compare, tmp_path):
    write(tmp_path / "a", evaluation={})
    write(tmp_path / "b", {"model:latent_dim": 3})
    code, out, err = compare(".", "figures=elbo,mse")
    assert (code, err) == (0, "")
    assert "-25.50" in out
    assert "-26.00" in out
    assert "to evaluate: vaelab eval run=b" in out


def test_files_hold_what_is_printed_and_more(compare, sweep, tmp_path):
    code, out, _ = compare("sweep", "output=my table.csv")
    assert code == 0
    assert "written: my table.csv" in out
    with (tmp_path / "my table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model.latent_dim"] for row in rows] == ["5", "20"]
    low, high = stats.t.interval(0.95, 2, -25.1, stats.sem([-25.0, -25.1, -25.2]))
    found = [float(rows[0][f"{ELBO}_{part}"]) for part in ("mean", "low", "high", "n")]
    assert found == pytest.approx([-25.1, low, high, 3])
    assert compare("sweep", "output=table.json", "figures=elbo")[0] == 0
    content = json.loads((tmp_path / "table.json").read_text())
    assert [c["figures"][ELBO]["rank"] for c in content["configurations"]] == ["best", None]
    assert set(content["configurations"][0]["figures"]) == {ELBO}
    assert not list(tmp_path.glob("*.tmp"))


def test_sort(compare, sweep):
    def first(*arguments: str) -> str:
        return compare("sweep", "figures=elbo", *arguments)[1].split("\n\n")[1].splitlines()[1].split()[0]

    (sweep / "20-0" / "summary.json").write_text(json.dumps(changed(SUMMARY, {"metrics:test/elbo": 99.0})))
    assert first() == "5"
    assert {first(f"sort={name}") for name in ("elbo", ELBO, "test/elbo")} == {"20"}


def test_runs_that_are_not_done_are_left_out(compare, tmp_path):
    write(tmp_path / "good")
    write(tmp_path / "failed", summary={"status": "failed", "error": "out of memory\nmore"})
    (write(tmp_path / "young") / "summary.json").unlink()
    write(tmp_path / "untested", {"model:latent_dim": 2}, {"metrics": {"val/elbo": -3.0}})
    code, out, err = compare(".")
    assert (code, err) == (0, "")
    assert "left out: failed: status=failed (out of memory)" in out
    assert "left out: young: no summary.json" in out
    assert "left out: untested: no figures of split=test" in out
    code, out, err = compare("failed", "young")
    assert (code, out) == (2, "")
    assert "failed: status=failed" in err
    assert "young" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ("needs runs",)),
        (["nowhere"], ("nowhere does not exist",)),
        (["empty"], ("empty is no run and contains none",)),
        (["nowhere/*"], ("nowhere/*",)),
        (["last"], ("last",)),
        (["a", "sort=elb"], ("sort=elb", "did you mean elbo?")),
        (["a", "figures=[kl,reconstructio]"], ("figures=reconstructio", "did you mean reconstruction?")),
        (["a", "figures=[]"], ("figures=[]",)),
        (["a", "split=tets"], ("split=tets", "val")),
        (["a", "srot=elbo"], ("srot", "did you mean sort?")),
        (["a", "+x=1"], ("x: no such key",)),
        (["a", "output=nowhere/x.csv"], ("output=nowhere/x.csv",)),
        (["a", "output=x.xls"], ("output=x.xls", ".csv")),
        (["a", "-m"], ("leave out -m",)),
        (["a", "runs=[a]"], ("runs=",)),
        (["damaged"], ("damaged/summary.json is damaged",)),
        (["odd"], ("odd", "damaged")),
        (["eval"], ("eval/evaluation.json is damaged", "vaelab eval run=eval")),
        (["split"], ("split/evaluation.json is of split=val",)),
        (["text"], ("text", "damaged")),
        (["config"], ("config/config.yaml",)),
        (["foreign"], ("foreign is no run of vaelab",)),
    ],
)
def test_what_the_user_gets_wrong(compare, tmp_path, arguments, named):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a")
    (write(tmp_path / "damaged") / "summary.json").write_text('{"status": "fin')
    write(tmp_path / "odd", summary={"metrics": None})
    (write(tmp_path / "eval") / "evaluation.json").write_text("[1, 2")
    write(tmp_path / "split", evaluation={"split": "val"})
    write(tmp_path / "text", evaluation={f"figures:{ELBO}": "high"})
    (write(tmp_path / "config") / "config.yaml").write_text("a: [1")
    (write(tmp_path / "foreign") / "config.yaml").write_text("a: 1")
    code, out, err = compare(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    assert all(name in err for name in named), err


def test_it_imports_no_torch_and_completes_its_keys(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", with_seed(1))
    code = (
        "import os, sys; from vaelab.cli import main; assert main(['compare', 'a', 'b']) == 0;"
        "os.environ['COMP_LINE'] = 'vaelab compare a sp'; main(['-sc', 'query=bash']);"
        "assert not {'torch', 'scipy.stats', 'pytorch_lightning'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "split="


def test_real_runs(train, capsys, monkeypatch):
    """What vaelab train writes is what this reads: its names, splits and settings."""
    monkeypatch.setenv("COLUMNS", "100")
    assert train("-m", "model=vae,vqvae", "seed=0,1", "trainer.max_epochs=1", "sweep.dir=sweep").code == 0
    assert main(["compare", "sweep"]) == 0
    out = capsys.readouterr().out
    assert "4 runs in 2 configurations: split=test, dataset=fake" in out
    assert "not ranked across likelihood=bernoulli and gaussian_learned" in out
    assert "elbo: model=vqvae has none" in out
    assert main(["compare", "sweep", "split=val", "figures=all"]) == 0
    out = capsys.readouterr().out
    assert "codebook_usage" not in out  # it goes by evaluation's name
    assert "usage" in out
