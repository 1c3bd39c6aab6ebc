"""What only a GPU can show; `pytest -m gpu` on a machine that has one (scripts/gpu/check.py runs it)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vaelab
import vaelab.training.loop
from tests.conftest import SMALL
from vaelab.core.config import build
from vaelab.core.means import Means
from vaelab.nn.quantizers import nearest_code

pytestmark = pytest.mark.gpu

CONF = Path(__file__).parents[1] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LIKELIHOODS = sorted(path.stem for path in (CONF / "likelihood").glob("*.yaml"))
ON_GPU = ["trainer.accelerator=gpu", *[a for a in SMALL if not a.startswith("trainer.accelerator")]]


@pytest.mark.parametrize("model", MODELS)
def test_no_step_waits_for_the_device(train, monkeypatch, model):
    """Past the first step, in which memory is allocated and a codebook placed, and where no window is closed."""
    steps = 0
    advance = vaelab.training.loop.LeanLoop.advance

    def watched(self, data_fetcher):
        nonlocal steps
        last = self.batch_progress.current.ready + 1 == self.trainer.num_training_batches
        checked = self.trainer.global_step > 0 and not last
        torch.cuda.set_sync_debug_mode("error" if checked else "default")
        try:
            advance(self, data_fetcher)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps += checked

    monkeypatch.setattr(vaelab.training.loop.LeanLoop, "advance", watched)
    batches = 2 * Means.HELD + 10  # figures are folded in between
    result = train(
        *[a for a in ON_GPU if not a.startswith(("dataset.size", "trainer.log"))],
        f"model={model}",
        f"dataset.size={32 * batches}",
        "dataset.val_size=0",
        "trainer.max_epochs=1",
        "trainer.log_every_n_steps=100000",
        "test=false",
        small=False,
    )
    assert result.code == 0, result.err
    assert steps > 2 * Means.HELD


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_is_the_uninterrupted_one(train, model):
    """With deterministic kernels, to the bit: the sums of EMA codebooks are added by atomics otherwise."""
    chosen = (*ON_GPU, f"model={model}", "schedule=constant", "trainer.deterministic=true", "trainer.max_epochs=-1")
    whole = train(*chosen, "trainer.max_steps=6", small=False)
    part = train(*chosen, "trainer.max_steps=3", small=False)  # an epoch
    assert train(f"resume={part.run}", "trainer.max_steps=6").code == 0
    ours, theirs = (
        torch.load(r.run / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for r in (part, whole)
    )
    for name, value in theirs.items():
        if torch.is_tensor(value):
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("model", MODELS)
def test_a_trained_model_gives_the_same_on_both(train, monkeypatch, model):
    run = train(*ON_GPU, f"model={model}", small=False).run
    here, there = vaelab.load(run), vaelab.load(run, device="cuda")
    x, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which convolutions use by default
    ours, theirs = here.reconstruct(x, labels), there.reconstruct(x.cuda(), labels.cuda()).cpu()
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_agree(likelihood):
    from omegaconf import OmegaConf

    part = build(OmegaConf.to_container(OmegaConf.load(CONF / "likelihood" / f"{likelihood}.yaml")))
    raw, x = torch.randn(8, 3, 16, 16), torch.rand(8, 3, 16, 16)
    ours, theirs = part.log_prob(raw, x), part.cuda().log_prob(raw.cuda(), x.cuda()).cpu()
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_nearest_codes_are_nearest():
    torch.manual_seed(0)
    z, codes = torch.randn(5000, 64), torch.randn(700, 64)
    exact = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = nearest_code(z.cuda(), codes.cuda()).cpu()
    distance = exact.gather(1, found[:, None]).squeeze(1)
    assert (distance - exact.amin(1)).max() < 1e-5
