"""Priors over codes: that they are autoregressive, what they learn and draw, and the commands that use them."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.test_conf import options
from tests.test_priors import Fitted
from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.core.config import build, target_of
from vaelab.core.errors import UserError
from vaelab.figures import images
from vaelab.inference import coding
from vaelab.nn.layouts import Layout, Level
from vaelab.nn.priors import Latents
from vaelab.nn.priors.autoregressive import Stepper
from vaelab.report import discrete, gallery, resampling
from vaelab.runs import Files, load, priors, read_evaluation
from vaelab.runs.trained import Trained

NODES = {name: OmegaConf.to_container(OmegaConf.load(CONF / "prior" / f"{name}.yaml")) for name in options("prior")}
OVER_CODES = [name for name, node in NODES.items() if node and target_of(node, "prior").discrete]
"""Every option of conf/prior that is fitted to indices of codes."""
SMALL = {"channels": 8, "width": 16, "heads": 2, "layers": 3, "dropout": 0.0, "kernel_size": 3}
every_one = pytest.mark.parametrize("name", OVER_CODES)


ONE, SEVERAL = [(3, 4)], [(1, 2), (2, 2), (2, 2), (3, 4)]
"""Maps of one level; and of several, of which one is as large as that above it."""
of_levels = pytest.mark.parametrize("maps", [ONE, SEVERAL], ids=["one level", "several"])


def made(name: str, codes: int = 5, maps=ONE, classes: int | None = None, moved: float = 0.3, **changed):
    """A small prior, its parameters moved from where they start, and without what is random of it."""
    torch.manual_seed(0)
    node = NODES[name] | {key: value for key, value in SMALL.items() if key in NODES[name]} | changed
    prior = build(node)(codes=codes, maps=maps, num_classes=classes)
    for parameter in prior.parameters():
        parameter.data += moved * torch.randn(parameter.shape)
    return prior.eval()


def fitted(name: str, z: torch.Tensor, held_out: torch.Tensor, kept=None, **changed):
    """One that was fitted to maps, [N, h, w], and what the fit said."""
    prior = made(name, int(z.max()) + 1 if z.any() else 4, [tuple(z.shape[1:])], moved=0.0, **changed)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        how = prior.fit(z, 0, None, Latents(held_out, None), kept)
    return prior, said.getvalue() + how


# --- each code given those before it ----------------------------------------------------------


@every_one
@of_levels
def test_a_position_sees_all_that_is_before_it_and_nothing_else(name, maps):
    """Changing a code changes no logits at it or before it, and all of those after it: there is no blind spot."""
    prior = made(name, maps=maps, moved=0.1)
    count = prior.positions
    z = torch.randint(5, (1, count), generator=torch.Generator().manual_seed(0))
    before = prior.logits(z, None)
    for position in range(count):
        other = z.clone()
        other[0, position] = (z[0, position] + 1) % 5
        moved = (prior.logits(other, None) - before).abs().amax(-1)[0]
        assert torch.equal(moved[: position + 1], torch.zeros(position + 1))
        assert (moved[position + 1 :] > 0).all(), position


@every_one
@of_levels
@pytest.mark.parametrize("classes", [None, 3])
def test_step_by_step_it_gives_the_same_logits(name, classes, maps):
    prior = made(name, maps=maps, classes=classes)
    z = torch.randint(5, (4, prior.positions))
    labels = None if classes is None else torch.tensor([0, 1, 2, 1])
    whole = prior.logits(z, labels)
    for stepper in (prior.stepper(4, labels), Stepper(prior, 4, labels)):
        for position in range(prior.positions):
            found = stepper.next(z[:, position - 1] if position else None)
            torch.testing.assert_close(found, whole[:, position], atol=1e-5, rtol=0)
    assert type(prior.stepper(4, labels)) is not Stepper


def test_a_transformer_has_vectors_of_each_level():
    """Another vector of the second level's first code changes what comes after that code, and nothing before."""
    prior, z = made("transformer", maps=[(1, 2), (2, 2)]), torch.zeros(1, 6, dtype=torch.int64)
    before = prior.logits(z, None)
    prior.embedding.weight.data[5] += 1
    moved = (prior.logits(z, None) - before).abs().amax(-1)[0]
    assert torch.equal(moved[:3], torch.zeros(3))
    assert (moved[3:] > 0).all()


@every_one
def test_it_is_told_the_class(name):
    told, untold = made(name, classes=3), made(name, classes=3, labels=False)
    z = torch.randint(5, (6, 3, 4))
    assert (told.classes, untold.classes) == (3, None)
    assert not torch.allclose(told.log_prob(z, torch.full((6,), 0)), told.log_prob(z, torch.full((6,), 2)))
    assert untold.log_prob(z).shape == (6,)
    with pytest.raises(ValueError, match="labels"):
        told.log_prob(z)
    in_turn = told.sample(6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(in_turn, told.sample(6, torch.arange(6) % 3, torch.Generator().manual_seed(0)))


# --- draws ------------------------------------------------------------------------------------


@every_one
def test_draws_are_as_frequent_as_their_probabilities(name):
    """All 16 maps of 2 x 2 codes of K = 2: chi squared of 15 degrees of freedom is below 45 but once in 10,000."""
    prior, count = made(name, 2, [(2, 2)], moved=0.5), 20_000
    states = torch.cartesian_prod(*[torch.arange(2)] * 4)
    expected = count * prior.log_prob(states.view(16, 2, 2)).exp()
    assert expected.sum().item() == pytest.approx(count, rel=1e-4)
    drawn = prior.sample(count, generator=torch.Generator().manual_seed(0)).flatten(1)
    found = (drawn @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
    assert ((found - expected).square() / expected).sum() < 45
    assert expected.max() > 1.5 * expected.min()


@every_one
def test_temperature_and_top_k_narrow_the_draws(name):
    prior = made(name, moved=0.5)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 0, 0)]
    likeliest = prior.sample(30, generator=seeds[0], temperature=0.0)
    best = prior.logits(likeliest.flatten(1), None).argmax(-1)
    assert torch.equal(likeliest.flatten(1), best)
    assert torch.equal(prior.sample(30, generator=seeds[1], top_k=1), likeliest)
    torch.testing.assert_close(prior.sample(30, generator=seeds[2], temperature=1e-4), likeliest)
    all_codes = prior.sample(30, generator=seeds[3])
    assert torch.equal(prior.sample(30, generator=seeds[4], top_k=5), all_codes)
    few = prior.sample(200, top_k=2).flatten(1)
    ranks = prior.logits(few, None).argsort(-1, descending=True).argsort(-1).gather(2, few[..., None])
    assert ranks.max() == 1
    hot, cold = (prior.log_prob(prior.sample(300, temperature=t)).mean() for t in (1.5, 0.5))
    assert hot < cold


# --- what it learns ---------------------------------------------------------------------------


@every_one
def test_uniform_codes_cost_ln_k_and_never_less(name):
    noise = torch.Generator().manual_seed(0)
    z, held_out, fresh = (torch.randint(6, (n, 2, 3), generator=noise) for n in (400, 200, 4000))
    prior, _ = fitted(name, z, held_out, epochs=3)
    each = -prior.log_prob(fresh).mean().item() / 6
    assert each == pytest.approx(math.log(6), abs=1e-4)


@every_one
def test_constant_codes_cost_nothing(name):
    z = torch.zeros(500, 2, 3, dtype=torch.int64)
    prior, said = fitted(name, z, z[:50], epochs=8, lr=0.02)
    assert -prior.log_prob(z[:1]).item() / 6 < 0.01
    assert "nats per code" in said


def chain(count: int, seed: int) -> torch.Tensor:
    """Binary chains of 49 sites in raster order, of which each differs from the one before with probability 0.1."""
    noise = np.random.default_rng(seed)
    flips = noise.random((count, 49)) < np.where(np.arange(49) == 0, 0.5, 0.1)
    return torch.from_numpy(flips.cumsum(1) % 2).view(count, 7, 7)


ENTROPY = math.log(2) - 48 * (0.1 * math.log(0.1) + 0.9 * math.log(0.9))


@pytest.mark.slow
@every_one
def test_a_chain_costs_its_entropy(name):
    """ln 2 + 48 H(0.1) = 16.297 nats; the left neighbour of a row's first site is the end of the row above."""
    assert pytest.approx(16.297, abs=1e-3) == ENTROPY
    size = {"channels": 16, "layers": 6} if "channels" in NODES[name] else {"width": 32, "layers": 2}
    prior, _ = fitted(name, chain(4000, 0), chain(300, 1), epochs=5, lr=5e-3, batch_size=50, **size)
    fresh = chain(5000, 2)
    nats = -prior.log_prob(fresh).double()
    truth = math.log(2) - torch.where(fresh.flatten(1).diff(dim=1) != 0, math.log(0.1), math.log(0.9)).sum(1)
    excess = nats - truth  # on the same draws: their entropy's own error is 2 nats per draw
    assert -4 * excess.std() / math.sqrt(len(fresh)) < excess.mean() < 0.005 * ENTROPY


# --- the fit ----------------------------------------------------------------------------------


class Cut:
    """Keeps a fit's state in memory, and ends the fit after some epochs, as Ctrl-C does."""

    def __init__(self, after: int | None = None):
        self.after, self.state = after, {}

    def load(self):
        return self.state

    def save(self, state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.state = torch.load(file, weights_only=True)
        if state["epoch"] == self.after:
            raise KeyboardInterrupt


@every_one
def test_a_fit_that_was_interrupted_ends_as_one_left_alone(name):
    z, held_out = (torch.randint(3, (n, 2, 3)).sort(2).values for n in (300, 100))
    given = {"epochs": 4, "dropout": 0.2}
    whole, said = fitted(name, z, held_out, **given)
    cut = Cut(after=2)
    with pytest.raises(KeyboardInterrupt):
        fitted(name, z, held_out, cut, **given)
    cut.after = None
    resumed, rest = fitted(name, z, held_out, cut, **given)
    assert "goes on after epoch 2" in rest
    assert rest.splitlines()[-1] == said.splitlines()[-1]
    assert rest.splitlines()[1:] == said.splitlines()[2:]
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_it_stops_without_a_better_epoch_and_keeps_the_best():
    """Held-out maps are the opposite of those that are learned from: each epoch is worse than none."""
    z = torch.zeros(200, 2, 3, dtype=torch.int64)
    prior, said = fitted("transformer", z, 1 + z[:20], epochs=9, patience=2)
    assert "none of 2 epochs is better than the untrained prior, which is kept" in said
    torch.testing.assert_close(prior.log_prob(z[:1]), torch.tensor([-6 * math.log(4)]))


def test_a_fit_that_diverges_is_told():
    prior, z = made("pixelcnn"), torch.randint(5, (100, 3, 4))
    next(prior.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"prior.lr=.*diverged in epoch 1: lower"):
        prior.fit(z, 0, None, Latents(z, None))


def test_without_images_to_hold_out_some_of_the_known_ones_are():
    prior, z = made("transformer", moved=0.0, epochs=1), torch.randint(5, (100, 3, 4))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        prior.fit(z, 0)
    assert "5 of the training images are held out" in said.getvalue()
    with pytest.raises(UserError, match="2 images"):
        prior.fit(z[:1], 0)


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the digits, trained once: `vqvae`, and `told`, which is conditional."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for name, *more in (("vqvae",), ("told", "condition=label")):
            given = ["model=vqvae", f"run.dir={name}", "trainer.max_epochs=1", "trainer.accelerator=cpu", *more]
            given += ["trainer.limit_train_batches=2", "model.num_embeddings=16"]
            assert main(["train", *given, "report=false", "test=false", "trainer.enable_progress_bar=false"]) == 0
    return folder


@pytest.fixture
def vaelab(runs, tmp_path, monkeypatch, capsys):
    """Runs commands beside copies of the runs, which a test may change."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Fitted(tmp_path, capsys)


def fit(vaelab: Fitted, name: str, *arguments: str, run: str = "vqvae") -> str:
    small = [f"prior.{key}={value}" for key, value in SMALL.items() if key in NODES[name]]
    given = ["prior.epochs=1", "prior.batch_size=256", "prior.lr=0.03", "device=cpu", *arguments]
    code, out, err = vaelab("prior", f"run={run}", f"prior={name}", *small, *given)
    assert code == 0, err
    return out


@every_one
def test_a_vqvae_is_sampled_from_a_prior_that_is_fitted_to_its_codes(vaelab, name):
    code, out, _ = vaelab("sample", "run=vqvae", "n=4", "out=a.npz")
    assert code == 0
    assert f"vaelab prior run=vqvae prior={OVER_CODES[0]}" in out
    out = fit(vaelab, name)
    assert "nats per code" in out
    assert "fitted to the codes of 1,294 images" in out
    assert not Files(Path("vqvae")).unfinished_prior(name).exists()
    drawn = {}
    for given in ("", "temperature=0", "label=3", "top_k=1 label=3", f"prior={name} label=3"):
        code, out, err = vaelab("sample", "run=vqvae", "n=6", "out=a.npz", *given.split())
        assert code == 0, err
        assert f"prior={name} is taken" in out or "prior" in given
        with np.load("a.npz") as made:
            drawn[given] = made["images"]
    assert np.array_equal(drawn["label=3"], drawn[f"prior={name} label=3"])
    assert not np.array_equal(drawn["label=3"], drawn[""])
    model = load("vqvae", prior=name)
    expected = coding.sample(model, 6, torch.tensor([3]), (0.0, 1.0), 0)[:, 0].numpy()
    assert np.abs(drawn["label=3"][..., 0] / 255 - expected).max() < 0.51 / 255
    assert vaelab("sample", "run=vqvae", "label=all", "n=20")[0] == 0
    for given in ("", f"prior={name}"):
        code, out, err = vaelab("report", "run=vqvae", "device=cpu", *given.split())
        assert code == 0, err
        assert (f"prior={name} is taken" in out) == (not given)
        assert "could not be" not in out
    assert Path("vqvae/figures/classes.png").is_file()
    assert Path(f"vqvae/figures/sample-{name}.png").is_file()


def test_which_prior_is_taken_where_there_are_several(vaelab):
    for name in OVER_CODES:
        fit(vaelab, name, "max_images=200", "prior.labels=false")
    choices = [f"prior={name}" for name in OVER_CODES]
    for command in (["sample", "n=4", "out=a.npz"], ["report", "device=cpu"]):
        code, out, err = vaelab(*command, "run=vqvae")
        assert code == 0, err
        assert f"none of those that were fitted to its codes is taken by itself: add {' or '.join(choices)}\n" in out
    assert priors.fitted_to(Path("vqvae"), load("told")) == []
    says = ["label=3", "VQVAE takes no labels", "vaelab prior"]
    vaelab.refused("sample", "run=vqvae", f"prior={OVER_CODES[0]}", "label=3", says=says)
    shutil.copytree("vqvae/priors", "told/priors")
    vaelab.refused("sample", "run=told", f"prior={OVER_CODES[0]}", says=["whose weights are not those"])
    code, out, _ = vaelab("sample", "run=told", "n=4", "out=a.npz")
    assert code == 0
    assert "vaelab prior run=told" in out
    there = " and ".join(sorted(OVER_CODES))
    assert f"{there} cannot be taken: damaged, or fitted to other weights" in out
    for name in OVER_CODES:
        path = Files(Path("vqvae")).prior(name)
        path.write_bytes(path.read_bytes()[:-9])
    assert f"{there} cannot be taken: damaged" in vaelab("sample", "run=vqvae", "n=4", "out=a.npz")[1]


def test_what_samples_are_is_said_in_the_line_and_above_the_picture(vaelab, monkeypatch):
    out, titles = fit(vaelab, "pixelcnn", "max_images=1"), []
    assert "this fits the prior to 1 image, which tells it nothing of others" in out
    assert "fitted to the codes of 1 image\n" in out
    show = images.Sheet.figure
    monkeypatch.setattr(images.Sheet, "figure", lambda self, title=None: titles.append(title) or show(self, title))
    source = "drawn from a PixelCNN fitted to the codes of 1 image\n"
    for given, line, title in (
        ("n=1", f"1 sample of vqvae-digits, classes 0 to 9 in turn, {source}", "samples, prior pixelcnn"),
        ("n=2 label=7", f"2 samples of vqvae-digits, as class 7, {source}", "samples of class 7, prior pixelcnn"),
        (
            "n=8 label=all temperature=0.7 top_k=3",
            "10 samples of vqvae-digits (n=8 is no multiple of the 10 classes), 1 of each class, from the same noise, "
            f"temperature 0.7, of the 3 most probable codes, {source}",
            "samples of each class, temperature 0.7, of the 3 most probable codes, prior pixelcnn",
        ),
    ):
        code, out, err = vaelab("sample", "run=vqvae", *given.split())
        assert code == 0, err
        assert line in out
        assert titles[-1] == f"vqvae-digits: {title}"


def test_a_conditional_model_is_drawn_from_a_prior_of_all_classes(vaelab):
    fit(vaelab, "pixelcnn", "prior.labels=false", run="told")
    code, out, err = vaelab("sample", "run=told", "label=all", "n=20", "out=a.npz")
    assert code == 0, err
    assert "2 of each class, from the same 2 draws of z" in out


def test_a_fit_of_a_run_goes_on_where_it_was_ended(vaelab, monkeypatch):
    """And one with other settings, or from a damaged file, begins anew."""
    fit(vaelab, "pixelcnn", "prior.epochs=3")
    path = Files(Path("vqvae")).prior("pixelcnn")
    whole = path.read_bytes()
    shutil.rmtree("vqvae/priors")
    save = priors.Unfinished.save

    def cut(self, state):
        save(self, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    small = [f"prior.{key}={value}" for key, value in SMALL.items() if key in NODES["pixelcnn"]]
    with monkeypatch.context() as patched:
        patched.setattr(priors.Unfinished, "save", cut)
        given = ["prior", "run=vqvae", "prior=pixelcnn", *small, "prior.batch_size=256", "prior.lr=0.03"]
        given += ["device=cpu"]
        assert vaelab(*given, "prior.epochs=3")[0] == 130
    assert not path.exists()
    left = Files(Path("vqvae")).unfinished_prior("pixelcnn")
    kept = left.read_bytes()
    saved = torch.load(left, weights_only=True)
    torch.save(saved | {"seconds": saved["seconds"] + 1000}, left)
    out = fit(vaelab, "pixelcnn", "prior.epochs=3")
    assert "goes on after epoch 2" in out
    assert float(re.search(r", (\d+\.\d) s$", out, re.MULTILINE)[1]) >= 1000  # with what was before
    assert path.read_bytes() == whole
    assert not left.exists()
    left.write_bytes(kept)
    assert "goes on" not in fit(vaelab, "pixelcnn", "prior.epochs=3", "seed=1")
    left.write_bytes(kept[:1000])
    assert "damaged" in fit(vaelab, "pixelcnn", "prior.epochs=3")
    assert path.read_bytes() == whole


def test_what_cannot_be_is_two_lines(vaelab):
    small = ["run=vqvae", "prior=transformer"]
    vaelab.refused("prior", "run=vqvae", "of=draws", "prior=pixelcnn", says=["of=draws", "VQVAE"])
    vaelab.refused("prior", *small, "prior.width=10", "prior.heads=3", says=["prior.width=10", "prior.heads=3"])
    vaelab.refused("prior", *small, "prior.epochs=0", says=["prior.epochs=0"])
    vaelab.refused("prior", "run=vqvae", "prior=pixelcnn", "prior.kernel_size=4", says=["prior.kernel_size=4"])
    vaelab.refused("sample", "run=vqvae", "top_k=3", says=["top_k=3", "uniform"])
    vaelab.refused("sample", "run=vqvae", "temperature=0.5", says=["temperature=0.5", "uniform"])
    vaelab.refused("sample", "run=vqvae", "label=3", says=["label=3", "vaelab prior"])
    vaelab.refused("sample", "run=vqvae", "top_k=0", says=["top_k=0"])
    fit(vaelab, "transformer")
    vaelab.refused("sample", "run=vqvae", "top_k=17", says=["top_k=17", "16 codes"])
    vaelab.refused("sample", "run=vqvae", "label=none", says=["label=none"])
    vaelab.refused("sample", "run=vqvae", "prior=gmm", says=["prior=gmm", "take prior=transformer"])


# --- in the command that trains, and measured -------------------------------------------------


def in_training(name: str, *arguments: str) -> list[str]:
    small = [f"prior.{key}={value}" for key, value in SMALL.items() if key in NODES[name]]
    return ["model=vqvae", f"prior={name}", *small, "prior.epochs=2", "model.num_embeddings=16", *arguments]


@every_one
def test_a_training_fits_it_before_the_report(train, name):
    """And it is the one that the command of its own fits."""
    result = train(*in_training(name), "report=true")
    assert result.code == 0, result.err
    assert result.out.index("mean log p(z|y)") < result.out.index("report:")
    assert "Samples of a fitted prior" in (result.run / "report.html").read_text()
    assert "epoch 2/2: nats per code" in result.out
    assert result.summary["status"] == "finished"
    path = Files(result.run).prior(name)
    whole = path.read_bytes()
    path.unlink()
    given = [argument for argument in in_training(name) if not argument.startswith("model")]
    assert main(["prior", f"run={result.run}", "device=cpu", *given]) == 0
    assert path.read_bytes() == whole


def test_a_training_that_is_ended_in_the_fit_goes_on_there(train, monkeypatch):
    save = priors.Unfinished.save

    def cut(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(priors.Unfinished, "save", cut)
        first = train(*in_training("transformer"))
    assert first.code == 130
    assert f"vaelab train resume={first.run}" in first.out
    resumed = train(f"resume={first.run}")
    assert resumed.code == 0, resumed.err
    assert "goes on after epoch 1" in resumed.out
    assert Files(first.run).fitted == ["transformer"]


def test_an_autoencoder_is_given_its_mixture_in_the_same_command(train):
    result = train("model=ae", "prior=gmm", "prior.components=2")
    assert result.code == 0, result.err
    assert Files(result.run).fitted == ["gmm"]


@pytest.mark.slow
def test_the_page_says_what_samples_are_drawn_from_and_shows_each_evaluation(vaelab):
    fit(vaelab, "pixelcnn", "max_images=200")
    page, own = Path("vqvae/report.html"), "under a PixelCNN fitted to the codes of 200 images"
    quick, figures = ["run=vqvae", "device=cpu", "sections=[likelihood]"], Path("vqvae/figures")
    assert vaelab("report", "run=vqvae", "device=cpu")[0] == 0
    assert "They are drawn from a PixelCNN" in page.read_text()
    assert "no evaluation under it" in page.read_text()
    assert vaelab("eval", *quick)[0] == 0
    text = page.read_text()
    assert "They are drawn from a PixelCNN" in text
    assert '"choices":[[[' in text  # of the explorer, under the fitted prior
    assert "<h3>Evaluation</h3>" in text
    assert own not in text
    assert vaelab("eval", "prior=pixelcnn", *quick)[0] == 0
    text = page.read_text()
    assert "<h3>Evaluation</h3>" in text
    assert "<h3>Evaluation under prior=pixelcnn</h3>" in text
    assert f"{own}. Likelihoods" in text
    assert "no evaluation under it" not in text
    assert "likelihood/total" in text
    assert (figures / "prior_loss.png").is_file()
    shutil.rmtree("vqvae/priors")
    shutil.copy(figures / "samples.png", figures / "mine.png")
    assert vaelab("report", "run=vqvae", "device=cpu")[0] == 0
    assert "They are drawn from" not in page.read_text()
    assert not (figures / "prior_loss.png").exists()
    assert (figures / "mine.png").is_file()


def test_the_evaluation_has_the_rate_and_its_sum_with_the_distortion(vaelab, monkeypatch, shared):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    fit(vaelab, "transformer")
    quick = ["generated=200", "device=cpu", "sections=[likelihood,samples]"]
    code, _, err = vaelab("eval", "run=vqvae", "prior=transformer", *quick)
    assert code == 0, err
    figures = read_evaluation(Path("vqvae"), "test", "transformer")["figures"]
    trained = Trained("vqvae", device="cpu", prior="transformer")
    images = trained.batch("test", torch.arange(len(trained.data.test)))
    with torch.no_grad():
        codes = trained.model.encode(images.images).code
        rate = -trained.model.require_prior().log_prob(codes, images.labels).mean().item()
    total = rate + figures["likelihood/reconstruction"]
    assert figures["likelihood/rate"] == pytest.approx(rate, rel=1e-5)
    assert figures["likelihood/total"] == pytest.approx(total, rel=1e-5)
    assert figures["likelihood/bits_per_dim"] == pytest.approx(total / (64 * math.log(2)) + 8, rel=1e-5)
    assert 0 <= figures["samples/sample_accuracy"] <= 1
    assert "given the label" in read_evaluation(Path("vqvae"), "test", "transformer")["protocols"]["likelihood"]
    assert figures["samples/frechet"] > 0


# --- figures ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(finished, monkeypatch):
    """Draws a figure of a run whose model draws from a prior over its codes: the scene, and what the figure is given.

    After the scene: the arguments of the function of `module` by that name.
    """

    def draw(name: str, module, function: str, *more: str, **prior):
        trained, given = Trained(finished("model=vqvae", "model.num_embeddings=16", *more).run), []
        model = trained.model
        model.draw_from(made("pixelcnn", 16, [model.layout.shape], **prior))
        with monkeypatch.context() as patched:
            patched.setattr(module, function, lambda *arguments: given.append(arguments))
            list(gallery.draw(model, trained.data, 8, [name]))
        (arguments,) = given
        return gallery.Scene(model, trained.data, 8), arguments

    return draw


@pytest.mark.parametrize("classes", [None, 10])
def test_the_loss_of_each_position_adds_up_to_that_of_an_image(drawn, monkeypatch, classes):
    monkeypatch.setattr(discrete, "LOGITS", 200)  # maps in several parts
    s, (image, nats, title) = drawn("prior_loss", discrete.codebooks, "position_losses", classes=classes)
    nats = nats["codes"]
    assert nats.shape == s.model.layout.shape
    whole = -s.model.require_prior().log_prob(s.codes, s.many.labels).mean().item()
    assert nats.sum().item() == pytest.approx(whole, rel=1e-5)
    assert f"{whole / nats.numel():.3f} nats per code, {whole:.2f} per image, over {len(s.codes)} images" in title
    assert f"ln K = {math.log(16):.3f}" in title
    assert image.shape == s.model.shape
    assert torch.allclose(image, s.unit(s.many.images).mean(0))


@pytest.mark.parametrize("classes", [None, 10])
def test_samples_by_temperature_are_from_the_same_noise(drawn, classes):
    s, (shown, names, title, columns) = drawn("temperatures", discrete.images, "classes", classes=classes)
    prior, labels = s.model.require_prior(), None if classes is None else torch.arange(10)
    assert shown.shape == (4, 10, *s.model.shape)
    assert names == ["temperature 0.5", "temperature 0.75", "temperature 1", "temperature 1.25"]
    assert (columns is None) == (classes is None)
    assert prior.words in title
    for row, temperature in zip(shown, (0.5, 0.75, 1.0, 1.25), strict=True):
        z = prior.sample(10, labels, torch.Generator().manual_seed(0), temperature)
        assert torch.equal(row, coding.decode(s.model, z, labels, s.data.pixel_range))


def test_samples_stand_above_the_nearest_training_images(drawn, monkeypatch):
    for held in (gallery.discrete.TensorSplit, int):  # in memory, and elsewhere
        monkeypatch.setattr(discrete, "TensorSplit", held)
        s, (shown, neighbours, distances, title) = drawn("nearest", discrete.images, "nearest", classes=10)
        assert torch.equal(shown, coding.sample(s.model, 10, None, s.data.pixel_range, 0))
        known = s.data.train.images.float() / 255
        between = torch.cdist(shown.flatten(1).double(), known.flatten(1).double())
        assert distances.double() == pytest.approx(between.min(1).values, rel=1e-4)
        assert torch.allclose(neighbours, known[between.argmin(1)])
        real = torch.cdist(s.unit(s.many.images).flatten(1), known.flatten(1)).min(1).values.median().item()
        assert f"{len(known)} training images" in title
        assert f"of {len(s.many.images)} validation images to theirs the median is {real:.2f}" in title


def test_without_validation_images_samples_are_held_beside_nothing_else(drawn):
    _, (*_, title) = drawn("nearest", discrete.images, "nearest", "dataset.val_size=0", classes=10)
    assert title.endswith("pixels in [0, 1]")


def test_samples_of_a_fitted_prior_say_what_they_are(drawn, monkeypatch):
    s, (_, _, title) = drawn("classes", gallery.images, "classes", classes=10)
    manner = f"from {s.model.require_prior().words}, temperature 1, all codes"
    assert title == f"Samples of each class {manner}"
    titles: list[str] = []
    monkeypatch.setattr(gallery.images, "real_and_generated", lambda *_, title: titles.append(title))
    list(gallery.draw(s.model, s.data, 8, ["real_and_generated"]))
    assert titles == [f"Real images, and samples {manner}"]


def test_a_prior_that_was_not_fitted_has_no_figures_of_its_own(finished):
    for model in ("vqvae", "vae"):
        trained = Trained(finished(f"model={model}").run)
        assert not list(gallery.draw(trained.model, trained.data, 8, ["temperatures", "prior_loss"]))


def test_a_prior_over_vectors_has_samples_by_temperature_and_no_codes(finished):
    trained = Trained(finished("model=vae").run)
    trained.model.draw_from(build(NODES["gmm"] | {"components": 1})(latent_dim=trained.model.layout.dimensions))
    names = ["temperatures", "nearest", "prior_loss"]
    assert [name for name, _ in gallery.draw(trained.model, trained.data, 8, names)] == ["temperatures", "nearest"]


# --- the explorer -----------------------------------------------------------------------------


@every_one
@of_levels
@pytest.mark.parametrize("classes", [None, 3])
def test_choices_are_the_conditional_probabilities_of_a_code_given_all_others(name, maps, classes):
    prior = made(name, maps=maps, classes=classes)
    layout = Layout(tuple(Level(str(i), size, 5) for i, size in enumerate(prior.maps)), ("indices",))
    z = torch.randint(5, (2, *layout.shape), generator=torch.Generator().manual_seed(0))
    labels, positions = torch.tensor([2, 0]), [0, 3, layout.sizes[0] - 1]
    found = resampling.choices(SimpleNamespace(prior=prior, layout=layout), z, labels, positions)
    for number, choices in enumerate(found):
        for place, codes in zip(positions, choices, strict=True):
            every = z[number].flatten().repeat(5, 1)
            every[:, place] = torch.arange(5)
            expected = prior.log_prob(every.view(5, *layout.shape), labels[number : number + 1].expand(5)).softmax(0)
            assert [code for code, _ in codes] == expected.argsort(descending=True).tolist()
            assert [p for _, p in codes] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)


@every_one
def test_choices_are_as_many_as_there_is_time_for_and_the_codes_own_is_among_them(name, monkeypatch):
    prior, z = made(name, classes=3), torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    labels, positions = torch.tensor([2, 0]), [1, 5, 10]
    model = SimpleNamespace(prior=prior, layout=Layout((Level("codes", (3, 4), 5),), ("indices",)))
    monkeypatch.setattr(resampling, "CANDIDATES", 2)
    likely = prior.logits(z.flatten(1), labels)[:, positions].topk(2).indices.tolist()
    own = z.flatten(1)[:, positions].tolist()
    for choices, codes, tops in zip(resampling.choices(model, z, labels, positions), own, likely, strict=True):
        expected = [{*top} if code in top else {top[0], code} for code, top in zip(codes, tops, strict=True)]
        assert [{code for code, _ in place} for place in choices] == expected
    clock = itertools.count()  # a second for each look at it, so three for a map of which one position is tried
    monkeypatch.setattr(resampling.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(resampling, "TRIED", 1)
    for seconds, count in ((2.9, 0), (5.9, 1), (100, 2)):
        monkeypatch.setattr(resampling, "SECONDS", seconds)
        assert len(resampling.choices(model, z, labels, positions)) == count
    model.prior = None
    assert resampling.choices(model, z, labels, positions) == []
