"""`vaelab eval`: every variant is measured, the same way twice, and what cannot be measured is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vaelab.cli import main
from vaelab.evaluate import SECTIONS
from vaelab.evaluation.subject import Subject

VARIANTS = ("ae", "vae", "beta", "capacity", "cvae", "vqvae")
QUICK = ["importance_samples=8", "generated=100", "gap_images=8", "device=cpu"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for the judges, which tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluate(train, monkeypatch, capsys, cache):
    """Runs `vaelab eval` in this process; the result has the evaluation as `.figures` and so on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*arguments: str):
        code = main(["eval", *[q for q in QUICK if q.partition("=")[0] not in "".join(arguments)], *arguments])
        return code, *capsys.readouterr()

    return run


def read(run: Path, name: str = "evaluation.json") -> dict:
    return json.loads((run / name).read_text())


def trained(train, *arguments: str, size: int = 400) -> Path:
    run = train("network=mlp_512_256", f"dataset.size={size}", "dataset.classes=5", *arguments)
    assert run.code == 0, run.err
    return run.run


EXPECTED = {
    "ae": {"likelihood/reconstruction", "reconstruction/mse_mean", "labels/linear_probe_accuracy"},
    "vqvae": {"likelihood/rate_uniform_bits", "codebook/perplexity", "samples/frechet", "reconstruction/mse_median"},
    "cvae": {
        "likelihood/elbo",
        "conditional/sample_accuracy",
        "conditional/label_swap_mse",
        "samples/nearest_generated",
    },
}
WITH_POSTERIOR = {"likelihood/log_p_hat", "latents/active", "latents/amortisation_gap", "samples/recall"}


@pytest.mark.parametrize("model", VARIANTS)
def test_every_variant_is_measured_by_the_same_ruler(train, evaluate, model):
    network = [] if model == "vqvae" else ["network=mlp_512_256"]
    run = train(f"model={model}", *network, "dataset.size=400", "dataset.classes=5").run
    code, _, err = evaluate(f"run={run}")
    assert (code, err) == (0, "")
    found, summary = read(run), json.loads((run / "summary.json").read_text())
    assert found["status"] == "finished"
    assert EXPECTED.get(model, WITH_POSTERIOR) <= found["figures"].keys()
    assert all(map(math.isfinite, found["figures"].values()))
    assert found["protocols"].keys() | found["skipped"].keys() == SECTIONS.keys() - {"anomaly"}
    assert not found["protocols"].keys() & found["skipped"].keys()
    assert found["images"] == summary["data"]["test"] == 80
    # the same images and weights as the test at the end of the training
    error = 5 * found["figures"].get("likelihood/elbo_se", 0.0) + 1e-3
    assert found["figures"]["likelihood/reconstruction"] == pytest.approx(
        summary["metrics"]["test/reconstruction"], abs=error
    )
    if "kl" in summary["metrics"]:
        assert found["figures"]["likelihood/kl"] == pytest.approx(summary["metrics"]["test/kl"], rel=1e-5)
    if model == "vqvae":
        for name, of_training in (("perplexity", "perplexity"), ("usage", "codebook_usage")):
            assert found["figures"][f"codebook/{name}"] == pytest.approx(
                summary["metrics"][f"test/{of_training}"], rel=1e-5
            )
    with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
        assert {len(arrays[name]) for name in arrays.files} == {80}
        assert arrays["mse"].mean() == pytest.approx(found["figures"]["reconstruction/mse_mean"])


def test_the_same_evaluation_twice_gives_the_same_figures_in_any_order(train, evaluate):
    run = trained(train, "dataset.binarize=dynamic")
    assert evaluate(f"run={run}")[0] == 0
    first = read(run)
    assert evaluate(f"run={run}")[0] == 0
    assert read(run)["figures"] == first["figures"]
    assert evaluate(f"run={run}", "sections=[samples,reconstruction]")[0] == 0
    again = read(run)
    assert again["figures"] == first["figures"]
    assert again["vectors"] == first["vectors"]
    (run / "evaluation.json").unlink()
    assert evaluate(f"run={run}", "sections=[reconstruction]")[0] == 0
    alone = read(run)["figures"]
    assert alone == {name: v for name, v in first["figures"].items() if name.startswith("reconstruction/")}


def test_binarised_images_are_the_same_at_every_pass(train, evaluate):
    from vaelab import measure, runs

    run = trained(train, "dataset.binarize=dynamic")
    options = {"checkpoint": "best", "split": "test", "device": "cpu", "root": None, "seed": 0, "memory": 8}
    options |= {"importance_samples": 2, "generated": 100, "gap_images": 2}
    subject, _ = measure.prepare(run, runs.read_config(run), options)
    first, second = (torch.cat([batch.images for batch in subject.batches()]) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    other, _ = measure.prepare(run, runs.read_config(run), options | {"seed": 1})
    assert not torch.equal(first, torch.cat([batch.images for batch in other.batches()]))


def test_other_splits_seeds_and_checkpoints_are_other_evaluations(train, evaluate):
    run = trained(train, "dataset.val_size=60")
    assert evaluate(f"run={run}", "sections=[likelihood,reconstruction]")[0] == 0
    assert evaluate(f"run={run}", "split=val", "sections=[reconstruction]")[0] == 0
    assert read(run, "evaluation-val.json")["images"] == 60
    assert "likelihood/elbo" in read(run)["figures"]
    # sections of other weights, or of another seed, are not kept beside new ones
    assert evaluate(f"run={run}", "seed=1", "sections=[reconstruction]")[0] == 0
    assert "likelihood/elbo" not in read(run)["figures"]
    with np.load(run / "evaluation.npz") as arrays:
        assert "elbo" not in arrays.files


def test_a_section_that_was_asked_for_and_cannot_be_measured_is_an_error_after_the_others(train, evaluate):
    run = trained(train)
    code, out, err = evaluate(f"run={run}", "sections=[disentanglement,codebook,reconstruction]")
    assert code == 2
    assert "mse_mean" in out
    assert "disentanglement: the data set has no ground-truth factors" in err
    assert "codebook: the model has no codebook" in err
    assert "Traceback" not in err
    assert "reconstruction/mse_mean" in read(run)["figures"]


def test_nan_codes_are_named_and_the_rest_is_measured(train, evaluate):
    run = trained(train, "model=ae")
    path = run / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    weights = saved["state_dict"]
    name = next(n for n in weights if n.startswith("encoder") and n.endswith("bias") and weights[n].numel() == 20)
    weights[name][3] = float("nan")
    torch.save(saved, path)
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "Traceback" not in err
    assert "labels: " in err
    assert "NaN" in err
    assert read(run)["status"] == "finished"
    assert not [name for name in read(run)["figures"] if name.startswith("reconstruction/")]


def test_factors_are_measured_where_the_data_has_them(train, evaluate):
    sizes = ["dataset=sprites", "dataset.train_size=300", "dataset.val_size=0.2", "dataset.test_size=3000"]
    run = train(*sizes, "model=vae", "network=mlp", "network.hidden_dims=[32]", small=False).run
    assert evaluate(f"run={run}", "sections=[disentanglement]")[0] == 0
    figures = read(run)["figures"]
    assert {"disentanglement/mig", "disentanglement/dci_disentanglement"} <= figures.keys()
    assert 0 <= figures["disentanglement/mig"] <= 0.3  # one epoch teaches nothing


def test_other_images_are_told_from_its_own(train, evaluate):
    run = trained(train, "dataset.image_shape=[1,8,8]", "trainer.max_epochs=15")
    code, _, err = evaluate(f"run={run}", "sections=[anomaly]", "ood=digits")
    assert (code, err) == (0, "")
    found = read(run)["figures"]
    assert found["anomaly/auroc_elbo"] > 0.9
    assert found["anomaly/auroc_log_p_hat"] > 0.9
    assert "Digits" in read(run)["protocols"]["anomaly"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run=nowhere"], "nowhere is no run"),
        (["run=last"], "no run with a checkpoint"),
        (["split=all"], "split=all: must be test, val or train"),
        (["importance_samples=0"], "importance_samples=0: must be an integer of 1 or more"),
        (["sections=[likelyhood]"], "did you mean likelihood?"),
        (["sections=likelihood"], "must be a list"),
        (["importance_sample=3"], "did you mean importance_samples?"),
        (["device=cuda:99"], "device=cuda:99: it cannot be used here"),
        (["ood=mnits"], "no such option"),
        (["ood=sprites"], "the model takes 1 x 8 x 8"),
        (["root=/nowhere"], "root=/nowhere: the run's data set is read from no folder"),
        (["ood=mnist", "ood.root=/nowhere"], "/nowhere"),
        (["split=val"], "no such images"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(train, evaluate, arguments, words):
    run = [] if arguments[0].startswith("run=") else [f"run={trained(train, 'dataset.val_size=0')}"]
    code, _, err = evaluate(*run, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def test_a_damaged_or_missing_checkpoint_is_said(train, evaluate):
    run = trained(train)
    path = run / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "best.ckpt is damaged" in err
    path.unlink()
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "best.ckpt does not exist: take last.ckpt" in err
    assert not (run / "evaluation.json").exists()


def test_encodings_are_computed_once(train, evaluate, monkeypatch):
    run, passes = trained(train), []
    encode = Subject.encode
    monkeypatch.setattr(Subject, "encode", lambda self, split: passes.append(split) or encode(self, split))
    assert evaluate(f"run={run}", "sections=[latents,reconstruction,labels]")[0] == 0
    assert len(passes) == 2  # the split, and the training images of the probes
