"""Priors of vectors that are fitted afterwards: VampPrior, second VAE, sphere; and the commands, with each of them."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.correlated import seeded
from tests.test_code_priors import NODES
from tests.test_priors import Fitted
from vaelab.cli import main
from vaelab.core.config import target_of
from vaelab.nn.priors import Latents
from vaelab.nn.priors.hypersphere import Hypersphere
from vaelab.runs import Files, load, priors, read_evaluation

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
