"""Priors that are fitted afterwards: the mixture of Gaussians, its fit, and the commands that use it."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.inference import coding, fitting
from vaelab.nn.posteriors import DiagonalGaussian
from vaelab.nn.priors import GaussianMixture, StandardNormal
from vaelab.runs import Files, load, read_evaluation, write_evaluation
from vaelab.runs.trained import Trained


@torch.no_grad()
def mixture(covariance: str, seed: int = 0, components: int = 3, d: int = 4) -> GaussianMixture:
    """A mixture with random parameters."""
    noise, prior = torch.Generator().manual_seed(seed), GaussianMixture(d, components, covariance, 0.0)
    prior.log_weights.copy_(torch.randn(components, generator=noise).log_softmax(0))
    prior.means.copy_(3 * torch.randn(components, d, generator=noise))
    if covariance == "diag":
        prior.factors.copy_(0.2 + torch.rand(components, d, generator=noise))
    else:
        spread = torch.randn(components, d, 2 * d, generator=noise)
        prior.factors.copy_(torch.linalg.cholesky(spread @ spread.mT / d))
    return prior


def of_torch(prior: GaussianMixture) -> MixtureSameFamily:
    if prior.covariance == "diag":
        parts = Independent(Normal(prior.means, prior.factors), 1)
    else:
        parts = MultivariateNormal(prior.means, scale_tril=prior.factors)
    return MixtureSameFamily(Categorical(logits=prior.log_weights), parts)


def covariances(prior: GaussianMixture) -> torch.Tensor:
    full = prior.covariance == "full"
    return prior.factors @ prior.factors.mT if full else torch.diag_embed(prior.factors**2)


# --- the mixture ------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_its_density_is_that_of_torch(covariance):
    prior, z = mixture(covariance), 3 * torch.randn(7, 5, 4)
    torch.testing.assert_close(prior.log_prob(z), of_torch(prior).log_prob(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_its_draws_have_its_moments(covariance, temperature):
    """And a temperature scales the deviations of each Gaussian, not the distances between them."""
    prior, n = mixture(covariance), 200_000
    z = prior.sample(n, generator=torch.Generator().manual_seed(1), temperature=temperature).double()
    weights, means = prior.log_weights.exp().double(), prior.means.double()
    away = means - weights @ means
    within = (weights[:, None, None] * covariances(prior)).sum(0)
    expected = temperature**2 * within + (weights[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)
    assert (z.mean(0) - weights @ means).abs().max() < 5 * (expected.diagonal().max() / n) ** 0.5
    assert (z.T.cov() - expected).abs().max() < 0.02 * expected.diagonal().max()
    torch.testing.assert_close(prior.mean.double(), weights @ means)


def test_at_temperature_zero_every_draw_is_a_mean():
    prior = mixture("full")
    assert torch.cdist(prior.sample(50, temperature=0.0), prior.means).min(1).values.max() == 0


def test_a_seed_gives_the_same_draws():
    prior = mixture("diag")
    a, b = (prior.sample(9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_fit_finds_the_mixture_that_made_the_latents(covariance):
    truth = mixture(covariance, d=2)
    truth.log_weights.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    truth.means.copy_(torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 15.0]]))
    z = truth.sample(10_000, generator=torch.Generator().manual_seed(0))
    found = GaussianMixture(2, 3, covariance, 1e-6)
    assert "has converged" in found.fit(z, seed=0)
    nearest = torch.cdist(truth.means, found.means).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.log_weights[nearest].exp(), truth.log_weights.exp(), rtol=0, atol=0.02)
    torch.testing.assert_close(covariances(found)[nearest], covariances(truth), rtol=0.1, atol=0.1)
    assert found.log_prob(z).mean() > truth.log_prob(z).mean() - 1e-3


def test_the_regularisation_is_added_to_each_variance():
    z, variances = torch.randn(500, 3), {}
    for extra in (0.0, 0.5):
        found = GaussianMixture(3, 1, "full", extra)
        found.fit(z, seed=0)
        variances[extra] = covariances(found)[0]
    torch.testing.assert_close(variances[0.5] - variances[0.0], 0.5 * torch.eye(3), atol=1e-4, rtol=0)


def test_fewer_latents_than_gaussians_are_refused():
    with pytest.raises(UserError, match=r"prior.components=5.*3 images"):
        GaussianMixture(2, 5, "diag", 0.0).fit(torch.randn(3, 2), seed=0)


# --- the law ----------------------------------------------------------------------------------


def test_what_a_fitted_prior_gains_is_the_kl_of_the_aggregate_posterior():
    """Of a linear Gaussian encoder all is in closed form: q(z) = N(m, S), and one Gaussian fits it exactly.

    With encoder and decoder as they are, the gain in ELBO over N(0, I) is KL(q(z) || N(0, I)), and no prior gains more.
    """
    noise, d, n = torch.Generator().manual_seed(0), 3, 100_000
    weights, shift, logvar = torch.randn(d, 5, generator=noise), torch.randn(d, generator=noise), torch.tensor(-1.0)
    means = torch.randn(n, 5, generator=noise) @ weights.T + shift
    posterior = DiagonalGaussian(means, logvar.expand(n, d))
    aggregate = weights @ weights.T + logvar.exp() * torch.eye(d)
    kl = 0.5 * (aggregate.trace() + shift @ shift - d - aggregate.logdet())
    draws, fresh = (posterior.rsample(torch.randn(n, d, generator=noise)) for _ in range(2))

    def gain(prior: GaussianMixture) -> float:
        """What the ELBO gains, by draws that the fit has not seen."""
        return (prior.log_prob(fresh) - StandardNormal(d).log_prob(fresh)).mean().item()

    fitted = {}
    for name, z, components in (("draws", draws, 1), ("means", means, 1), ("many", draws[:500], 20)):
        fitted[name] = GaussianMixture(d, components, "full", 1e-6)
        fitted[name].fit(z, seed=0)
    error = 4 * kl.item() / math.sqrt(n) + 0.02
    assert gain(fitted["draws"]) == pytest.approx(kl.item(), abs=error)
    assert max(gain(fitted["means"]), gain(fitted["many"])) < gain(fitted["draws"]) - 0.01
    _, own = posterior.sample_with_kl(torch.randn(n, d, generator=noise), StandardNormal(d))
    _, other = posterior.sample_with_kl(torch.randn(n, d, generator=noise), fitted["draws"])
    assert own.exact
    assert not other.exact
    assert (own.total - other.total).mean().item() == pytest.approx(kl.item(), abs=error)


# --- the commands -----------------------------------------------------------------------------


class Fitted:
    """A folder with small runs, in which commands are run."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return main(list(arguments)), *self.capsys.readouterr()

    def refused(self, *arguments: str, says: list[str]) -> None:
        code, out, err = self(*arguments)
        assert code == 2, out + err
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 2
        assert not [part for part in says if part not in err], err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of the digits, one epoch each, trained once: `ae`, `vae`, `cvae`, `vqvae`."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for model in ("ae", "vae", "cvae", "vqvae"):
            given = [f"model={model}", f"run.dir={model}", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
            given += ["trainer.limit_train_batches=2"] if model == "vqvae" else ["model.latent_dim=4"]
            assert main(["train", *given, "report=false", "test=false", "trainer.enable_progress_bar=false"]) == 0
    return folder


@pytest.fixture
def vaelab(made, tmp_path, monkeypatch, capsys):
    """Runs commands beside copies of the runs, which a test may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Fitted(tmp_path, capsys)


FIT = ("prior", "prior=gmm", "prior.components=3", "device=cpu")
EVAL = ("eval", "sections=[likelihood]", "importance_samples=50", "device=cpu")


def fit(vaelab: Fitted, run: str, *arguments: str) -> str:
    code, out, err = vaelab(*FIT, f"run={run}", *arguments)
    assert code == 0, err
    return out


def test_an_autoencoder_can_be_sampled_once_a_prior_is_fitted_to_it(vaelab):
    vaelab.refused("sample", "run=ae", says=["AE", "no prior", "vaelab prior run=ae prior=gmm", "prior=gmm"])
    out = fit(vaelab, "ae")
    assert "a mixture of 3 Gaussians fitted to the codes of 1,294 images" in out
    assert "ae/priors/gmm/prior.safetensors" in out
    assert "ELBO" not in out
    code, said, err = vaelab("sample", "run=ae", "prior=gmm", "n=40", "seed=3", "out=made.npz")
    assert code == 0, err
    assert "fitted to the codes" in said
    model = load("ae", prior="gmm")
    expected = coding.sample(model, 40, None, (0.0, 1.0), 3)
    with np.load("made.npz") as made:
        assert np.abs(made["images"][..., 0] / 255 - expected[:, 0].numpy()).max() < 0.51 / 255
    assert vaelab("sample", "run=ae", "prior=gmm")[0] == 0
    assert Path("ae/figures/sample-gmm.png").is_file()
    assert not Path("ae/figures/sample.png").exists()
    vaelab.refused("sample", "run=ae", says=["no prior"])


def test_it_is_fitted_to_what_is_asked_for(vaelab):
    """The mixture's mean is that of what it was fitted to, whose log p(z) is the one that is printed."""
    trained = Trained("cvae", device="cpu")
    codes = fitting.encoded(trained, "train", 10**6, 0).posterior
    for of in ("means", "draws"):
        out = fit(vaelab, "cvae", f"of={of}")
        z, prior = fitting.latents(codes, of, 0), load("cvae", prior="gmm").require_prior()
        torch.testing.assert_close(prior.mean, z.mean(0), atol=1e-3, rtol=1e-3)
        figures = next(line.split()[-2:] for line in out.splitlines() if line.startswith("mean log p(z)"))
        assert float(figures[0]) == pytest.approx(prior.log_prob(z).mean().item(), abs=2e-3)
    assert not torch.equal(codes.code, z)
    out = fit(vaelab, "cvae", "max_images=100")
    assert "of 100 images" in out
    assert vaelab("sample", "run=cvae", "prior=gmm", "label=7", "out=a.npz")[0] == 0


def test_a_fitted_prior_changes_the_bounds_by_no_more_than_the_kl_of_the_aggregate(vaelab):
    """And what the command says that the ELBO gains on the validation images, vaelab eval finds there."""
    out = fit(vaelab, "vae", "of=draws")
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("ELBO gained over N(0, I)"))
    said, error = (float(line.split()[-1]) for line in lines[place : place + 2])
    assert vaelab(*EVAL, "run=vae", "split=val", "sections=[likelihood,latents]", "gap_images=2")[0] == 0
    under = [*EVAL[1:], "sections=[likelihood,latents]", "gap_images=2", "split=val", "prior=gmm"]
    code, printed, err = vaelab("eval", "run=vae", *under)
    assert code == 0, err
    assert "prior=gmm (a mixture of 3 Gaussians fitted to the draws of q(z|x) of 1,294 images)" in printed
    own, other = (read_evaluation(Path("vae"), "val", prior) for prior in (None, "gmm"))
    figures, found = own["figures"], other["figures"]
    gain = found["likelihood/elbo"] - figures["likelihood/elbo"]
    assert gain == pytest.approx(said, abs=0.1)
    own_model, fitted = load("vae"), load("vae", prior="gmm").require_prior()
    codes = fitting.encoded(Trained("vae", device="cpu"), "val", 10_000, 0).posterior
    z = fitting.latents(codes, "draws", 1)
    gains = fitted.log_prob(z) - own_model.require_prior().log_prob(z)
    assert error == pytest.approx(gains.std().item() / math.sqrt(len(z)), rel=0.02)
    assert gain <= figures["latents/kl_total_correlation"] + figures["latents/kl_dimension_wise"] + 0.1
    assert gain == pytest.approx(figures["latents/kl_marginal"] - found["latents/kl_marginal"], abs=0.1)
    assert found["latents/kl_index_code_mi"] == pytest.approx(figures["latents/kl_index_code_mi"], abs=1e-6)
    assert "latents/kl_dimension_wise" not in found
    assert found["likelihood/reconstruction"] == pytest.approx(figures["likelihood/reconstruction"], abs=1e-6)
    assert "prior" not in own
    assert other["prior"]["name"] == "gmm"
    assert Files(Path("vae")).per_image("val", "gmm").is_file()


def test_another_fit_takes_the_place_of_the_former_and_of_its_evaluation(vaelab):
    fit(vaelab, "vae", "of=draws")
    assert vaelab(*EVAL, "run=vae", "prior=gmm")[0] == 0
    before = read_evaluation(Path("vae"), "test", "gmm")
    fit(vaelab, "vae", "of=means", "prior.covariance=diag")
    assert read_evaluation(Path("vae"), "test", "gmm") == {}
    assert vaelab(*EVAL, "run=vae", "prior=gmm")[0] == 0
    after = read_evaluation(Path("vae"), "test", "gmm")
    assert before["prior"]["fit"] != after["prior"]["fit"]
    assert before["figures"]["likelihood/elbo"] > after["figures"]["likelihood/elbo"]
    write_evaluation(Path("vae"), before)  # as one that was measured while the prior was fitted again
    assert vaelab("eval", "run=vae", "prior=gmm", "sections=[reconstruction]", "device=cpu")[0] == 0
    assert "likelihood/elbo" not in read_evaluation(Path("vae"), "test", "gmm")["figures"]


def test_a_fit_to_means_says_that_the_elbo_loses(vaelab):
    assert "of=draws" in fit(vaelab, "vae", "of=means", "prior.regularisation=1e-9")
    out = fit(vaelab, "vae")
    assert "of=draws" not in out
    assert "fitted to the draws of q(z|x)" in out


def test_a_prior_is_of_the_weights_that_it_was_fitted_to(vaelab):
    fit(vaelab, "vae")
    code, _, err = vaelab("train", "resume=vae", "trainer.max_epochs=2", "report=false", "test=false")
    assert code == 0, err
    for word in ("sample", "eval"):
        vaelab.refused(word, "run=vae", "prior=gmm", says=["prior=gmm", "epoch 1", "vaelab prior run=vae prior=gmm"])
    vaelab.refused("sample", "run=vae", "prior=gmm", "checkpoint=last", says=["prior=gmm checkpoint=last"])
    fit(vaelab, "vae")
    assert vaelab("sample", "run=vae", "prior=gmm", "n=2")[0] == 0


def test_what_cannot_be_is_two_lines(vaelab, monkeypatch):
    for word in ("sample", "eval"):
        vaelab.refused(word, "run=vae", "prior=gmm", says=["prior=gmm", "no fitted prior", "vaelab prior run=vae"])
    vaelab.refused("prior", "run=vqvae", says=["prior=gmm", "VQVAE", "discrete", "prior=pixelcnn or prior=transformer"])
    vaelab.refused("prior", "run=vae", "prior=pixelcnn", says=["prior=pixelcnn", "indices", "VAE", "prior=gmm"])
    vaelab.refused("prior", "run=ae", "of=draws", says=["of=draws", "AE"])
    vaelab.refused(*FIT, "run=vae", "max_images=2", says=["prior.components=3", "2 images"])
    fit(vaelab, "vae")
    vaelab.refused("sample", "run=vae", "prior=other", says=["prior=other", "gmm"])
    vaelab.refused("sample", "run=vae", "prior=[1]", says=["prior"])
    vaelab.refused("eval", "run=vae", "prior=[1]", says=["prior"])
    monkeypatch.setattr("vaelab.runs.load", lambda *a: pytest.fail("the model was loaded"))
    for name in ("standard", "none"):
        vaelab.refused("prior", "run=vae", f"prior={name}", says=[f"prior={name}", "prior=gmm"])
    vaelab.refused("prior", "run=vae", "prior=nothing", says=["prior=nothing", "gmm"])
    vaelab.refused("prior", "run=vae", "prior.components=0", says=["prior.components=0"])
    vaelab.refused("prior", "run=vae", "prior.covariance=round", says=["prior.covariance"])
    vaelab.refused("prior", "run=vae", "of=codes", says=["of"])


def test_a_training_of_another_prior_does_not_take_it(vaelab):
    says = ["prior=pixelcnn", "fitted afterwards", "vaelab prior run=RUN prior=pixelcnn"]
    vaelab.refused("train", "model=vae", "prior=pixelcnn", "run.dir=x", says=says)
    vaelab.refused("train", "model=ae", "prior=standard", "run.dir=x", says=["prior=", "model=vae"])
    says = ["prior=gmm", "vectors", "VQVAE", "prior=pixelcnn"]
    vaelab.refused("train", "model=vqvae", "prior=gmm", "run.dir=x", says=says)
    vaelab.refused("train", "model=ae", "prior=pixelcnn", "run.dir=x", says=["prior=pixelcnn", "AE", "prior=gmm"])
    assert not Path("x").exists()


def test_a_write_that_is_cut_short_leaves_nothing_or_the_former(vaelab, monkeypatch):
    from safetensors import torch as files

    save = files.save_file

    def cut(tensors, path, metadata):
        save(tensors, path, metadata)
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "save_file", cut)
        assert vaelab(*FIT, "run=ae")[0] == 130
    assert not [path for path in Path("ae/priors").rglob("*") if path.is_file()]
    vaelab.refused("sample", "run=ae", "prior=gmm", says=["no fitted prior"])
    fit(vaelab, "ae")
    before = Files(Path("ae")).prior("gmm").read_bytes()
    monkeypatch.setattr(files, "save_file", cut)
    assert vaelab(*FIT, "run=ae", "seed=1")[0] == 130
    assert Files(Path("ae")).prior("gmm").read_bytes() == before


def test_a_file_that_is_damaged_or_builds_another_class_is_refused(vaelab):
    fit(vaelab, "ae")
    path = Files(Path("ae")).prior("gmm")
    whole = path.read_bytes()
    for wrong in (b"", whole[:-8], b"nonsense" + whole):
        path.write_bytes(wrong)
        vaelab.refused("sample", "run=ae", "prior=gmm", says=[str(path), "damaged", "vaelab prior run=ae"])
    for old, new in ((b"vaelab.nn.priors.GaussianMixture", b"vaelab.nn.priors.standard.os____"),
                     (b"vaelab.nn.priors.GaussianMixture", b"os.path.basename".ljust(32, b"_"))):  # fmt: skip
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        vaelab.refused("sample", "run=ae", "prior=gmm", says=[str(path), "prior would run", "trust=true"])


def test_completion_knows_the_command_and_its_keys(vaelab, monkeypatch, capsys):
    for line, known in (("vaelab pri", "prior"), ("vaelab prior max", "max_images="), ("vaelab prior pr", "prior="),
                        ("vaelab sample pr", "prior="), ("vaelab eval o", "ood=")):  # fmt: skip
        monkeypatch.setenv("COMP_LINE", line)
        assert main(["-sc", "query=bash"]) == 0
        assert known in capsys.readouterr().out.split()
    with pytest.raises(SystemExit, match="0"):
        main(["prior", "--help"])
    out = capsys.readouterr().out
    assert "components: 10" in out
    assert "prior        gmm: a mixture" in out
