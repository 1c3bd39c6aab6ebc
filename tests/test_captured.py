"""A run whose steps are captured is the run without, down to its files; on the processor a stand-in records them."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vaelab.training.captured
import vaelab.training.fit
from tests.recorded import RecordedGraph
from tests.test_conf import options
from vaelab import runs
from vaelab.models import VAE
from vaelab.training.loop import LeanLoop

DATA = ("dataset.size=160", "trainer.log_every_n_steps=3", "optimizer.lr=0.0009765625")
"""Four full batches and an odd one per epoch, in windows of several steps; the rate is a number of float32."""
REPLAYS = 2 * 4 - vaelab.training.captured.WARM_UP
"""Replays in the two epochs of a run."""


@pytest.fixture
def graphs(monkeypatch):
    """The graphs of the runs of a test."""
    made = []

    class Graph(RecordedGraph):
        def __init__(self, device):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(vaelab.training.captured, "graphs_on", lambda device: Graph)
    return made


def files(result):
    checkpoint = torch.load(result.run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint, (result.run / "metrics.csv").read_text()


def differences(ours, theirs, path=""):
    """Places of two trees at which they are not the same to the bit."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        return [d for key in theirs for d in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), path
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    assert type(ours) is type(theirs), path
    same = torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
    return [] if same else [path]


def lines(result):
    """What a run has said of the option."""
    return [line for line in (result.run / "run.log").read_text().splitlines() if "cuda_graph=true " in line]


SETTINGS = {
    **{name: [f"model={name}"] for name in options("model")},
    "factor": ["model=factor", "model.discriminator_lr=0.0001220703125"],
    "beta, schedule": ["model=beta", "schedule=beta"],
    "capacity, l1": ["model=capacity", "model.constraint=l1"],
    "gradient codebook": ["model=vqvae", "codebook=gradient"],
    "restarts": ["model=vqvae", "codebook=gradient", "codebook.restart_after=1"],
    "restarts of averages": ["model=vqvae", "codebook=ema", "codebook.restart_after=1"],
    "quantizer dropout": ["model=vqvae", "codebook=residual", "codebook.dropout=0.5"],
    "clipping": ["trainer.gradient_clip_val=0.5"],
    "clipping of values": ["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
    "averaged weights": ["averaging=ema"],
    "lowered learning rate": ["lr_schedule=plateau", "lr_schedule.patience=0", "lr_schedule.threshold=100"],
    "weight decay": ["optimizer=adamw"],
    "parts": ["lr_factor.decoder=0.5"],
    "validation inside an epoch": ["trainer.val_check_interval=2"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "convolutions": ["network=conv", "dataset.image_shape=[3,8,8]"],
    "batch norm": ["network.norm=batch"],
    "dynamic": ["dataset.binarize=dynamic"],
    "augmentation": ["augment=shifts"],
    "dropped labels": ["model=cvae", "condition.drop=0.5"],
    "streamed": ["dataset.storage=stream", "dataset.num_workers=0"],
}


@pytest.mark.parametrize("setting", SETTINGS, ids=SETTINGS.keys())
def test_a_captured_run_is_the_run_without(train, graphs, setting):
    captured, eager = (train(*DATA, f"cuda_graph={on}", *SETTINGS[setting]) for on in ("true", "false"))
    assert captured.code == eager.code == 0, captured.err
    assert [graph.replays for graph in graphs] == [REPLAYS]
    assert lines(captured) == []
    (ours, our_metrics), (theirs, their_metrics) = files(captured), files(eager)
    assert our_metrics == their_metrics
    assert differences(ours["state_dict"], theirs["state_dict"]) == []
    assert differences(ours["optimizer_states"], theirs["optimizer_states"]) == []
    assert ours["loops"] == theirs["loops"]


def test_a_learning_rate_that_moves_is_rounded_to_float32(train, graphs):
    moving = (*DATA, "lr_schedule=cosine", "trainer.max_epochs=4")
    captured, eager = (train(*moving, f"cuda_graph={on}") for on in ("true", "false"))
    assert graphs[0].replays == 4 * 4 - 2
    assert captured.series("step/lr") == eager.series("step/lr")
    assert len(set(captured.series("step/lr"))) > 4
    assert captured.series("step/loss") == pytest.approx(eager.series("step/loss"), rel=1e-6)


@pytest.mark.parametrize("stop", [3, 7])
@pytest.mark.parametrize("model", ["vae", "vqvae"])
def test_a_resumed_run_is_the_uninterrupted_one(train, graphs, model, stop):
    """Within an epoch; the first steps after a resume are taken eagerly, and are the same to the bit."""
    chosen = (*DATA, "cuda_graph=true", f"model={model}", "optimizer.lr=0.003", "trainer.max_epochs=-1")
    whole = train(*chosen, "trainer.max_steps=12")
    part = train(*chosen, f"trainer.max_steps={stop}")
    assert train(f"resume={part.run}", "trainer.max_steps=12").code == 0
    assert all(graph.replays for graph in graphs)
    ours, theirs = files(part)[0], files(whole)[0]
    assert differences(ours["state_dict"], theirs["state_dict"]) == []
    assert differences(ours["optimizer_states"], theirs["optimizer_states"]) == []


def test_a_run_goes_on_without_the_option(train, graphs):
    whole = train(*DATA, "trainer.max_epochs=-1", "trainer.max_steps=12")
    part = train(*DATA, "trainer.max_epochs=-1", "trainer.max_steps=7", "cuda_graph=true")
    assert train(f"resume={part.run}", "trainer.max_steps=12", "cuda_graph=false").code == 0
    assert len(graphs) == 1
    assert differences(files(part)[0]["state_dict"], files(whole)[0]["state_dict"]) == []


class Count(TorchDispatchMode):
    """Operations of the loop, but those of a step that is taken eagerly or replayed."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def test_few_launches_are_left_beside_the_graph(train, graphs, monkeypatch):
    """The host's launches are what a small model waits for: rows, floats, noise, their places, the outcome's copy."""
    replay, advance, counts = RecordedGraph.replay, LeanLoop.advance, []

    def uncounted(self):
        with torch.utils._python_dispatch._disable_current_modes():
            return replay(self)

    def counted(self, data_fetcher):
        before = graphs[0].replays
        with Count() as count:
            advance(self, data_fetcher)
        if graphs[0].replays > before:
            counts.append([name for name in count.operations if name.split(".")[1] not in VIEWS])

    monkeypatch.setattr(RecordedGraph, "replay", uncounted)
    monkeypatch.setattr(LeanLoop, "advance", counted)
    assert train(*DATA, "trainer.log_every_n_steps=1000", "cuda_graph=true").code == 0
    assert len(counts) == REPLAYS
    assert min(map(len, counts)) <= 9, counts[0]


VIEWS = ("detach", "split_with_sizes", "unbind", "view", "select", "slice", "split", "alias", "empty")
"""Operations that launch nothing."""


# --- what cannot be captured ------------------------------------------------------------------


def plain(train, *arguments):
    """Asserts that a run says one line, and is the run without the option; returns the line."""
    asked, eager = (train(*DATA, f"cuda_graph={on}", *arguments) for on in ("true", "false"))
    assert asked.code == eager.code == 0, asked.err
    assert files(asked)[1] == files(eager)[1]
    assert differences(files(asked)[0]["state_dict"], files(eager)[0]["state_dict"]) == []
    (line,) = lines(asked)
    assert line.endswith(": the steps run as without it")
    assert line.partition("cuda_graph=true")[2] in asked.out + asked.err
    return line


def test_a_processor_has_no_graphs(train):
    assert "cuda_graph=true is for an NVIDIA GPU" in plain(train)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.accumulate_grad_batches=2"], "Lightning's own loop"),
        (["trainer.profiler=simple"], "Lightning's own loop"),
        (["optimizer.fused=false"], "optimizer.fused=true"),
        (["optimizer._target_=torch.optim.SGD", "~optimizer.betas"], "optimizer=adam or adamw"),
        (["compile=true"], "compile=true"),
    ],
)
def test_runs_that_are_not_captured_say_so(train, graphs, monkeypatch, arguments, words):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(shutil, "which", lambda _: "there")
    assert words in plain(train, *arguments)
    assert all(graph.replays == 0 for graph in graphs)


def altered(monkeypatch, alter):
    """Has `alter`, given the model, the batch and its terms, do something in the terms of a VAE."""
    terms = VAE.terms

    def changed(self, batch, noise):
        found = terms(self, batch, noise)
        alter(self, batch, found)
        return found

    monkeypatch.setattr(VAE, "terms", changed)


def test_a_step_that_waits_for_the_device_is_not_captured(train, graphs, monkeypatch):
    altered(monkeypatch, lambda model, batch, terms: terms["kl"].sum().item())
    assert "wait for the device (somewhere.py:7)" in plain(train)
    assert graphs[0].replays == 0


def test_a_step_that_capture_refuses_is_taken_eagerly(train, graphs, monkeypatch):
    """Like one that waits only now and then: what was being recorded has left nothing behind."""
    record, recording = RecordedGraph.record, []

    def watched(self, function):
        recording.append(True)
        try:
            record(self, function)
        finally:
            recording.clear()

    monkeypatch.setattr(RecordedGraph, "record", watched)
    altered(monkeypatch, lambda model, batch, terms: recording and terms["kl"].sum().item())
    assert "failed (operation not permitted when stream is capturing)" in plain(train, "averaging=ema")
    assert graphs[0].replays == 0


def test_a_model_that_logs_from_its_terms_is_not_captured(train, graphs, monkeypatch):
    altered(monkeypatch, lambda model, batch, terms: model.log("largest", batch.images.max()))
    assert "logs from its steps" in plain(train, "test=false", "dataset.val_size=0")
    assert graphs[0].replays == 0


def test_a_callback_between_gradients_and_step_is_called(train, graphs, monkeypatch):
    called = []
    health = vaelab.training.callbacks.Health
    monkeypatch.setattr(health, "on_before_optimizer_step", lambda *_: called.append(1), raising=False)
    assert "between the gradients and the step" in plain(train)
    assert len(called) == 2 * 2 * 5  # runs, epochs, batches


# --- the option -------------------------------------------------------------------------------


def test_the_graph_goes_with_the_training(train, graphs, monkeypatch):
    take, steppers = vaelab.training.fit._take_best_weights, []

    def watched(trainer, model):
        steppers.append(model.stepper)
        return take(trainer, model)

    monkeypatch.setattr(vaelab.training.fit, "_take_best_weights", watched)
    assert train(*DATA, "cuda_graph=true").code == 0
    assert graphs[0].replays
    assert steppers == [None]


def test_runs_from_before_the_options(train):
    result = train("trainer.max_epochs=1")
    config = result.run / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("cuda_graph", "matmul_precision"))]
    config.write_text("\n".join(kept))
    before = runs.read_config(result.run)
    assert (before["cuda_graph"], before["matmul_precision"]) == (False, "highest")
    assert train(f"resume={result.run}", "trainer.max_epochs=2").code == 0
