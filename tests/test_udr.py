"""UDR: codes of seeds that are the same up to order and sign agree, others do not; and its place in vaelab eval."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from tests.test_compare import CONFIG, changed, with_seed
from vaelab.cli import main
from vaelab.evaluation.metrics.disentanglement.udr import agreement, lasso, spearman, udr

N, D = 2000, 5
KINDS = [lasso, spearman]


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(seed, d=D):
    return rng(seed).normal(size=(N, d))


def masks(*codes):
    return [np.ones(z.shape[1], bool) for z in codes]


SAME = [
    normal(0)[:, order] * sign for order, sign in (([0, 1, 2, 3, 4], 1), ([3, 0, 4, 1, 2], -1), ([1, 2, 3, 4, 0], 2))
]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_are_the_same_up_to_order_sign_and_scale_agree(kind):
    assert udr(SAME, masks(*SAME), kind) == pytest.approx([1, 1, 1], abs=0.1)
    only = [z[:, :1] for z in SAME[:1] * 2]
    assert udr(only, masks(*only), kind) == pytest.approx([1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_independent_codes_do_not_agree_and_rotated_ones_agree_little(kind):
    apart = [normal(seed) for seed in range(3)]
    assert udr(apart, masks(*apart), kind) == pytest.approx([0, 0, 0], abs=0.03)
    turned = [normal(0) @ np.linalg.qr(rng(seed).normal(size=(D, D)))[0] for seed in range(5)]
    assert max(udr(turned, masks(*turned), kind)) < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_one_run_unlike_the_others_is_the_last_and_the_median_is_not_moved_by_it(kind):
    codes = [*SAME, normal(9)]
    scores = udr(codes, masks(*codes), kind)
    assert min(scores[:3]) > 0.9
    assert scores[3] < 0.03
    few = [*SAME[:2], normal(8), normal(9)]  # two of four: each has one that agrees among three others
    assert max(udr(few, masks(*few), kind)) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_that_a_run_does_not_use_play_no_part(kind):
    padded = [np.hstack([z, normal(20 + i, 2)]) for i, z in enumerate(SAME)]
    used = [np.arange(D + 2) < D] * 3
    assert udr(padded, used, kind) == pytest.approx(udr(SAME, masks(*SAME), kind))
    assert max(udr(padded, masks(*padded), kind)) < 0.8  # noise of a dead dimension has no partner
    constant = [np.hstack([z, np.full((N, 1), 0.3)]) for z in SAME]
    assert udr(constant, masks(*constant), kind) == pytest.approx(udr(SAME, masks(*SAME), kind))
    none = [np.zeros(D, bool), *masks(*SAME[1:])]
    assert udr(SAME, none, kind)[0] == 0  # a collapsed run


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (np.eye(3), 1),
        (0.5 * np.eye(3), 0.5),
        (np.ones((2, 2)), 0.5),
        (np.zeros((2, 3)), 0),
        (np.zeros((0, 3)), 0),
        (np.array([[1.0, 0, 0], [0, 1, 0]]), 4 / 5),  # one of three has no partner
        (np.array([[0.8, 0.2], [0, 0.5]]), (0.8 + 0.25 / 0.7 + 0.64 + 0.5) / 4),
    ],
)
def test_agreement_of_known_matrices(strength, expected):
    assert agreement(strength) == pytest.approx(expected)


def test_both_matrices_of_a_known_pair():
    z = normal(0, 2)
    a = (z - z.mean(0)) / z.std(0)
    b = np.stack([-(a[:, 1] ** 3), 0.6 * a[:, 0] + 0.8 * a[:, 1]], axis=1)
    assert spearman(a, b)[1, 0] == pytest.approx(1)  # any monotone curve
    assert spearman(a, b)[0, 1] == pytest.approx(6 / np.pi * np.arcsin(0.6 / 2), abs=0.03)
    b = (b - b.mean(0)) / b.std(0)
    assert lasso(a, b)[:, 1] == pytest.approx([0.5 / 0.9, 0.7 / 0.9], abs=0.03)


# --- vaelab eval ----------------------------------------------------------------------------------


def write(folder, seed, codes=None, kl=(1.0,) * D, **config):
    """Writes what `vaelab eval` leaves of a run's section latents."""
    folder.mkdir(parents=True)
    tree = changed(CONFIG, with_seed(seed) | config)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    evaluation = {
        **{"run": folder.name, "checkpoint": {"name": "best", "epoch": 1}, "split": "test", "images": N, "seed": 0},
        **{"figures": {}, "vectors": {}, "arrays": {}, "protocols": {}, "skipped": {}, "seconds": {}},
    }
    if codes is not None:
        evaluation |= {"vectors": {"latents/kl_per_dim": list(kl)}, "arrays": {"latents": ["posterior_mean"]}}
        np.savez(folder / "evaluation.npz", posterior_mean=codes)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def measured(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_seeds_of_a_setting_are_held_against_each_other_and_other_settings_apart(tmp_path, capsys):
    runs = [write(tmp_path / f"{i}-a", i, z) for i, z in enumerate(SAME)]
    others = [write(tmp_path / f"{3 + i}-b", i, normal(i), **{"model:latent_dim": 7}) for i in range(2)]
    single = write(tmp_path / "5-c", 0, SAME[0], **{"model:latent_dim": 8})
    assert main(["eval", f"run={tmp_path}", "sections=[udr]"]) == 0
    for run in runs:
        assert measured(run)["figures"]["udr/lasso"] == pytest.approx(1, abs=0.1)
        assert measured(run)["figures"]["udr/spearman"] == pytest.approx(1, abs=0.1)
        assert "over 2 other seeds" in measured(run)["protocols"]["udr"]
        assert "KL above 0.01 nats" in measured(run)["protocols"]["udr"]
    assert all(measured(run)["figures"]["udr/lasso"] < 0.03 for run in others)
    assert "udr" not in measured(single)["protocols"]
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["run", "udr"]
    assert len(table) == 1 + 5


def test_what_a_dimension_costs_says_whether_it_counts(tmp_path):
    codes = [np.hstack([z, normal(20 + i, 1)]) for i, z in enumerate(SAME[:2])]
    runs = [write(tmp_path / str(i), i, z, kl=[1.0] * D + [0.009]) for i, z in enumerate(codes)]
    assert main(["eval", f"run={tmp_path}", "sections=[udr]"]) == 0
    assert measured(runs[0])["figures"]["udr/spearman"] == pytest.approx(udr(SAME[:2], masks(*SAME[:2]), spearman)[0])


@pytest.mark.parametrize(
    ("seeds", "codes", "arguments", "says"),
    [
        ((0, 0), SAME[0], [], "udr: no two of these runs differ in their seed alone"),
        ((0,), SAME[0], [], "sections: udr holds runs of several seeds"),
        ((0, 1, 2), None, [], "0-x and 2 more: udr takes the codes that latents keeps: sections=[latents,udr]"),
        ((0, 1), SAME[0], ["prior=gmm"], "leave out prior=gmm"),
    ],
)
def test_what_cannot_be_held_against_other_seeds_is_said_in_a_line(tmp_path, capsys, seeds, codes, arguments, says):
    folders = [write(tmp_path / f"{i}-x", seed, codes) for i, seed in enumerate(seeds)]
    named = ",".join(map(str, folders))
    assert main(["eval", f"run=[{named}]", "sections=[udr]", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


@pytest.mark.slow
def test_an_evaluation_of_several_seeds_has_it_by_itself(finished, capsys):
    arguments = ["network=mlp_512_256", "dataset.size=400", "dataset.classes=5"]
    runs = [finished(*arguments, f"seed={seed}").run for seed in (0, 1)]
    quick = ["importance_samples=2", "generated=20", "gap_images=2", "device=cpu", "report=false"]
    assert main(["eval", f"run=[{','.join(map(str, runs))}]", *quick]) == 0
    assert "udr" in capsys.readouterr().out
    for run in runs:
        assert 0 <= measured(run)["figures"]["udr/lasso"] <= 1.2
        assert measured(run)["protocols"]["udr"].startswith("UDR")
