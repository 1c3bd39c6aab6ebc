"""Priors of vectors that are fitted afterwards: VampPrior, second VAE, sphere; and the commands, with each of them."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from tests.correlated import seeded
from tests.test_code_priors import NODES
from tests.test_priors import Fitted
from vaelab.cli import main
from vaelab.core.batch import Batch
from vaelab.core.config import target_of
from vaelab.inference import fitting
from vaelab.nn.posteriors import DiagonalGaussian
from vaelab.nn.priors import Latents, StandardNormal, VampPrior
from vaelab.nn.priors.hypersphere import Hypersphere
from vaelab.nn.priors.two_stage import TwoStage
from vaelab.runs import Files, load, priors, read_evaluation
from vaelab.runs.trained import Trained

OF_VECTORS = [
    name for name, node in NODES.items() if node and (kind := target_of(node, "prior")).afterwards and not kind.discrete
]
"""Every option of conf/prior that is fitted to vectors."""
SMALL = {"components": 3, "hidden_dims": "[16]", "transforms": 1, "importance_samples": 4, "epochs": 2}
D = 2


def fitted(prior, z, held_out):
    """The prior after its fit, whose lines are not shown."""
    with contextlib.redirect_stdout(io.StringIO()):
        prior.fit(z, 0, None, Latents(held_out, None))
    return prior.eval()


# --- the second VAE ---------------------------------------------------------------------------


def two_stage(d=2, samples=50, epochs=15, hidden_dims=(32,)):
    torch.manual_seed(0)
    return TwoStage(d, list(hidden_dims), samples, epochs=epochs, batch_size=200, lr=1e-2, patience=20)


@torch.no_grad()
def moved(prior):
    """Away from where it starts, so that its density is nothing simple."""
    for weights in prior.parameters():
        weights += 0.1 * torch.randn(weights.shape, generator=seeded(2))
    prior.shift.copy_(torch.tensor([1.0, -1.0]))
    prior.scale.copy_(torch.tensor([2.0, 0.5]))
    return prior


def test_a_second_vae_starts_as_a_gaussian_and_exactly():
    """One draw of u tells log p(z): its posterior is the true one, and no bound has to be tight by many."""
    prior, z = two_stage(samples=1), torch.randn(50, 2, generator=seeded(1))
    torch.testing.assert_close(prior.log_prob(z), StandardNormal(2).log_prob(z))
    torch.testing.assert_close(prior.sample(100_000, generator=seeded(1)).T.cov(), torch.eye(2), atol=0.02, rtol=0)


@torch.no_grad()
def test_its_density_is_that_of_its_draws():
    prior = moved(two_stage(samples=200))
    axis = torch.linspace(-12, 12, 161)
    density = prior.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=0.01)
    draws = prior.sample(50_000, generator=seeded(3))
    for low, high in ((-1.0, 1.0), (1.0, 3.0)):
        inside = ((draws[:, 0] > low) & (draws[:, 0] < high)).float().mean().item()
        grid = torch.cartesian_prod(torch.linspace(low, high, 101), axis)
        expected = prior.log_prob(grid).exp().mean().item() * (high - low) * 24
        assert inside == pytest.approx(expected, abs=0.015)
    assert torch.equal(prior.sample(1, temperature=0.0)[0], prior.mean)


@torch.no_grad()
def test_its_bounds_rise_with_the_draws_from_the_elbo_that_it_learns_by():
    prior, z = moved(two_stage()), torch.randn(20_000, 2, generator=seeded(1))
    torch.manual_seed(0)
    found = [prior.objective(z).mean().item()]
    for samples in (1, 5, 200):
        prior.importance_samples = samples
        found.append(prior.log_prob(z).mean().item())
    assert found[0] == pytest.approx(found[1], abs=0.03)
    assert found[1] + 0.01 < found[2] < found[3]
    assert torch.equal(prior.log_prob(z[:5]), prior.log_prob(z[:5]))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_it_reaches_the_density_of_gaussian_codes_and_is_never_above(correlation):
    """Of N(0, I), where nothing can be won, and of a correlated Gaussian, where independent dimensions lose 0.83."""
    covariance = torch.eye(3)
    covariance[0, 1] = covariance[1, 0] = correlation
    truth = MultivariateNormal(torch.zeros(3), covariance)
    torch.manual_seed(1)
    z, held_out, fresh = truth.sample((4000,)), truth.sample((1000,)), truth.sample((20_000,))
    prior = fitted(two_stage(3, epochs=10), z, held_out)
    lost = truth.log_prob(fresh) - prior.log_prob(fresh)
    error = lost.std().item() / math.sqrt(len(lost))
    assert -3 * error < lost.mean().item() < 0.04


def far_apart():
    """Draws of two Gaussians in the plane, at 4 and at -4 of the first axis, with a deviation of 0.5."""
    sign = torch.randint(2, (13_000, 1), generator=seeded(0)) * 2.0 - 1
    return torch.cat([4 * sign, 0 * sign], 1) + 0.5 * torch.randn(13_000, 2, generator=seeded(1))


def test_it_learns_by_the_elbo_whatever_its_density_is_estimated_with():
    z = far_apart()
    one, other = (fitted(two_stage(samples=samples, epochs=1), z[:4000], z[4000:5000]) for samples in (1, 20))
    assert torch.equal(one.decoder.last.weight, other.decoder.last.weight)
    assert not torch.equal(one.decoder.last.weight, two_stage().decoder.last.weight)


def test_of_two_gaussians_far_apart_it_makes_more_than_one():
    z = far_apart()
    prior = fitted(two_stage(epochs=25), z[:4000], z[4000:5000])
    fresh = z[5000:]
    found = prior.log_prob(fresh).mean().item()
    truth = -math.log(2) - math.log(2 * math.pi) - 2 * math.log(0.5) - 1
    gaussian = MultivariateNormal(z.mean(0), z.T.cov()).log_prob(fresh).mean().item()
    assert max(gaussian, StandardNormal(2).log_prob(fresh).mean().item()) + 0.4 < found < truth + 0.03
    draws = prior.sample(5000, generator=seeded(2))
    assert ((draws[:, 0].abs() - 4).abs() < 1.5).float().mean() > 0.7  # of one Gaussian it is 0.36


# --- the sphere -------------------------------------------------------------------------------


def test_draws_lie_on_a_sphere_as_wide_as_the_codes_and_in_every_direction_alike():
    z = torch.tensor([3.0, 0.0, -1.0]) + 2 * torch.randn(50_000, 3, generator=seeded(0))
    prior, n = Hypersphere(3), 100_000
    assert "3.19" in prior.fit(z, 0)  # the mean of 2 chi with three degrees of freedom: 2 sqrt(8 / pi)
    away = prior.sample(n, generator=seeded(1)) - z.mean(0)
    radius = (z - z.mean(0)).norm(dim=1).mean()
    torch.testing.assert_close(away.norm(dim=1), radius.expand(n))
    direction = away / radius
    assert direction.mean(0).abs().max() < 4 / math.sqrt(3 * n)
    torch.testing.assert_close(direction.T @ direction / n, torch.eye(3) / 3, atol=5e-3, rtol=0)
    assert direction[:, 0].abs().sub(0.5).abs().mean().item() == pytest.approx(0.25, abs=3e-3)  # uniform: Archimedes
    torch.testing.assert_close(prior.sample(n, generator=seeded(1), temperature=0.5), z.mean(0) + 0.5 * away)
    assert torch.equal(prior.sample(2, temperature=0.0)[0], prior.mean)


# --- the VampPrior ----------------------------------------------------------------------------


def test_a_vampprior_gains_no_more_than_the_aggregate_posterior_has_and_more_than_nothing():
    """Of a linear Gaussian encoder q(z) is a Gaussian, and KL(q(z) || N(0, I)) all that is there to gain."""
    n, variance, encoder, prior = 6000, torch.tensor(0.2), torch.nn.Linear(3, D), VampPrior(D, 20, 10, 200, 0.05, 5)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.5, 0.0, 0.5], [1.0, 0.8, 0.0]]))
        encoder.bias.copy_(torch.tensor([1.0, -0.5]))

    def encode(x, labels):
        mean = encoder(x.flatten(1))
        return DiagonalGaussian(mean, variance.log().expand_as(mean))

    prior.belongs(encode, (1, 1, 3))
    images = torch.randn(2 * n, 1, 1, 3, generator=seeded(1))
    prior.start_from(lambda count: Batch(images[:count], None))
    with torch.no_grad():
        draws = encode(images, None).rsample(torch.randn(2 * n, D, generator=seeded(2)))
    aggregate = MultivariateNormal(encoder.bias, encoder.weight @ encoder.weight.T + variance * torch.eye(D))
    most = kl_divergence(aggregate, MultivariateNormal(torch.zeros(D), torch.eye(D))).item()
    fresh = draws[n + 1000 :]

    @torch.no_grad()
    def gain() -> float:
        return (prior.log_prob(fresh) - StandardNormal(D).log_prob(fresh)).mean().item()

    before = gain()
    fitted(prior, draws[:n], draws[n : n + 1000])
    error = (aggregate.log_prob(fresh) - prior.log_prob(fresh)).std().item() / math.sqrt(len(fresh))
    assert max(before + 0.02, 0.9 * most) < gain() < most + 3 * error
    assert encoder.weight.grad is None  # it stays


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the digits, trained once: `ae`, `vae`, and `cvae`, which is conditional."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for model in ("ae", "vae", "cvae"):
            given = [f"model={model}", f"run.dir={model}", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
            given += ["model.latent_dim=4", "report=false", "test=false", "trainer.enable_progress_bar=false"]
            assert main(["train", *given]) == 0
    return folder


@pytest.fixture
def vaelab(runs, tmp_path, monkeypatch, capsys):
    """Runs commands beside copies of the runs, which a test may change."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Fitted(tmp_path, capsys)


def small(name: str) -> list[str]:
    return [f"prior={name}", *(f"prior.{key}={value}" for key, value in SMALL.items() if key in NODES[name])]


def fit(vaelab: Fitted, name: str, run: str = "vae", *arguments: str) -> str:
    code, out, err = vaelab("prior", f"run={run}", *small(name), "max_images=600", "device=cpu", *arguments)
    if "needs another package" in err:
        pytest.skip(err)
    assert code == 0, err
    return out


@pytest.mark.parametrize("name", OF_VECTORS)
def test_each_is_fitted_kept_loaded_sampled_and_evaluated(vaelab, name):
    """With what the command says of its density, of a conditional model too, and to the last bit as it was kept."""
    for run in ("cvae", "vae"):
        assert "of 600 images" in fit(vaelab, name, run)
        assert not Files(Path(run)).unfinished_prior(name).exists()
        assert load(run, prior=name).sample(3).shape == (3, 1, 8, 8)
    whole = Files(Path("vae")).prior(name).read_bytes()
    out = fit(vaelab, name)
    assert Files(Path("vae")).prior(name).read_bytes() == whole
    model = load("vae", prior=name)
    kind, prior, z = type(model.prior), model.require_prior(), torch.randn(5, 4, generator=seeded(0))
    assert not model.layout.standard
    again = priors.read(Path("vae"), name, load("vae"), "best")
    assert torch.equal(prior.sample(4, generator=seeded(1)), again.sample(4, generator=seeded(1)))
    quick = ["run=vae", f"prior={name}", "device=cpu", "importance_samples=5", "generated=100", "gap_images=4"]
    assert vaelab("eval", *quick, "sections=[samples]")[0] == 0
    assert vaelab("sample", "run=vae", f"prior={name}", "n=4")[0] == 0
    if not kind.density:
        assert "no density" in out
        vaelab.refused("eval", *quick, "sections=[likelihood]", says=["likelihood", prior.words, "no density"])
        vaelab.refused("eval", *quick, "sections=[latents]", says=["latents", prior.words, "no density"])
        assert not model.bounded
        return
    assert torch.equal(prior.log_prob(z), again.log_prob(z))
    assert "ELBO gained over N(0, I)" in out
    assert prior.estimate in out
    code, _, err = vaelab("eval", *quick, "sections=[likelihood,latents]")
    assert code == 0, err
    found = read_evaluation(Path("vae"), "test", name)
    assert math.isfinite(found["figures"]["likelihood/elbo"])
    assert all(prior.estimate in found["protocols"][section] for section in ("likelihood", "latents"))


@pytest.mark.parametrize("name", [name for name in OF_VECTORS if "epochs" in NODES[name]])
def test_a_fit_that_is_ended_goes_on_where_it_was(vaelab, monkeypatch, name):
    fit(vaelab, name)
    path = Files(Path("vae")).prior(name)
    whole = path.read_bytes()
    path.unlink()
    save = priors.Unfinished.save

    def cut(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(priors.Unfinished, "save", cut)
        assert vaelab("prior", "run=vae", *small(name), "max_images=600", "device=cpu")[0] == 130
    assert "goes on after epoch 1" in fit(vaelab, name)
    assert path.read_bytes() == whole


def test_what_cannot_be_is_a_line(vaelab):
    says = ["prior=vamp", "AE has no distribution", "prior=two_stage"]
    vaelab.refused("prior", "run=ae", "prior=vamp", says=says)
    assert "or prior=vamp" not in vaelab("prior", "run=ae", "prior=vamp")[2]
    vaelab.refused("train", "model=ae", "prior=vamp", "run.dir=x", says=says)
    for name in ("two_stage", "hypersphere"):
        says = [f"prior={name}", "fitted afterwards", f"vaelab prior run=RUN prior={name}"]
        vaelab.refused("train", "model=vae", f"prior={name}", "run.dir=x", says=says)
    vaelab.refused("prior", "run=vae", "prior=two_stage", "prior.importance_samples=0", says=["importance_samples=0"])
    vaelab.refused("prior", "run=vae", "prior=two_stage", "prior.hidden_dims=[0]", says=["hidden_dims"])
    vaelab.refused("prior", "run=vae", "prior=vamp", "prior.components=0", says=["prior.components=0"])
    assert not Path("x").exists()


def test_an_autoencoder_takes_those_that_ask_for_no_density(vaelab):
    assert "codes of 600 images" in fit(vaelab, "two_stage", "ae")
    assert "ELBO" not in fit(vaelab, "hypersphere", "ae")
    assert vaelab("sample", "run=ae", "prior=hypersphere", "n=4")[0] == 0


def test_pseudo_inputs_start_at_training_images_and_learn_while_the_encoder_stays(vaelab):
    before = load("vae").state_dict()
    fit(vaelab, "vamp", "vae", "prior.lr=1e-12", "prior.epochs=1")
    model = load("vae", prior="vamp")
    trained = Trained("vae", device="cpu")
    torch.testing.assert_close(model.prior.pseudo_inputs.detach(), trained.data.training_images(3).images)
    assert all(torch.equal(before[key], value) for key, value in trained.model.state_dict().items())
    fit(vaelab, "vamp", "vae", "prior.lr=0.05")
    learned = load("vae", prior="vamp").prior
    assert (learned.pseudo_inputs - model.prior.pseudo_inputs).abs().max() > 0.01
    codes = fitting.encoded(trained, "train", 600, 0).posterior
    z = fitting.latents(codes, "draws", 0)
    assert fitting.log_probs(learned, z).mean() > fitting.log_probs(model.require_prior(), z).mean()


@pytest.mark.parametrize(("gain", "error", "worse"), [(-0.3, 0.1, True), (-0.1, 0.1, False), (0.3, 0.1, False)])
def test_a_fit_is_called_worse_from_two_standard_errors_on(vaelab, capsys, gain, error, worse):
    trained, prior = Trained("vae", device="cpu"), load("vae").require_prior()
    asked = fitting.Asked("gmm", {}, "draws", 600, 0)
    fitting._report(trained, asked, prior, "", {"val": fitting.Worth(600, -1.0, gain, error)})
    assert ("worse than the model's own" in capsys.readouterr().out) == worse
