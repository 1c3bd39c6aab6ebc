"""The lean loop does what Lightning's does, and a step's work is counted: seconds would depend on the machine."""

from __future__ import annotations

import csv
import shutil

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vaelab
import vaelab.training.fit
import vaelab.training.loop
from tests.test_conf import options
from vaelab.core.batch import Batch
from vaelab.core.means import Means

VARIANTS = options("model")


@pytest.fixture
def loops(monkeypatch):
    """Which runs got the lean loop, in order; `loops.lean = False` gives all others Lightning's own."""

    class Loops(list):
        lean = True

    found = Loops()

    def quicken(trainer):
        if found.lean and vaelab.training.loop.quicken(trainer):
            trainer.callbacks.append(Look())
        else:
            found.append(False)

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                found.append(trainer.fit_loop.epoch_loop.lean)

    monkeypatch.setattr(vaelab.training.fit, "quicken", quicken)
    return found


def figures(result):
    with (result.run / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def weights(result):
    return torch.load(result.run / "checkpoints/last.ckpt", weights_only=True)


EARLY = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/elbo, mode: min, patience: 1}"
OFTEN = ("trainer.val_check_interval=2", "trainer.min_epochs=0", "trainer.min_steps=7")
SETTINGS = {
    **{name: [f"model={name}"] for name in VARIANTS},
    "validation inside an epoch": ["trainer.val_check_interval=2"],
    "clipping": ["trainer.gradient_clip_val=0.5"],
    "steps": ["trainer.max_steps=4", "trainer.max_epochs=-1"],
    "stopped early, with steps to go": [f"+callbacks.stop={EARLY}", "dataset.batch_size=8", *OFTEN],
    "few batches": ["trainer.limit_train_batches=2"],
    "averaged weights": ["averaging=ema"],
    "learning rate": ["lr_schedule=plateau", "schedule=warmup"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "dynamic": ["dataset.binarize=dynamic"],
    "streamed": ["dataset.storage=stream", "dataset.num_workers=0"],
}


@pytest.mark.parametrize("setting", SETTINGS, ids=SETTINGS.keys())
def test_the_lean_loop_is_lightnings_to_the_bit(train, loops, setting):
    lean = train(*SETTINGS[setting])
    loops.lean = False
    full = train(*SETTINGS[setting])
    assert loops == [True, False]
    assert figures(lean) == figures(full)
    ours, theirs = weights(lean), weights(full)
    assert ours["global_step"] == theirs["global_step"] > 0
    assert ours["loops"] == theirs["loops"]
    for name, value in theirs["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours["state_dict"][name], value), name


ACCUMULATE = "pytorch_lightning.callbacks.GradientAccumulationScheduler"


class Foreign(pl.Callback):
    """A callback from elsewhere, which logs from a step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert outputs["loss"].isfinite()
        pl_module.log("mine", 3.0)


@pytest.mark.parametrize(
    ("lean", "arguments"),
    [
        (True, []),
        (True, ["trainer.enable_progress_bar=false", "logger=tensorboard"]),
        (False, ["trainer.accumulate_grad_batches=2"]),
        (False, ["trainer.profiler=simple"]),
        (False, ["+callbacks.mine={_target_: vaelab.training.loop.Foreign}"]),
        (False, [f"+callbacks.mine={{_target_: {ACCUMULATE}, scheduling: {{0: 2}}}}"]),
    ],
)
def test_what_needs_more_gets_lightnings_loop(train, loops, monkeypatch, lean, arguments):
    monkeypatch.setattr(vaelab.training.loop, "Foreign", Foreign, raising=False)
    assert train(*arguments).code == 0
    assert loops == [lean]


@pytest.mark.parametrize("hook", ["on_after_backward", "configure_gradient_clipping", "training_step"])
def test_a_variant_with_hooks_of_its_own_gets_lightnings_loop(train, loops, monkeypatch, hook):
    called = []
    former = getattr(vaelab.models.VAE, hook)

    def own(self, *args, **kwargs):
        called.append(hook)
        return former(self, *args, **kwargs)

    monkeypatch.setattr(vaelab.models.VAE, hook, own, raising=False)
    own.__module__ = "mine"
    assert train().code == 0
    assert loops == [False]
    assert len(called) == 2 * 3  # epochs, batches


@pytest.mark.parametrize("step", [1, 2])
def test_a_resume_begins_as_lightnings_does(train, loops, monkeypatch, step):
    """After an interruption at a step's end, before a validation that was due (at step 2) or not."""
    ended = vaelab.models.VAE.on_train_batch_end
    interrupt = False

    def interrupted(self, *args):
        nonlocal interrupt
        ended(self, *args)
        if interrupt and self.trainer.global_step == step:
            interrupt = False
            raise KeyboardInterrupt

    monkeypatch.setattr(vaelab.models.VAE, "on_train_batch_end", interrupted)
    interrupted.__module__ = "vaelab.models"
    results = []
    for lean in (True, False):
        interrupt, loops.lean = True, lean
        part = train("trainer.val_check_interval=2", "trainer.max_epochs=1")
        assert part.code == 130
        assert not interrupt
        assert train(f"resume={part.run}").code == 0
        results.append(part)
    lean, full = results
    assert loops == [True, False, False]  # the interrupted run did not come to the end of an epoch
    assert figures(lean) == figures(full)
    assert weights(lean)["loops"] == weights(full)["loops"]
    assert all(
        torch.equal(value, weights(full)["state_dict"][name]) for name, value in weights(lean)["state_dict"].items()
    )


def test_other_versions_of_lightning_get_their_own_loop(train, loops, monkeypatch):
    monkeypatch.setattr(vaelab.training.loop, "WRITTEN_FOR", "0.")
    assert train().code == 0
    assert loops == [False]


def test_a_variant_may_log_from_its_terms(train, loops, monkeypatch):
    terms = vaelab.models.VAE.terms

    def logging(self, batch, noise):
        self.log("largest", batch.images.max())
        return terms(self, batch, noise)

    monkeypatch.setattr(vaelab.models.VAE, "terms", logging)
    lean = train("test=false", "dataset.val_size=0")
    loops.lean = False
    full = train("test=false", "dataset.val_size=0")
    assert loops == [True, False]
    assert lean.series("largest") == full.series("largest") != []


class Count(TorchDispatchMode):
    """Operations, and among them those that make the host wait for the device."""

    WAITING = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default")

    def __init__(self):
        super().__init__()
        self.all = self.waiting = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.all += 1
        self.waiting += str(func) in self.WAITING
        return func(*args, **(kwargs or {}))


def work(train, steps, *arguments):
    """What a run of so many steps takes, in operations, waits and calls of self.log; and the run."""
    logs = []
    with pytest.MonkeyPatch.context() as patch, Count() as count:
        patch.setattr(pl.LightningModule, "log", lambda *_, **__: logs.append(1))
        result = train(
            "dataset=digits",
            "dataset.batch_size=32",
            f"trainer.max_steps={steps}",
            "test=false",
            *arguments,
            small=False,
        )
    assert result.code == 0, result.err
    return (count.all, count.waiting, len(logs)), result


def bare_work(run):
    """Operations of a step of the same model in a loop without Lightning, figures and schedules."""
    model = vaelab.load(run, "last").train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = torch.zeros(64, *model.shape, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)
    for _ in range(3):  # the first makes the optimiser's state
        with Count() as count:
            index = torch.arange(64)[:32]
            batch = Batch(images[index].float().div_(255), labels[index])
            terms = model.terms(batch, model.noise(32))
            loss = model.objective(terms)
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                model.learn([model.observe(batch, terms)])
            optimizer.step()
    return count.all


@pytest.mark.parametrize("model", VARIANTS)
def test_work_of_a_step(train, model):
    (few, _), (many, result) = (work(train, steps, f"model={model}") for steps in (10, 20))
    operations, waits, logs = ((b - a) / 10 for a, b in zip(few, many, strict=True))
    assert waits == 0
    assert logs == 0
    trained = vaelab.load(result.run, "last")
    scalars, levels = len(trained.scalars), len(trained.layout.levels)
    # the figures' means, a copy of each scalar, and counts of the codes of each level
    assert operations <= bare_work(result.run) + 12 + 3 * scalars + 5 * (levels - 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS)
def test_compiled_once_whatever_the_schedule_does(train, monkeypatch, model):
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, dynamic=False, backend=backend))
    scheduled = {"beta": "beta", "capacity": "capacity", "vae": "warmup", "cvae": "warmup"}.get(model, "constant")
    arguments = (f"model={model}", f"schedule={scheduled}", "trainer.max_epochs=3")
    result = train("compile=true", *arguments)  # 2 batches of 32, one of 22; validation; the test
    assert result.code == 0, result.err
    assert len(compiled) == 1
    assert result.series("step/loss") == pytest.approx(train(*arguments).series("step/loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiles for real")
@pytest.mark.parametrize(
    "arguments", [["model=vqvae", "trainer.precision=bf16-mixed"], ["schedule=warmup", "averaging=ema"]]
)
def test_compiled_for_real(train, arguments):
    losses = [train(f"compile={on}", "test=false", *arguments).series("step/loss") for on in ("true", "false")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if "model=vqvae" in arguments else 1e-4)


def test_compiled_without_a_compiler(train, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = train("compile=true")
    assert result.code == 2
    assert "compile=true needs a C++ compiler" in result.err
    assert not (result.run / "config.yaml").exists()


@pytest.mark.parametrize(
    "given",
    [
        "compile=maybe",
        "compile=1",
        "compile=1.0",
        "channels_last=off",
        "test=2",
        "cuda_graph=on",
        "matmul_precision=low",
    ],
)
def test_switches(train, given):
    result = train(given)
    assert result.code == 2
    assert given.partition("=")[0] in result.err


def test_clipping_in_16_bits_names_the_remedy(train):
    arguments = ("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1")
    refused = train(*arguments)
    assert refused.code == 2
    assert "optimizer.fused=false" in refused.err
    assert train(*arguments, "optimizer.fused=false").code == 0


def test_a_layout_changed_on_resume_leaves_the_optimiser_right(train):
    ends = []
    for fused in ("true", "false"):
        shape = ("network=conv", "dataset.image_shape=[3,8,8]", f"optimizer.fused={fused}")
        first = train(*shape, "trainer.max_epochs=1")
        assert train(f"resume={first.run}", "trainer.max_epochs=3", "channels_last=false").code == 0
        ends.append(weights(first)["state_dict"])
    for name, value in ends[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, ends[1][name], atol=1e-4), name


def test_validation_after_a_resume_sees_all_images(train):
    data = ("dataset.size=160", "dataset.val_size=64", "trainer.max_epochs=-1", "test=false")  # 3 and 2 batches
    whole = train(*data, "trainer.max_steps=12")
    part = train(*data, "trainer.max_steps=6")
    assert train(f"resume={part.run}", "trainer.max_steps=12").code == 0
    assert part.series("val/reconstruction") == whole.series("val/reconstruction")


def test_figures_are_folded_without_waiting():
    means = Means()
    with Count() as count:
        for _ in range(3 * Means.HELD):
            means.update({"a": torch.ones(())}, {"v": torch.ones(3)}, 2)
    assert count.all > 0
    assert count.waiting == 0
    assert not means.held


def test_convolutions_are_channels_last_on_a_processor(train):
    for arguments, last in ((["network=conv"], True), (["network=conv", "channels_last=false"], False)):
        result = train(*arguments, "dataset.image_shape=[3,8,8]", "likelihood=gaussian")
        weight = weights(result)["state_dict"]["encoder.body.2.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
