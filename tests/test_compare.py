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
from vaelab.core.errors import UserError
from vaelab.evaluation.comparison import compared, notes, rules, tables
from vaelab.evaluation.comparison import configurations as comparison
from vaelab.evaluation.comparison.rate_distortion import rate_distortion

ELBO, MSE, LOSS = "likelihood/elbo", "reconstruction/mse_mean", "training/loss"
LOG_P = "likelihood/log_p_hat"
K = "figures:likelihood/importance_samples"
OPTIONS = {"vaelab.models.VAE": "vae", "vaelab.models.BetaVAE": "beta", "vaelab.nn.likelihoods.Bernoulli": "bernoulli"}

CONFIG = {
    "seed": 0,
    "run": {"name": "vae-digits", "dir": "x"},
    "trainer": {"max_epochs": 5, "default_root_dir": "x", "limit_test_batches": None},
    "likelihood": {"_target_": "vaelab.nn.likelihoods.Bernoulli"},
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
        "likelihood": {"_target_": "vaelab.nn.likelihoods.Bernoulli"},
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
    "subject": {"conditional": False, "scheduled": {}},
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
    measured = {} if evaluation is None else changed(EVALUATION, evaluation)
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


def test_a_seed_of_the_data_that_was_set_is_a_setting_though_it_equals_a_runs_own():
    given = {"dataset:seed": 0, "run:overrides": ["dataset.seed=0"]}
    assert len(rows_of(*(run(f"r{seed}", {"seed": seed} | given) for seed in range(3)))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset:seed": 7},
        {"model:latent_dim": 3},
        {"trainer:max_epochs": 9},
        {"model:likelihood:_target_": "vaelab.nn.likelihoods.Laplace"},
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
        {"report": False},
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
    "likelihood": ({"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian"}, {}, {}),
    "likelihood: density": ({}, {"objective:log_likelihood_is": "not a density: x"}, {}),
    "condition": ({}, {}, {"subject:conditional": True}),
    "reduction": ({}, {"objective:reduction": "mean"}, {}),
    "objective": ({"model:_target_": "vaelab.models.BetaVAE"}, {}, {}),
    "objective: weight": ({"model:beta": 2.0}, {}, {}),
    "objective: schedule": ({"schedule:beta": {"_target_": "vaelab.nn.schedules.linear", "over": 3}}, {}, {}),
    "importance_samples": ({}, {}, {"figures:likelihood/importance_samples": 50}),
}


CONCERNED = {
    LOSS: {"objective", "data", "likelihood", "condition", "reduction"},
    ELBO: {"data", "likelihood", "condition", "reduction"},
    "likelihood/reconstruction": {"objective", "data", "likelihood", "condition", "reduction"},
    "likelihood/log_p_hat": {"data", "likelihood", "condition", "reduction", "importance_samples"},
    "likelihood/bits_per_dim": {"data", "likelihood", "condition", "reduction", "importance_samples"},
    MSE: {"data", "condition"},
    "reconstruction/sampled_mse_median": {"data", "condition"},
    "disentanglement/mig": {"data", "condition"},
    "samples/frechet": {"data", "condition"},
    "samples/recall": {"data", "condition"},
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
    assert comparison.rank(rows, "likelihood/kl") == (set(), set(), [], [])


def test_protocols_must_agree():
    def measured(name: str, protocol: str, latents: int) -> compared.Run:
        evaluation = {"figures:samples/frechet": 3.0 + latents, "protocols": {"samples": protocol}}
        return run(name, {"model:latent_dim": latents}, evaluation=evaluation)

    assert comparison.rank(rows_of(measured("a", "p", 2), measured("b", "p", 3)), "samples/frechet").best
    ranking = comparison.rank(rows_of(measured("a", "p", 2), measured("b", "q", 3)), "samples/frechet")
    assert not ranking.best
    assert ranking.refused == [("protocol", "different protocols")]


def test_a_row_whose_own_seeds_disagree_has_no_mean():
    """Means over importance bounds of different K are of nothing."""
    mixed = [run("a", evaluation={}), run("b", with_seed(1), evaluation={K: 50})]
    for others in ([], [run("c", {"model:latent_dim": 7}, evaluation={})]):
        rows = rows_of(*mixed, *others)
        (i,) = [i for i, row in enumerate(rows) if row.mixed]
        assert LOG_P not in rows[i].figures
        assert rows[i].mixed[LOG_P] == ("importance_samples", "importance_samples=50 and 500", 2)
        assert rows[i].figures[ELBO].n == 2  # which K draws do not change
        assert not comparison.rank(rows, LOG_P).best
        assert bool(comparison.rank(rows, ELBO).best) is bool(others)
        assert [row.figures[LOG_P].n for j, row in enumerate(rows) if j != i] == [1] * len(others)


def test_evaluated_figures_are_not_averaged_with_those_of_trainings_end():
    """The images that training's end was limited to are no reason either: its figures are not looked at."""
    limited = {"trainer:limit_test_batches": 2}
    runs = [run(f"r{i}", with_seed(i) | limited, evaluation={} if i < 2 else None) for i in range(3)]
    (row,) = rows_of(*runs)
    assert row.figures[ELBO] == comparison.interval([-25.5, -25.5])
    assert row.figures[LOSS].n == 3  # of training's end in all three
    assert not row.mixed
    rows = rows_of(*runs, run("whole", {"model:latent_dim": 7}, evaluation={}))
    assert comparison.rank(rows, ELBO).best  # an evaluation is of all images
    assert [why for why, _ in comparison.rank(rows, LOSS).refused] == ["data"]


@pytest.mark.parametrize(("epoch", "by", "expected"), [(4, "val/elbo", -25.5), (5, "val/elbo", -26), (5, None, -25.5)])
def test_an_evaluation_of_replaced_weights_is_left_aside(epoch, by, expected):
    found = run("a", summary={"best:epoch": epoch, "best:by": by}, evaluation={})
    assert found.figures[ELBO] == expected
    assert found.outdated is (expected == -26)
    assert bool(found.evaluated) is not found.outdated
    last = run("a", summary={"best:epoch": 9}, evaluation={"checkpoint:name": "last"})
    assert not last.outdated


def test_labels_are_not_read_off_codes_that_were_given_them():
    """Not across models, and not among those that were given them; the others are ranked all the same."""
    figure = "labels/linear_probe_accuracy"
    runs = [
        run(
            f"{given}{i}",
            {"model:latent_dim": i + 10 * given},
            {},
            {f"figures:{figure}": i, "subject:conditional": given},
        )
        for given, i in itertools.product((False, True), (1, 2))
    ]
    rows = rows_of(*runs)
    (best,) = comparison.rank(rows, figure).best
    assert rows[best].runs[0].name == "False2"
    assert [why for why, _ in comparison.rank(rows, figure).refused] == ["label"]


def test_the_config_says_what_is_conditional_where_the_evaluation_does_not():
    of_config = run("a", {"model:label_dim": 10})
    of_older = run("b", {"model:label_dim": 10}, evaluation={"subject": {}})
    assert {r.aspect("condition", ELBO)["condition"] for r in (of_config, of_older)} == {"label"}
    assert run("c").aspect("condition", ELBO) == {"condition": "none"}


WRITTEN = {
    "max": (
        *("likelihood/elbo", "likelihood/log_p_hat", "disentanglement/beta_vae", "disentanglement/factor_vae"),
        *("disentanglement/mig", "disentanglement/sap", "disentanglement/dci_disentanglement"),
        *("disentanglement/dci_completeness", "disentanglement/dci_informativeness", "disentanglement/modularity"),
        *("disentanglement/infom", "disentanglement/infoe", "disentanglement/infoc"),
        *("udr/lasso", "udr/spearman"),
        *("disentanglement/explicitness", "labels/linear_probe_accuracy", "labels/knn_accuracy"),
        *("conditional/sample_accuracy", "samples/precision", "samples/recall"),
        *("anomaly/auroc_elbo", "anomaly/auroc_log_p_hat", "anomaly/auroc_reconstruction"),
        *("reconstruction/psnr_mean", "reconstruction/ssim_median", "reconstruction/ms_ssim_mean"),
    ),
    "min": (
        *("likelihood/reconstruction", "likelihood/bits_per_dim", "samples/frechet", "training/loss"),
        *("inception/fid", "inception/rfid", "lpips/mean", "likelihood/total"),
        *("reconstruction/mse_mean", "reconstruction/mse_median"),
        *("reconstruction/sampled_mse_mean", "reconstruction/sampled_mse_median"),
    ),
    "": (
        *("likelihood/importance_samples", "likelihood/kl", "likelihood/effective_samples", "likelihood/elbo_se"),
        *("likelihood/log_p_hat_se", "likelihood/reconstruction_se", "likelihood/kl_se"),
        *("likelihood/rate_uniform_bits", "likelihood/rate_empirical_bits", "likelihood/rate_positional_bits"),
        *("latents/active", "latents/dimensions", "latents/images", "latents/kl_index_code_mi"),
        *("latents/kl_total_correlation", "latents/kl_dimension_wise", "latents/kl_aggregate", "latents/kl_marginal"),
        *("latents/amortisation_gap", "latents/kl_index_code_mi_se", "latents/kl_total_correlation_se"),
        *("latents/kl_dimension_wise_se", "latents/kl_aggregate_se", "latents/amortisation_gap_se"),
        *("reconstruction/mse_std", "reconstruction/mse_min", "reconstruction/mse_max"),
        *("reconstruction/sampled_mse_std", "reconstruction/sampled_mse_min", "reconstruction/sampled_mse_max"),
        *("labels/mutual_information_max", "labels/chance", "codebook/codes", "codebook/dead", "codebook/usage"),
        *("codebook/perplexity", "codebook/drawn", "conditional/classifier_accuracy", "conditional/chance"),
        *("conditional/reconstruction_mse", "conditional/label_swap_mse", "conditional/label_swap_ratio"),
        *("conditional/label_swap_followed", "conditional/latent_swap_mse", "conditional/latent_swap_ratio"),
        *("conditional/label_in_z_accuracy", "conditional/label_in_z_chance", "samples/images"),
        *("samples/frechet_real", "samples/precision_real", "samples/recall_real", "samples/nearest_generated"),
        *("samples/nearest_reconstructed", "samples/nearest_real", "anomaly/images", "anomaly/auroc_elbo_se"),
        *("anomaly/auroc_log_p_hat_se", "anomaly/auroc_reconstruction_se", "training/beta", "training/capacity_gap"),
    ),
}
"""Every figure that vaelab eval writes, and some of training's, by the end that is better."""


@pytest.mark.parametrize(("figure", "better"), [(name, better) for better, names in WRITTEN.items() for name in names])
def test_every_figure_has_its_direction(figure, better):
    assert rules.rule(figure).better == better
    if better and figure != LOSS:
        one, two = ({f"figures:{figure}": value} for value in (1.0, 2.0))
        rows = rows_of(run("a", evaluation=one), run("b", {"model:latent_dim": 30}, evaluation=two))
        (i,) = comparison.rank(rows, figure).best
        assert rows[i].figures[figure].mean == {"max": 2, "min": 1}[better]


def test_within_each_comparable_set_the_best_is_marked():
    gaussian = {"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian"}
    runs = [
        run(f"{i}{j}", like | {"model:latent_dim": j}, {"metrics:test/elbo": -20.0 - j})
        for (i, like), j in itertools.product(enumerate(({}, gaussian)), (1, 2))
    ]
    rows = rows_of(*runs)
    best = [rows[i].settings["model.latent_dim"] for i in comparison.rank(rows, ELBO).best]
    assert best == [1, 1]


def test_best_is_the_right_end():
    rows = rows_of(beta(1, elbo=1.0), beta(2, elbo=2.0))
    (i,) = comparison.rank(rows, ELBO).best
    assert rows[i].settings["model.beta"] == 2
    assert comparison.ordered(rows, ELBO)[0] is rows[i]


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
    gaussian = {"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian"}
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
    (curve,) = rate_distortion(rows)
    assert [rows[point.index].settings["model.beta"] for point in curve] == [8, 4, 3, 2, 1]
    assert [point.dominated for point in curve] == [False, False, True, True, False]
    for one, other in itertools.permutations(curve, 2):  # no point left unmarked is worse than another in both
        assert one.dominated or not (other.rate < one.rate and other.distortion < one.distortion)


def test_a_curve_needs_something_that_moves_along_it():
    assert not rate_distortion(rows_of(run("a"), run("b", {"model:latent_dim": 3})))
    assert rate_distortion(rows_of(beta(1), beta(2)))
    other = run("g", {"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian", "model:beta": 2})
    assert not rate_distortion(rows_of(beta(1), other))


def test_rate_of_codes_is_in_nats():
    evaluation = {"figures": {"likelihood/reconstruction": 5.0, "likelihood/rate_uniform_bits": 16 * 9.0}}
    codes = run("vq", {"model:num_embeddings": 512}, {"metrics": {}}, evaluation)
    (curve,) = rate_distortion(rows_of(codes, beta(1)))
    assert max(point.rate for point in curve) == pytest.approx(16 * math.log(512))


def annealed(seed: int, trained_at: float, evaluated: bool = False) -> compared.Run:
    """A run of beta=8 whose checkpoint was trained at a smaller one."""
    schedule = {"schedule:beta": {"_target_": "vaelab.nn.schedules.linear", "start": 1.0, "end": 8.0}}
    config = with_seed(seed) | schedule | {"model:_target_": "vaelab.models.BetaVAE", "model:beta": 8.0}
    measured = {"subject:scheduled": {"beta": trained_at}} if evaluated else None
    logged = {"metrics:test/beta": 99.0 if evaluated else trained_at, "metrics:test/kl": 9.0}
    return run(f"annealed{seed}", config, logged, measured)


@pytest.mark.parametrize("evaluated", [False, True])
def test_weights_from_before_the_schedules_end_are_told(evaluated):
    reached = [annealed(i, 8 - 0.3 * i, evaluated) for i in range(2)]
    assert notes.schedules(rows_of(*reached)) == []
    rows = rows_of(beta(1, beta=1.0, kl=1.0), *reached, annealed(2, 2.4, evaluated))
    (line,) = notes.schedules(rows)
    assert line == "beta: the best checkpoints of 1 row were reached before the schedule ended: beta 2.4 to 8 of 8"
    (curve,) = rate_distortion(rows)
    titles, *cells = tables.curve_table(rows, curve, 100).splitlines()
    assert "measured beta" in titles
    assert any("2.4 to 8" in cell for cell in cells)
    (curve,) = rate_distortion(rows_of(beta(1, beta=1.0, kl=1.0), *reached))
    assert "measured" not in tables.curve_table(rows_of(beta(1, beta=1.0, kl=1.0), *reached), curve, 100)


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


def test_sets_that_cannot_be_compared_have_letters():
    gaussian = {"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian"}
    runs = [
        run(f"{i}{j}", like | {"model:latent_dim": j}, {"metrics:test/elbo": -20.0 - j}, {} if i else None)
        for (i, like), j in itertools.product(enumerate(({}, gaussian)), (1, 2))
    ]
    rows = rows_of(*runs)
    names = tables.titles([ELBO, LOG_P])
    rankings = {name: comparison.rank(rows, name) for name in names}
    letters = tables.sets_by_letter(names, rankings)
    assert list(letters.values()) == ["a", "b"]
    table = tables.figures_table(rows, ["likelihood"], names, rankings, 100).splitlines()
    assert [line.count(" a") + 2 * line.count(" b") for line in table[1:]] in ([1, 1, 2, 2], [2, 2, 1, 1])
    legend = " ".join(notes.legend(rows, names, rankings))
    for members, letter in letters.items():
        assert f"{letter}: likelihood={rows[members[0]].settings['likelihood']}" in legend
    alone = {LOG_P: "log_p_hat"}  # one set: no letter is needed
    assert not tables.sets_by_letter(alone, rankings)
    assert "letter" not in " ".join(notes.legend(rows, alone, rankings))


def test_values_that_are_sentences_are_not_quoted():
    text = "cross-entropy on pixels of a kind that takes a whole sentence to tell"
    rows = rows_of(
        run("a", summary={"objective:log_likelihood_is": text, "objective:reduction": text}),
        run("b", {"model:latent_dim": 1}, {"data:test": 3}),
        run("c", {"dataset:root": text}),
        run("d", {"model:latent_dim": 2}, evaluation={"protocols": {"likelihood": text}, K: 2.0}),
        run("e", {"model:latent_dim": 3}, evaluation={}),
    )
    names = tables.titles(sorted({name for row in rows for name in row.figures}))
    lines = notes.refusals(names, {name: comparison.rank(rows, name) for name in names})
    assert not any(text[:20] in line or "…" in line for line in lines)
    assert any("importance_samples=2 and 500:" in line for line in lines)
    assert len(lines) == len({line.rpartition(": ")[2] for line in lines})  # one per reason


def test_what_follows_from_the_binarisation_is_no_reason_of_its_own():
    binary = {"objective:log_likelihood_is": "a probability of binary images"}
    rows = rows_of(run("a"), run("b", {"dataset:binarize": "static"}, binary))
    assert [why for why, _ in comparison.rank(rows, ELBO).refused] == ["data"]


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
    write(tmp_path / "b", {"model:likelihood:_target_": "vaelab.nn.likelihoods.Gaussian"})
    write(tmp_path / "c", {"model:_target_": "vaelab.models.BetaVAE"})
    _, out, _ = compare(".")
    text = " ".join(out.split())
    assert "elbo, reconstruction: not ranked across likelihood=bernoulli and gaussian" in text
    assert "reconstruction: not ranked across model=beta and vae: they minimise different things" in text
    assert "loss" not in text  # which is no column
    assert "loss: not ranked across" in " ".join(compare(".", "figures=loss")[1].split())
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


def test_a_sweep_is_evaluated_by_one_command(compare, tmp_path):
    for number in range(2):
        write(tmp_path / f"s/{number}-vae-fake", with_seed(number))
    assert compare("s")[1].split()[-3:] == ["vaelab", "eval", "run=s"]
    write(tmp_path / "s/2-vae-fake", with_seed(2), evaluation={})
    assert compare("s")[1].split()[-3:] == ["vaelab", "eval", "run=s/0-vae-fake"]


def test_outdated_evaluations_are_named(compare, tmp_path):
    write(tmp_path / "a", summary={"best:epoch": 5}, evaluation={})
    write(tmp_path / "b", with_seed(1), evaluation={})
    code, out, err = compare(".", "output=x.json")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "outdated, so ignored, as their best checkpoints are newer: evaluations of a;" in text
    assert "to make one again: vaelab eval run=a" in text
    assert "not evaluated" not in text
    assert "-25.50 (1)" in text
    assert json.loads((tmp_path / "x.json").read_text())["outdated"] == ["a"]


def test_mixed_seeds_in_table_and_files(compare, tmp_path):
    write(tmp_path / "a", evaluation={})
    write(tmp_path / "b", with_seed(1), evaluation={K: 50})
    _, out, _ = compare(".", "figures=log_p_hat,elbo", "output=x.json")
    titles, cells = out.split("\n\n")[1].splitlines()
    assert cells.split()[titles.split().index("log_p_hat")] == "mixed"
    assert "log_p_hat: mixed: seeds of one row have importance_samples=50 and 500" in " ".join(out.split())
    (found,) = json.loads((tmp_path / "x.json").read_text())["configurations"]
    assert found["figures"][LOG_P]["mean"] is None
    assert found["figures"][ELBO]["mean"] == -25.5
    compare(".", "output=x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row[f"{LOG_P}_mean"], row[f"{LOG_P}_n"]) == ("", "2")


def test_what_is_shown_only_by_name(compare, tmp_path):
    """Standard errors not even so: an interval here is over seeds."""
    aside = {"figures:samples/frechet_real": 1.0, "figures:latents/images": 5.0, "figures:anomaly/auroc_elbo_se": 0.1}
    write(tmp_path / "a", evaluation=aside | {"figures:samples/frechet": 3.0, "figures:anomaly/auroc_elbo": 0.9})
    for figures in ("main", "all", "samples", "likelihood", "anomaly"):
        out = compare("a", f"figures={figures}", "output=x.json")[1].split("left out")[0]
        assert not any(name in out for name in ("frechet_real", "images", "importance_samples", "_se")), figures
        assert "_se" not in (tmp_path / "x.json").read_text()
    for figure in ("frechet_real", "latents/images", "importance_samples"):
        assert figure.rpartition("/")[2] in compare("a", f"figures={figure}")[1]
    assert compare("a", "figures=auroc_elbo_se")[0] == 2


def test_rate_and_distortion_stand_beside_all_figures_only(compare, tmp_path):
    for value in (1.0, 2.0):
        config = {"model:_target_": "vaelab.models.BetaVAE", "model:beta": value}
        write(tmp_path / f"{value}", config, {"metrics:test/kl": value})
    shown = {
        figures: "distortion" in compare(".", f"figures={figures}")[1] for figures in ("main", "all", "elbo", "kl")
    }
    assert shown == {"main": True, "all": True, "elbo": False, "kl": False}


def test_the_file_is_written_before_anything_is_printed(compare, sweep, tmp_path, monkeypatch):
    """The reader of a pipe may have gone."""

    def gone(*_):
        raise UserError("nobody reads this")

    monkeypatch.setattr("vaelab.evaluation.comparison.outcome.text", gone)
    assert compare("sweep", "output=x.csv")[:2] == (2, "")
    assert (tmp_path / "x.csv").is_file()


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
    assert "left out: untested: no metrics of split=test" in out
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
        (["a", "figures="], ("figures= is empty", "main or all")),
        (["a", "sort="], ("sort= is empty",)),
        (["a", "sort=elbo,mse"], ("sort=elbo,mse", "one metric")),
        (["a", "sort=[elbo]"], ("sort=", "one metric")),
        (["a", "sort=nope"], ("sort=nope", "figures=all", "likelihood")),
        (["a", "figures=nope"], ("figures=nope", "figures=all", "likelihood")),
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
    assert len(err) < 300
    assert all(name in err for name in named), err


def test_a_damaged_run_keeps_no_other_from_being_compared(compare, tmp_path):
    write(tmp_path / "a")
    (write(tmp_path / "b") / "config.yaml").write_text("a: [1")
    (write(tmp_path / "c") / "summary.json").write_text("{")
    code, out, err = compare("a", "b", "c")
    assert (code, err) == (0, "")
    assert "left out" in out
    assert "b/config.yaml is damaged" in out
    assert "c/summary.json is damaged" in out


@pytest.mark.slow
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
    sizes = ("trainer.max_epochs=1", "dataset.size=160")  # as many vectors as codes
    assert train("-m", "model=vae,vqvae", "seed=0,1", *sizes, "sweep.dir=sweep").code == 0
    assert main(["compare", "sweep"]) == 0
    out = capsys.readouterr().out
    assert "4 runs in 2 configurations: split=test, dataset=fake" in out
    assert "not ranked across likelihood=bernoulli and gaussian_learned" in out
    assert "elbo: model=vqvae has none" in out
    assert main(["compare", "sweep", "split=val", "figures=all"]) == 0
    out = capsys.readouterr().out
    assert "codebook_usage" not in out  # it goes by evaluation's name
    assert "usage" in out
