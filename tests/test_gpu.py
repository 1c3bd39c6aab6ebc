"""What only a GPU can show; `pytest -m gpu` on a machine that has one (scripts/gpu/check.py runs it)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vaelab
import vaelab.models
import vaelab.training.captured
import vaelab.training.loop
from tests.conftest import SMALL, Result, smaller
from tests.test_conf import composed, options
from vaelab.core.config import build
from vaelab.core.means import Means
from vaelab.nn.quantizers import nearest_code

pytestmark = pytest.mark.gpu

MODELS, LIKELIHOODS = options("model"), options("likelihood")
ON_GPU = ["trainer.accelerator=gpu", *[a for a in SMALL if not a.startswith("trainer.accelerator")]]


def of(model: str) -> list[str]:
    """What chooses a model in a run as small as ON_GPU."""
    return [f"model={model}", *smaller([f"model={model}"])]


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
    chosen = (*ON_GPU, *of(model), "schedule=constant", "trainer.deterministic=true", "trainer.max_epochs=-1")
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
    run = train(*ON_GPU, *of(model), small=False).run
    here, there = vaelab.load(run), vaelab.load(run, device="cuda")
    x, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which convolutions use by default
    ours, theirs = here.reconstruct(x, labels), there.reconstruct(x.cuda(), labels.cuda()).cpu()
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_agree(likelihood):
    node = composed(f"likelihood={likelihood}")["likelihood"]
    if likelihood == "table":
        node["columns"] = [{"name": str(i), "kind": kind} for i, kind in enumerate(("gaussian", "poisson") * 8)]
    part, shape = build(node), (1, 1, 16)
    raw, x = torch.randn(8, *part.raw_shape(shape)), torch.rand(8, *shape)
    ours, theirs = part.log_prob(raw, x), part.cuda().log_prob(raw.cuda(), x.cuda()).cpu()
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_nearest_codes_are_nearest():
    torch.manual_seed(0)
    z, codes = torch.randn(5000, 64), torch.randn(700, 64)
    exact = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = nearest_code(z.cuda(), codes.cuda()).cpu()
    distance = exact.gather(1, found[:, None]).squeeze(1)
    assert (distance - exact.amin(1)).max() < 1e-5


# --- a step as one CUDA graph -----------------------------------------------------------------


@pytest.fixture
def replays(monkeypatch):
    """Counts the replays of captured steps: a list with an entry for each."""
    found = []
    replay = vaelab.training.captured.CUDAGraph.replay

    def counted(self):
        found.append(1)
        return replay(self)

    monkeypatch.setattr(vaelab.training.captured.CUDAGraph, "replay", counted)
    return found


def said(result):
    """What a run has said of the option."""
    return [line for line in (result.run / "run.log").read_text().splitlines() if "cuda_graph=true " in line]


def weights(result):
    state = torch.load(result.run / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


MANY = (
    *[a for a in ON_GPU if not a.startswith(("dataset.size", "trainer.log"))],
    "dataset.size=160",
    "trainer.log_every_n_steps=3",
)
"""Four full batches and an odd one in each of two epochs, in windows of several steps."""
CAPTURED = {
    **{name: of(name) for name in MODELS},
    "beta, schedule": ["model=beta", "schedule=beta"],
    "gradient codebook": ["model=vqvae", "codebook=gradient", "codebook.restart_after=1"],
    "averages, restarts": ["model=vqvae", "codebook=ema", "codebook.restart_after=1"],
    "clipping": ["trainer.gradient_clip_val=0.5"],
    "averaged weights": ["averaging=ema"],
    "learning rate": ["lr_schedule=cosine"],
    "weight decay": ["optimizer=adamw"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "convolutions, bf16": ["network=conv", "trainer.precision=bf16-mixed", "channels_last=true"],
    "batch norm": ["network.norm=batch"],
    "dynamic": ["dataset.binarize=dynamic"],
    "augmentation": ["augment=shifts"],
    "dropped labels": ["model=cvae", "condition.drop=0.5"],
    "streamed": ["dataset.storage=stream", "dataset.num_workers=0"],
}


@pytest.mark.parametrize("setting", CAPTURED, ids=CAPTURED.keys())
def test_a_captured_run_is_the_run_without(train, replays, setting):
    """The sums that kernels add by atomics differ in the last bits, and with them which code is nearest."""
    captured, eager = (train(*MANY, f"cuda_graph={on}", *CAPTURED[setting], small=False) for on in ("true", "false"))
    assert captured.code == eager.code == 0, captured.err
    assert said(captured) == []
    assert len(replays) == 2 * 4 - vaelab.training.captured.WARM_UP
    close = 2e-2 if "bf16" in setting or "vq" in "".join(CAPTURED[setting]) else 1e-4
    for series in ("step/loss", "train/loss", "val/loss", "test/loss"):
        assert captured.series(series) == pytest.approx(eager.series(series), rel=close), series


@pytest.mark.parametrize("model", ["vae", "capacity", "cvae", "vqvae"])
def test_a_captured_run_resumes_to_the_bit(train, replays, model):
    """Within an epoch: the first steps of a resumed run are taken eagerly, and those of the other are replayed."""
    chosen = (*MANY, "cuda_graph=true", f"model={model}", "schedule=constant", "trainer.max_epochs=-1")
    chosen = (*chosen, "trainer.deterministic=true")
    whole = train(*chosen, "trainer.max_steps=12", small=False)
    assert model == "vqvae" or (replays and not said(whole))
    part = train(*chosen, "trainer.max_steps=7", small=False)
    assert train(f"resume={part.run}", "trainer.max_steps=12").code == 0
    ours, theirs = weights(part), weights(whole)
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []


def test_checkpoints_hold_what_they_hold_without_a_graph(train, replays):
    states = []
    for on in ("true", "false"):
        run = train(*MANY, f"cuda_graph={on}", small=False).run
        states += torch.load(run / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")["optimizer_states"]
    ours, theirs = states
    assert replays
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
            k: (v.shape, v.dtype) for k, v in ours["state"][number].items()
        }
        assert ours["state"][number]["step"] == state["step"]


def test_a_step_that_waits_for_the_device_is_not_captured(train, replays, monkeypatch):
    terms = vaelab.models.VAE.terms

    def waiting(self, batch, noise):
        found = terms(self, batch, noise)
        found["kl"].sum().item()
        return found

    monkeypatch.setattr(vaelab.models.VAE, "terms", waiting)
    result = train(*MANY, "cuda_graph=true", small=False)
    assert result.code == 0, result.err
    (line,) = said(result)
    assert "wait for the device (test_gpu.py:" in line
    assert not replays


@pytest.mark.parametrize("mended", ["a wait", "a broken capture"])
def test_training_goes_on_after_a_capture_that_failed(tmp_path, mended):
    """In a process of its own, whose state would be anyone's guess otherwise; random numbers are drawn afterwards."""
    how = {"a wait": "found['kl'].sum().item()", "a broken capture": "torch.cuda.synchronize()"}[mended]
    program = f"""
import sys, torch
from vaelab.cli import main
from vaelab.models import VAE

terms = VAE.terms

def refused(self, batch, noise):
    found = terms(self, batch, noise)
    if torch.cuda.is_current_stream_capturing():
        {how}
    return found

VAE.terms = refused
sys.exit(main({["train", *MANY, "cuda_graph=true", "model=vae", "run.dir=run"]!r}))
"""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda_graph=true failed (" in (tmp_path / "run/run.log").read_text()


@pytest.mark.parametrize(
    "arguments",
    [["trainer.precision=16-mixed"], ["trainer.accumulate_grad_batches=2"], ["optimizer.fused=false"]],
)
def test_runs_that_are_not_captured_say_so(train, replays, arguments):
    result = train(*MANY, "cuda_graph=true", *arguments, small=False)
    assert result.code == 0, result.err
    assert len(said(result)) == 1
    assert not replays


def test_products_in_lower_precision(train):
    try:
        assert train(*MANY, "matmul_precision=high", "cuda_graph=true", small=False).code == 0
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# --- jobs that train as one -------------------------------------------------------------------


@pytest.mark.parametrize("captured", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_jobs_that_train_as_one_come_out_as_alone(train, replays, network, captured):
    """Units are smooth: a kink makes much of a rounding."""
    given = ("-m", *MANY, "model=vae", f"network={network}", "network.activation=tanh", "optimizer.lr=0.001,0.002")
    given = (*given, f"cuda_graph={captured}")
    assert train(*given, "sweep.dir=alone", small=False).code == 0
    replays.clear()
    result = train(*given, "hydra/launcher=vectorized", "sweep.dir=together", small=False)
    assert result.code == 0, result.err
    assert "2 jobs train as one" in result.out
    assert len(replays) == captured * 2 * (2 * 4 - vaelab.training.captured.WARM_UP)  # gradients, and the step
    for alone in sorted(Path("alone").glob("[0-9]-*")):
        for series in ("train/loss", "val/loss"):
            ours, theirs = (Result(0, "", "", run).series(series) for run in (Path("together") / alone.name, alone))
            assert ours == pytest.approx(theirs, rel=1e-3), series
