"""Bits-back coding: images come back as they were, and take what the ELBO says."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import terms_of
from tests.test_compression import pixels, refused
from vaelab.core.errors import UserError
from vaelab.inference import bitsback
from vaelab.models import AE, VAE
from vaelab.models.hierarchical import Hierarchical
from vaelab.nn.conditions import Label
from vaelab.nn.likelihoods import Bernoulli, Gaussian
from vaelab.nn.networks import MLP
from vaelab.nn.posteriors import DiagonalGaussian
from vaelab.nn.priors import Prior

pytest.importorskip("constriction")
SHAPE, LATENTS = (1, 6, 6), 5


def vae(sigma=0.1, spread=1.0, likelihood=None, condition=None) -> VAE:
    """A VAE that is not trained. sigma: of q(z|x), about. spread: standard deviation of its means over images."""
    torch.manual_seed(0)
    made = VAE(SHAPE, 3, MLP([16], "relu", False), likelihood or Bernoulli(), LATENTS, condition=condition).eval()
    last = last_layer(made.encoder)
    last.weight.data[LATENTS:] *= 0.1
    last.bias.data[LATENTS:] = 2 * math.log(sigma)
    with torch.no_grad():
        last.weight.data[:LATENTS] *= spread / made.encode(drawn(500).float(), torch.zeros(500).long()).code.std()
    last_layer(made.decoder).weight.data *= 3
    return made


def last_layer(network: torch.nn.Module) -> torch.nn.Linear:
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]


def drawn(count: int) -> torch.Tensor:
    return (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)) > 0.6).byte()


def elbo(model: VAE, images: torch.Tensor, draws: int = 400) -> float:
    """Minus the ELBO of all images, bits."""
    torch.manual_seed(2)
    with torch.no_grad():
        terms = terms_of(model, images.float().repeat(draws, 1, 1, 1))
    return float((terms["reconstruction"] + terms["kl"]).double().sum() / draws / math.log(2))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_images_come_back_and_nothing_but_the_first_bits_is_paid_beside_their_rate(count):
    model, images = vae(), drawn(count)
    words, initial, bits = bitsback.encode(model, images, None)
    assert torch.equal(bitsback.decode(model, words, count, None), images)
    assert 8 * (len(words) - initial) == pytest.approx(bits, rel=0.002, abs=40)  # up to a word, and what cells cost
    first = min(count, bitsback.BLOCK) * LATENTS * math.log2(0.1 / bitsback.WIDTH * math.sqrt(2 * math.pi * math.e))
    assert 8 * initial == pytest.approx(first, rel=0.1, abs=96)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_net_length_is_minus_the_elbo(sigma, spread):
    """Of latents that tell nothing or much, though together they are far from the prior."""
    model, images = vae(sigma, spread), drawn(1500)
    words, initial, _ = bitsback.encode(model, images, None)
    assert 8 * (len(words) - initial) == pytest.approx(elbo(model, images), rel=0.01)


def test_far_from_the_prior_it_is_less():
    """Cells that hardly any z is in get the least probability that the stack knows, which is more than theirs."""
    model, images = vae(spread=3.0), drawn(300)
    words, initial, _ = bitsback.encode(model, images, None)
    assert torch.equal(bitsback.decode(model, words, 300, None), images)
    assert 8 * (len(words) - initial) < 0.99 * elbo(model, images)


def test_no_z_lies_where_its_posterior_hardly_ever_does():
    """The least probability of a cell, 2^-24, would else put 40 of these latents anywhere between -16 and 16."""
    sigma = 0.02
    posterior = DiagonalGaussian(torch.linspace(-20, 20, 40_000)[None], torch.full((1, 40_000), 2 * math.log(sigma)))
    stack = bitsback.entropy.constriction().stack
    coder = stack.AnsCoder(np.random.default_rng(0).integers(1, 2**32, 40_000, dtype=np.uint32))
    z = torch.tensor([coder.decode(cell) for cell in bitsback._cells(posterior)]) * bitsback.WIDTH
    error = (z - posterior.mean[0].clamp(-16, 16)) / sigma
    assert error.abs().max() <= bitsback.REACH + 0.2
    inside = error[posterior.mean[0].abs() < 15]
    assert inside.mean().item() == pytest.approx(0, abs=0.02)
    assert inside.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, -2000.0), (0.0, 2000.0), (1e6, -4.0)])
def test_any_posterior_is_taken(mean, logvar):
    model, images = vae(), drawn(20)
    last_layer(model.encoder).bias.data[:] = torch.tensor([mean] * LATENTS + [logvar] * LATENTS)
    assert torch.equal(bitsback.decode(model, bitsback.encode(model, images, None).words, 20, None), images)


def test_rounding_depends_on_no_order_in_memory_and_no_number_of_threads(monkeypatch, two_threads):
    """Files decode to another order than an image file has; a convolution rounds otherwise in it."""
    model, images, seen = vae(), drawn(20), []
    for name in ("encode", "decode"):
        apply = getattr(model, name)
        monkeypatch.setattr(model, name, lambda x, y, f=apply: seen.append((x, torch.get_num_threads())) or f(x, y))
    channels_last = torch.from_numpy(images.permute(0, 2, 3, 1).numpy().copy()).permute(0, 3, 1, 2)
    words = bitsback.encode(model, channels_last, None).words
    assert torch.equal(bitsback.decode(model, words, 20, None), images)
    assert all(x.stride() == torch.empty(x.shape).stride() and threads == 1 for x, threads in seen)
    assert len(seen) == 8


def test_a_conditional_model_is_told_the_labels():
    model, images, labels = vae(condition=partial(Label, dim=4)), drawn(20), torch.arange(20) % 3
    words = bitsback.encode(model, images, labels).words
    assert torch.equal(bitsback.decode(model, words, 20, labels), images)
    with contextlib.suppress(KeyError, ValueError):
        assert not torch.equal(bitsback.decode(model, words, 20, labels.roll(1)), images)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(bad):
    model = vae()
    next(model.parameters()).data.fill_(bad)
    with pytest.raises(UserError, match="checkpoint: "):
        bitsback.encode(model, drawn(3), None)


def test_models_that_cannot_are_told_why():
    network, sizes = MLP([16], "relu", False), (SHAPE, None)
    other = vae()
    other.prior = Prior()
    other.prior.words = "a mixture"
    for model, said in (
        (Hierarchical(*sizes, network, Bernoulli(), 2, 2, []), "Hierarchical gives no diagonal Gaussian"),
        (AE(*sizes, network, Bernoulli(), 2), "AE gives no diagonal Gaussian"),
        (other, "prior: the latents of VAE are coded by N\\(0, I\\), and not by a mixture: leave it out"),
        (vae(likelihood=Gaussian(0.1)), "likelihood=gaussian is a density on pixels"),
    ):
        with pytest.raises(UserError, match=said):
            bitsback.require(model, True)
    bitsback.require(vae(), True)
    with pytest.raises(UserError, match="cross-entropy on grey pixels"):
        bitsback.require(vae(), False)


# --- the commands -------------------------------------------------------------------------------

BINARY = ["model=vae", "dataset.binarize=threshold"]


@pytest.fixture
def scans(tmp_path) -> Path:
    """Forty images of 8 x 8 pixels, grey ones."""
    generator = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "scans" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "scans"


def halved(folder: Path) -> dict[str, bytes]:
    return {name: bytes(255 * (value > 127) for value in content) for name, content in pixels(folder).items()}


@pytest.mark.parametrize("arguments", [BINARY, [*BINARY, "condition=label"]], ids=" ".join)
def test_binary_images_come_back_as_they_are(finished, command, scans, monkeypatch, arguments):
    run = finished(*arguments).run
    label = ["label=1"] if "condition=label" in arguments else []
    code, out, err = command("compress", f"run={run}", f"input={scans}", *label)
    assert code == 0, err
    assert "none of which is lost" in out
    assert "bzip2" in out
    monkeypatch.setattr("vaelab.inference.batches.batch_size", lambda shape: 7)
    code, out, err = command("decompress", f"run={run}", "out=again")
    assert code == 0, err
    assert pixels(Path("again")) == halved(scans)


@pytest.mark.slow
def test_another_process_with_other_threads_reads_the_file(finished, command, scans):
    run = finished(*BINARY).run
    assert command("compress", f"run={run}", f"input={scans}")[0] == 0
    words = [sys.executable, "-m", "vaelab", "decompress", f"run={run}", "out=again"]
    root = str(Path(bitsback.__file__).parents[2])
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": root})
    assert pixels(Path("again")) == halved(scans)


def test_what_does_not_fit_is_refused(finished, command, scans):
    run, other, codes = (finished(*a).run for a in (BINARY, [*BINARY, "seed=1"], ["model=vqvae"]))
    assert command("compress", f"run={run}", f"input={scans}")[0] == 0
    refused(command, "by another model", "decompress", f"run={other}")
    refused(command, "by another model", "decompress", f"run={codes}")
    content = Path("images.vaelab").read_bytes()
    for size in (0, 20, len(content) // 2, len(content) - 4, len(content) - 1):
        Path("images.vaelab").write_bytes(content[:size])
        refused(command, "input=images.vaelab", "decompress", f"run={run}")
    assert not Path("decompressed").exists()


def test_other_images_than_were_written_are_noticed(finished, command, scans, monkeypatch):
    """As by probabilities that another kind of machine rounds otherwise."""
    run = finished(*BINARY).run
    assert command("compress", f"run={run}", f"input={scans}")[0] == 0
    probabilities = bitsback._probabilities
    monkeypatch.setattr(bitsback, "_probabilities", lambda *given: 0.99 * probabilities(*given))
    refused(command, "not what was written", "decompress", f"run={run}")
