"""`vaelab eval`: every variant is measured, the same way twice, and what cannot be measured is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vaelab
from tests.test_conf import ATTRIBUTES
from vaelab.cli import main
from vaelab.commands.eval import NEEDS, SECTIONS
from vaelab.core.config import build
from vaelab.evaluation.subject import Subject
from vaelab.runs import read_config

QUICK = ["importance_samples=8", "generated=100", "gap_images=8", "device=cpu"]


@pytest.fixture
def evaluate(monkeypatch, capsys, shared):
    """Runs `vaelab eval` in this process; tests share the judges that it trains."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))

    def run(*arguments: str):
        code = main(["eval", *[q for q in QUICK if q.partition("=")[0] not in "".join(arguments)], *arguments])
        return code, *capsys.readouterr()

    return run


def read(run: Path, name: str = "evaluation.json") -> dict:
    return json.loads((run / name).read_text())


def trained(finished, *arguments: str, size: int = 400) -> Path:
    return finished("network=mlp_512_256", f"dataset.size={size}", "dataset.classes=5", *arguments).run


OF_CODES = {"likelihood/rate_uniform_bits", "codebook/perplexity", "samples/frechet", "reconstruction/mse_median"}
EXPECTED = {
    "ae": {"likelihood/reconstruction", "reconstruction/mse_mean", "labels/linear_probe_accuracy"},
    "wae": {"likelihood/reconstruction", "reconstruction/mse_mean", "samples/recall"},
    "vqvae": OF_CODES,
    "vqvae2": OF_CODES | {"codebook/perplexity_top", "codebook/usage_bottom"},
    "cvae": {
        "likelihood/elbo",
        "conditional/sample_accuracy",
        "conditional/label_swap_mse",
        "samples/nearest_generated",
    },
}
OTHERWISE = {"model=iwae", "model=m2"}
"""Variants whose KL in training is another: a mean over draws, and with that of the label."""

WITH_POSTERIOR = {"likelihood/log_p_hat", "latents/active", "latents/amortisation_gap", "samples/recall"}


def assert_measured(run: Path, words: list[str]) -> None:
    """The evaluation of a run is whole, of finite figures, and those that training knows are what it found.

    `test_parts` asks for it of every variant and of every part. words: those that choose it, the model first.
    """
    expected = EXPECTED.get(words[0].removeprefix("model="), WITH_POSTERIOR) | {"reconstruction/psnr_mean"}
    if ATTRIBUTES in words:
        expected = expected - {"labels/linear_probe_accuracy"}  # there are no classes
    found, summary = read(run), json.loads((run / "summary.json").read_text())
    assert found["status"] == "finished"
    assert expected <= found["figures"].keys()
    assert all(map(math.isfinite, found["figures"].values()))
    assert found["protocols"].keys() | found["skipped"].keys() == SECTIONS.keys() - NEEDS.keys()
    assert not found["protocols"].keys() & found["skipped"].keys()
    assert found["images"] == summary["data"]["test"] == 80
    # the same images and weights as the test at the end of the training
    error = 5 * found["figures"].get("likelihood/elbo_se", 0.0) + 1e-3
    assert found["figures"]["likelihood/reconstruction"] == pytest.approx(
        summary["metrics"]["test/reconstruction"], abs=error
    )
    closed = "KL in closed form" in found["protocols"].get("likelihood", "") and words[0] not in OTHERWISE
    if closed and "test/kl" in summary["metrics"]:
        assert found["figures"]["likelihood/kl"] == pytest.approx(summary["metrics"]["test/kl"], rel=1e-5)
    if "test/perplexity" in summary["metrics"]:
        for name, of_training in (("perplexity", "perplexity"), ("usage", "codebook_usage")):
            assert found["figures"][f"codebook/{name}"] == pytest.approx(
                summary["metrics"][f"test/{of_training}"], rel=1e-5
            )
    with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
        assert {len(arrays[name]) for name in arrays.files} == {80}
        assert arrays["mse"].mean() == pytest.approx(found["figures"]["reconstruction/mse_mean"])


@pytest.mark.slow
def test_the_same_evaluation_twice_gives_the_same_figures_in_any_order(finished, evaluate):
    run = trained(finished, "dataset.binarize=dynamic")
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


def test_binarised_images_are_the_same_at_every_pass(finished, evaluate):
    from vaelab import runs
    from vaelab.evaluation import measure

    run = trained(finished, "dataset.binarize=dynamic")
    options = {
        "checkpoint": "best",
        "split": "test",
        "device": "cpu",
        "root": None,
        "trust": False,
        "seed": 0,
        "memory": 8,
    }
    options |= {"importance_samples": 2, "generated": 100, "gap_images": 2}
    subject, _ = measure.prepare(run, runs.read_config(run), options)
    first, second = (torch.cat([batch.images for batch in subject.batches()]) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    other, _ = measure.prepare(run, runs.read_config(run), options | {"seed": 1})
    assert not torch.equal(first, torch.cat([batch.images for batch in other.batches()]))


def test_other_splits_seeds_and_checkpoints_are_other_evaluations(finished, evaluate):
    run = trained(finished, "dataset.val_size=60")
    assert evaluate(f"run={run}", "sections=[likelihood,reconstruction]")[0] == 0
    assert evaluate(f"run={run}", "split=val", "sections=[reconstruction]")[0] == 0
    assert read(run, "evaluation-val.json")["images"] == 60
    assert "likelihood/elbo" in read(run)["figures"]
    # sections of other weights, or of another seed, are not kept beside new ones
    assert evaluate(f"run={run}", "seed=1", "sections=[reconstruction]")[0] == 0
    assert "likelihood/elbo" not in read(run)["figures"]
    with np.load(run / "evaluation.npz") as arrays:
        assert "elbo" not in arrays.files


def test_a_section_that_was_asked_for_and_cannot_be_measured_is_an_error_after_the_others(finished, evaluate):
    run = trained(finished)
    code, out, err = evaluate(f"run={run}", "sections=[disentanglement,codebook,reconstruction]")
    assert code == 2
    assert "mse_mean" in out
    assert "disentanglement: the data set has no ground-truth factors" in err
    assert "codebook: the model has no codebook" in err
    assert "Traceback" not in err
    assert "reconstruction/mse_mean" in read(run)["figures"]


@pytest.mark.parametrize(
    ("arguments", "part", "lost", "left"),
    [
        (["model=ae"], "encoder", "labels", "likelihood"),
        (["model=vae"], "encoder", "latents", None),
        (["model=vae"], "decoder", "samples", "labels"),
        (["model=vae", "dataset.binarize=static"], "decoder", "samples", "labels"),
        (["model=vqvae", "network=conv"], "encoder", "codebook", None),
    ],
)
def test_nan_is_named_and_the_rest_is_measured(finished, evaluate, arguments, part, lost, left):
    run = trained(finished, *arguments)
    path = run / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    name = [n for n in saved["state_dict"] if n.startswith(part) and n.endswith("bias")][-1]
    saved["state_dict"][name][0] = float("nan")
    torch.save(saved, path)
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "Traceback" not in err
    assert f"{lost}: " in err
    assert "NaN" in err
    found = read(run)
    assert found["status"] == "finished"
    for section in ("reconstruction", lost, *(["likelihood"] if left != "likelihood" else [])):
        assert not [figure for figure in found["figures"] if figure.startswith(f"{section}/")]
    if left == "labels":
        assert "labels/knn_accuracy" in found["figures"]


def test_a_grey_range_moves_no_figure_that_is_in_unit_pixels(finished, evaluate):
    """The same weights on images in [-1, 1]: errors are given in [0, 1], bits in 256 levels."""
    run = trained(finished, "dataset.pixel_range=[-1,1]", "likelihood=gaussian", "model=cvae")
    assert evaluate(f"run={run}", "sections=[likelihood,reconstruction,conditional]", "importance_samples=4")[0] == 0
    figures, model = read(run)["figures"], vaelab.load(run)
    config = read_config(run)
    data = build(config["dataset"])
    data.setup()
    batch = data.as_model_sees(data.test.batch(torch.arange(80)))
    error = ((model.reconstruct(batch.images, batch.labels) - batch.images) / 2).square().flatten(1).mean(1)
    assert figures["reconstruction/mse_mean"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert figures["conditional/reconstruction_mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    bits = -figures["likelihood/log_p_hat"] / (64 * math.log(2)) + 7  # log2(256 / 2)
    assert figures["likelihood/bits_per_dim"] == pytest.approx(bits)
    assert figures["reconstruction/sampled_mse_mean"] > figures["reconstruction/mse_mean"]


def test_sigma_and_mean_of_single_images_are_the_encoder_s(finished, evaluate):
    run = trained(finished)
    assert evaluate(f"run={run}", "sections=[latents]", "gap_images=7")[0] == 0
    config = read_config(run)
    data = build(config["dataset"])
    data.setup()
    posterior = vaelab.load(run).encode(data.as_model_sees(data.test.batch(torch.arange(80))).images)
    mean, logvar = posterior.mean, posterior.logvar
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["posterior_mean"] == pytest.approx(mean.detach().numpy(), abs=1e-5)
        assert arrays["posterior_sigma"] == pytest.approx(logvar.detach().mul(0.5).exp().numpy(), abs=1e-5)
    assert "posteriors of 7 images" in read(run)["protocols"]["latents"]
    figures = read(run)["figures"]
    parts = sum(figures[f"latents/kl_{part}"] for part in ("index_code_mi", "total_correlation", "dimension_wise"))
    assert parts == pytest.approx(figures["latents/kl_aggregate"])
    assert parts == pytest.approx(figures["latents/kl_index_code_mi"] + figures["latents/kl_marginal"])
    assert figures["latents/kl_dimension_wise"] < figures["latents/kl_index_code_mi"]


def test_the_chosen_checkpoint_is_the_one_that_is_measured(finished, evaluate):
    run = trained(finished, "trainer.max_epochs=3")
    path = run / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"] = {n: torch.zeros_like(w) for n, w in saved["state_dict"].items()}
    torch.save(saved, path)
    assert evaluate(f"run={run}", "sections=[latents]")[0] == 0
    best = read(run)
    assert best["figures"]["latents/kl_aggregate"] > 0
    assert best["checkpoint"]["epoch"] == json.loads((run / "summary.json").read_text())["best"]["epoch"]
    assert evaluate(f"run={run}", "sections=[reconstruction]", "checkpoint=last")[0] == 0
    last = read(run)
    assert last["checkpoint"] == {"name": "last", "epoch": 3, "step": saved["global_step"]}
    assert "latents/active" not in last["figures"]
    with np.load(run / "evaluation.npz") as arrays:
        assert "posterior_mean" not in arrays.files


def test_probes_and_classifier_do_not_learn_from_what_they_are_asked(finished, evaluate):
    run = trained(finished)
    code, _, err = evaluate(f"run={run}", "split=train", "sections=[labels,samples]")
    assert code == 2
    assert err.count("learn from the training images") == 2


def test_distances_of_real_images_are_of_as_many_on_either_side(finished, evaluate, monkeypatch):
    from vaelab.evaluation import judged

    sizes, distance = [], judged.frechet_distance
    judge = SimpleNamespace(features=lambda images: images.flatten(1)[:, :16].float())
    monkeypatch.setattr(judged, "_judge", lambda subject: (judge, 1.0))
    monkeypatch.setattr(judged, "frechet_distance", lambda a, b: sizes.append((len(a), len(b))) or distance(a, b))
    run = trained(finished, "dataset.val_size=70", size=500)
    assert evaluate(f"run={run}", "sections=[samples]", "generated=90")[0] == 0
    assert sizes == [(90, 90), (70, 70)]
    assert "_real: of 70 images of val" in read(run)["protocols"]["samples"]


def test_subsets_are_drawn_from_a_sorted_split(train, evaluate, tmp_path):
    """A folder's images are sorted by class: the first ones are of one class."""
    from PIL import Image

    for label, level in (("dark", 30), ("light", 220)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(150):
            Image.new("L", (8, 8), level + i % 20).save(tmp_path / "pictures" / label / f"{i}.png")
    options = ["dataset=folder", "dataset.root=pictures", "dataset.size=8", "dataset.channels=1"]
    done = train(*options, "network=mlp_512_256", "trainer.max_epochs=1", small=False)
    assert done.code == 0, done.err
    from vaelab import runs
    from vaelab.evaluation import measure

    numbers = {"seed": 0, "memory": 8, "importance_samples": 2, "generated": 10, "gap_images": 10}
    options = {"checkpoint": "best", "split": "test", "device": "cpu", "root": None, "trust": False} | numbers
    subject, _ = measure.prepare(done.run, runs.read_config(done.run), options)
    few = subject.some(subject.own, 12)
    assert len(few) == 12
    labels = subject.known_of(few, "labels")
    assert set(labels.tolist()) == {0, 1}
    assert subject.drawn(100, 30).tolist() == sorted(set(subject.drawn(100, 30).tolist()))


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
def test_the_same_data_set_is_no_anomaly(finished, evaluate, binarize):
    """Other images are binarised as the model's own: the area of a set against itself is 1/2."""
    run = trained(finished, f"dataset.binarize={binarize}", "dataset.image_shape=[1,8,8]", size=1000)
    options = ["ood=fake", "ood.image_shape=[1,8,8]", "ood.size=1000", "ood.classes=5"]
    assert evaluate(f"run={run}", "sections=[anomaly]", *options)[0] == 0
    figures = read(run)["figures"]
    for name in ("elbo", "log_p_hat", "reconstruction"):
        assert figures[f"anomaly/auroc_{name}"] == pytest.approx(0.5, abs=0.03)


def test_an_interrupted_evaluation_keeps_what_it_has(finished, evaluate, monkeypatch):
    from vaelab.evaluation import sections

    run = trained(finished)
    monkeypatch.setattr(sections, "reconstruction", lambda subject: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, _ = evaluate(f"run={run}")
    assert code == 130
    assert "sections=[reconstruction,disentanglement" in out
    found = read(run)
    assert found["status"] == "unfinished"
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["elbo"].mean() == pytest.approx(found["figures"]["likelihood/elbo"])
        assert set(arrays.files) == {name for names in found["arrays"].values() for name in names}
    monkeypatch.undo()
    assert not list(run.glob("*.tmp"))


def test_arrays_belong_to_the_figures_beside_them(finished, evaluate):
    run = trained(finished)
    assert evaluate(f"run={run}", "sections=[likelihood,reconstruction]")[0] == 0
    assert evaluate(f"run={run}", "sections=[likelihood]", "importance_samples=1")[0] == 0
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["log_p_hat"].mean() == pytest.approx(read(run)["figures"]["likelihood/log_p_hat"])
        assert arrays["mse"].mean() == pytest.approx(read(run)["figures"]["reconstruction/mse_mean"])


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.npz"])
def test_a_damaged_evaluation_is_said_before_any_work(finished, evaluate, name):
    run = trained(finished)
    assert evaluate(f"run={run}", "sections=[reconstruction]")[0] == 0
    (run / name).write_text("[]")
    code, out, err = evaluate(f"run={run}")
    assert code == 2
    assert f"{name} is damaged" in err
    assert "delete it" in err
    assert "mse" not in out


@pytest.mark.slow
def test_factors_are_measured_where_the_data_has_them(finished, evaluate):
    sizes = ["dataset=sprites", "dataset.train_size=300", "dataset.val_size=0.2", "dataset.test_size=3000"]
    sizes += ["network=mlp", "network.hidden_dims=[32]", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    run = finished(*sizes, "model=vae", small=False).run
    assert evaluate(f"run={run}", "sections=[disentanglement]")[0] == 0
    figures = read(run)["figures"]
    assert {"disentanglement/mig", "disentanglement/dci_disentanglement"} <= figures.keys()
    assert 0 <= figures["disentanglement/mig"] <= 0.3  # one epoch teaches nothing


@pytest.mark.slow
def test_other_images_are_told_from_its_own(finished, evaluate):
    run = trained(finished, "dataset.image_shape=[1,8,8]", "trainer.max_epochs=15")
    code, _, err = evaluate(f"run={run}", "sections=[anomaly]", "ood=digits")
    assert (code, err) == (0, "")
    found = read(run)["figures"]
    assert found["anomaly/auroc_elbo"] > 0.9
    assert found["anomaly/auroc_log_p_hat"] > 0.9
    assert found["anomaly/auroc_reconstruction"] > 0.9
    assert "Digits" in read(run)["protocols"]["anomaly"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run=nowhere"], "nowhere is no run"),
        (["run=last"], "no run with a checkpoint"),
        (["run=null"], "run=null: name a run folder"),
        (["run=[]"], "run=[]: name a run folder"),
        (["run=[last,nowhere]"], "there is no run with a checkpoint"),
        (["run=.", "report=perhaps"], "report=perhaps: must be true or false"),
        (["split=all"], "split=all: must be test, val or train"),
        (["importance_samples=0"], "importance_samples=0: must be an integer from 1 to 1000000"),
        (["sections=[likelyhood]"], "did you mean likelihood?"),
        (["sections=likelihood"], "must be a list"),
        (["sections=[]"], "must be a list of at least one"),
        (["importance_sample=3"], "did you mean importance_samples?"),
        (["+samples=3"], "samples: no such key"),
        (["seed=99999999999"], "seed=99999999999: must be an integer from 0"),
        (["device=cuda:99"], "device=cuda:99: it cannot be used here"),
        (["ood=mnits"], "ood=mnits: no such option; did you mean mnist?"),
        (["ood=mnist,digits"], "ood=mnist,digits: takes one option"),
        (["metric=nope"], "metric=nope: no such option"),
        (["metrics=mine"], "metric=mine measures a metric of your own"),
        (["ood=sprites"], "the model takes 1 x 8 x 8"),
        (["root=/nowhere"], "root=/nowhere: the run's data set is read from no folder"),
        (["ood=mnist", "ood.root=/nowhere"], "/nowhere"),
        (["split=val"], "no such images"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(finished, evaluate, arguments, words):
    run = [] if arguments[0].startswith("run=") else [f"run={trained(finished, 'dataset.val_size=0')}"]
    code, _, err = evaluate(*run, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def test_a_damaged_or_missing_checkpoint_is_said(finished, evaluate):
    run = trained(finished)
    path = run / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = evaluate(f"run={run}")
    assert code == 2
    assert "best.ckpt is damaged" in err
    assert not (run / "evaluation.json").exists()
    path.unlink()
    code, out, err = evaluate(f"run={run}", "sections=[likelihood]", "importance_samples=2")
    assert code == 0, err
    assert "has no best checkpoint" in out
    assert json.loads((run / "evaluation.json").read_text())["checkpoint"]["name"] == "last"


def test_encodings_are_computed_once(finished, evaluate, monkeypatch):
    run, passes = trained(finished), []
    encode = Subject.encode
    monkeypatch.setattr(Subject, "encode", lambda self, part: passes.append(part.name) or encode(self, part))
    assert evaluate(f"run={run}", "sections=[latents,reconstruction,labels]")[0] == 0
    assert passes == ["test", "train"]  # the latter for the probes


def test_an_evaluation_of_nothing_leaves_no_file(finished, capsys):
    from vaelab.cli import main

    run = finished("model=vae").run
    capsys.readouterr()
    assert main(["eval", f"run={run}", "sections=[codebook]"]) == 2
    out, err = capsys.readouterr()
    assert (out + err).count("has no codebook") == 1
    assert not (run / "evaluation.json").exists()


def test_the_report_shows_the_evaluation_at_once(finished, capsys):
    from vaelab.cli import main

    run = finished("model=vae").run
    given = ["eval", f"run={run}", "sections=[latents]"]
    assert main(given) == 0
    assert not (run / "report.html").exists()  # none is made where none was
    (run / "report.html").write_text("Not evaluated")
    assert main(given) == 0
    page = (run / "report.html").read_text()
    assert "Not evaluated" not in page
    assert "vaelab eval on" in page
    assert "report: " in capsys.readouterr().out


def test_runs_are_evaluated_in_turn_and_one_that_fails_is_told(finished, evaluate):
    """A sweep's folder stands for its jobs; the pages of runs and sweep that are there show the new numbers."""
    Path("swept").mkdir()
    for number, model in enumerate(("vae", "ae", "vae")):
        finished(f"model={model}").run.rename(f"swept/{number}-{model}-fake")
    (Path("swept/0-vae-fake/checkpoints/best.ckpt")).write_bytes(b"")
    pages = [Path("swept/2-vae-fake/report.html"), Path("swept/report.html")]
    for page in pages:
        page.write_text("old")
    code, out, err = evaluate("run=swept", "sections=[likelihood]")
    assert code == 2
    assert [line for line in out.splitlines() if line.startswith("[")] == [
        f"[{i}/3] swept/{i - 1}-{model}-fake" for i, model in ((1, "vae"), (2, "ae"), (3, "vae"))
    ]
    assert err.count("\n") == 2
    assert "swept/0-vae-fake: " in err
    assert "best.ckpt is damaged" in err
    table = out[out.index("run  ") :].splitlines()
    assert table[0].split()[:3] == ["run", "elbo", "log_p_hat"]
    assert [line.split()[0] for line in table[1:3]] == ["swept/1-ae-fake", "swept/2-vae-fake"]
    found = read(Path("swept/2-vae-fake"))["figures"]["likelihood/log_p_hat"]
    assert f"{found:.3f}" in table[2]
    assert all(f"{found:.3f}" in page.read_text() for page in pages)


def test_an_error_of_the_program_does_not_keep_other_runs_from_being_evaluated(finished, evaluate, monkeypatch):
    from vaelab.evaluation import measure

    first, second = (finished("model=ae").run for _ in range(2))
    prepare = measure.prepare
    monkeypatch.setattr(measure, "prepare", lambda run, *rest: 1 // 0 if run == first else prepare(run, *rest))
    code, _, err = evaluate(f"run=[{first},{second}]", "sections=[likelihood]")
    assert (code, "ZeroDivisionError" in err) == (1, True)
    assert "likelihood/reconstruction" in read(second)["figures"]


def test_pages_are_left_alone_where_that_is_asked_for(finished, evaluate):
    run = finished("model=ae").run
    (run / "report.html").write_text("old")
    assert evaluate(f"run={run}", "sections=[likelihood]", "report=false")[0] == 0
    assert (run / "report.html").read_text() == "old"


def test_scores_that_were_left_out_have_a_line():
    from vaelab.evaluation.measure import section_lines

    protocol = "100 images; seed 0; beta_vae and factor_vae left out: factor 2 has too few images of a value"
    evaluation = {"figures": {"a/mig": 0.5}, "protocols": {"a": protocol}, "seconds": {"a": 1.0}}
    assert "beta_vae and factor_vae left out: factor 2" in section_lines(evaluation, "a")[-1]
    assert "seed 0" not in "\n".join(section_lines(evaluation, "a"))
