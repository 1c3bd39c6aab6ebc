"""hydra/launcher=vectorized: each job comes out as it does alone, and none takes another along."""

from __future__ import annotations

import copy
import csv
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from hydra_plugins.vaelab_launchers.vectorized_launcher import VectorizedLauncher
from tests.recorded import RecordedGraph
from vaelab.models import VAE
from vaelab.nn.coders import Encoder
from vaelab.nn.likelihoods import Bernoulli, Gaussian
from vaelab.nn.networks import MLP
from vaelab.training.callbacks.health import Health
from vaelab.training.callbacks.last import KeepLast
from vaelab.training.vectorized import conductor, stack, traced
from vaelab.training.vectorized.alike import difference
from vaelab.training.vectorized.apart import each

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")
"""Of what torch.vmap takes one model after the other."""
TOGETHER = "hydra/launcher=vectorized"
EPOCHS = ("dataset=digits", "trainer.max_epochs=2", "test=false", "accelerator=cpu")
DIGITS = (*EPOCHS, "trainer.max_epochs=1", "trainer.max_steps=10")


@pytest.fixture
def train(train, monkeypatch):
    """Runs `vaelab train` in this process, without the options of other tests.

    Two jobs are stacked here, too, and their second step is traced.
    """
    monkeypatch.setattr(conductor, "FEW", 2)
    monkeypatch.setattr(traced, "WARM_UP", 1)
    return functools.partial(train, small=False)


@pytest.fixture
def repeated(monkeypatch) -> list[traced.Computed]:
    """What the repeated steps of stacks compute."""
    found: list[traced.Computed] = []
    repeat = traced.TracedStack._repeat

    def noted(*args) -> traced.Computed:
        found.append(repeat(*args))
        return found[-1]

    monkeypatch.setattr(traced.TracedStack, "_repeat", noted)
    return found


def epochs(run: Path) -> list[dict[str, float]]:
    """Metrics of a run's epochs."""
    with (run / "metrics.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [{key: value for key, value in row.items() if "step" not in key} for row in rows if "train/loss" in row]


def same(a: Path, b: Path, tolerance: float = 1e-6) -> None:
    """Asserts that two runs have the same metrics, of which the sums alone are rounded otherwise."""
    ours, theirs = epochs(a), epochs(b)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def by_themselves(text: str) -> list[str]:
    """What is said of jobs that are not stacked."""
    return [line for line in text.splitlines() if "by themselves" in line or "by itself" in line]


@pytest.mark.parametrize(
    "arguments",
    [
        ("model=vae", "seed=0,1"),
        ("model=beta", "model.beta=0.5,1", "schedule=linear"),
        ("model=capacity", "seed=0,1"),
        ("model=cvae", "optimizer.lr=0.001,0.002"),
        ("model=iwae", "model.estimator=iwae", "seed=0,1"),
        ("model=geco", "model.target=10,15"),
        ("model=vae", "trainer.gradient_clip_val=1,5"),
        ("model=vae", "lr_factor.decoder=0.5,1"),
        ("model=vae", "optimizer=adam,adamw"),
        ("model=vae", "averaging=ema", "optimizer=adamw", "seed=0,1"),
        ("model=vae", "dataset.binarize=dynamic", "seed=0,1", "dataset.seed=0"),
        ("model=vae", "likelihood=gaussian", "likelihood.sigma=0.5,1"),
        ("model=vae", "network=conv", "seed=0,1"),
        ("model=svae", "seed=0,1"),
        ("model=vae", "prior=vamp", "network.hidden_dims=[16]", "seed=0,1"),
        ("model=dip", "model.off_diagonal=1,5"),
        ("model=m2", "dataset.labelled=300", "model.alpha=1,100", "network.hidden_dims=[16]"),
    ],
    ids=" ".join,
)
def test_each_job_comes_out_as_alone(train, repeated, arguments):
    for launcher, folder in (("basic", "alone"), ("vectorized", "together")):
        result = train("-m", *DIGITS, *arguments, f"hydra/launcher={launcher}", f"sweep.dir={folder}")
        assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert "more slowly" not in result.out + result.err
    assert len(repeated) == 8  # of ten steps
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name)


@pytest.mark.parametrize("codebook", ["gradient", "ema", "residual"])
def test_codebooks_come_out_as_alone(train, repeated, codebook):
    """Their restarts, too, before the optimiser's step and with each job's own draws."""
    restart = f"codebook.{'of.' * (codebook == 'residual')}restart_after=5"
    given = ("-m", "model=vqvae", f"codebook={codebook}", restart, "model.num_embeddings=64", "seed=0,1", *DIGITS)
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "sweep.dir=together")
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert "more slowly" not in result.out + result.err
    assert len(repeated) == 8
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name)


def test_the_noise_of_a_validation_is_each_jobs_own(train):
    """All jobs draw from one generator, and each goes on where it was when it waited for the others."""
    given = ("model=vae", "seed=0,1", "dataset=digits", "dataset.batch_size=32", "trainer.max_epochs=1", "test=false")
    for launcher, folder in (("basic", "alone"), ("vectorized", "together")):
        assert train("-m", *given, "accelerator=cpu", f"hydra/launcher={launcher}", f"sweep.dir={folder}").code == 0
    for run in sorted(Path("alone").glob("[0-9]-*")):
        assert "val/kl" in epochs(run)[0]
        same(run, Path("together") / run.name)


def test_jobs_of_other_sizes_form_other_groups(train):
    result = train("-m", "model=vae", "model.latent_dim=2,3", "seed=0,1", *EPOCHS, TOGETHER, "sweep.dir=s")
    assert result.code == 0
    assert not by_themselves(result.out)
    assert len(list(Path("s").glob("*/checkpoints/best.ckpt"))) == 4
    for run in Path("s").glob("[0-9]-*"):  # each with its own messages
        folders = [line for line in (run / "run.log").read_text().splitlines() if "run folder: " in line]
        assert [line.endswith(str(run)) for line in folders] == [True]
    names = [handler.name or "" for handler in logging.getLogger("vaelab").handlers]
    assert not any(name.startswith("vaelab job") for name in names)  # what comes after is no job's


def test_a_job_that_is_there_twice_waits_for_itself_while_the_others_go_on(train):
    result = train("-m", "model=vae", "optimizer.lr=0.001,0.001,0.002,0.003", *EPOCHS, TOGETHER, "sweep.dir=s")
    assert result.code == 0, result.err
    summaries = [json.loads(path.read_text()) for path in Path("s").glob("*/summary.json")]
    assert [summary["status"] for summary in summaries] == ["finished"] * 3
    assert "is being trained already: waiting for it" in result.out


def test_what_cannot_be_stacked_says_why_and_is_trained_all_the_same(train):
    """The gradient of DReG goes through a hook, which torch.vmap leaves out: the first step shows it."""
    result = train("-m", "model=iwae", "model.estimator=dreg", "seed=0,1", *DIGITS, TOGETHER, "sweep.dir=s")
    assert result.code == 0
    assert "0-iwae-digits and 1-iwae-digits: trained by themselves: torch.vmap gives another gradient of " in result.out
    train("-m", "model=iwae", "model.estimator=dreg", "seed=0,1", *DIGITS, "sweep.dir=alone")
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("s") / run.name)
    result = train("-m", "model=vae", "network.norm=batch", "seed=0,1", *DIGITS, TOGETHER)
    assert "trained by themselves: a batch norm keeps moving averages" in result.out


@pytest.mark.parametrize(
    ("number", "value", "why"),
    [
        ("FEW", 3, "a processor gains nothing by fewer than 3 at once"),
        ("LARGE", 0, "each keeps the processor's cores busy"),
    ],
)
def test_what_gains_nothing_is_trained_by_itself(train, monkeypatch, number, value, why):
    monkeypatch.setattr(conductor, number, value)
    result = train("-m", "model=vae", "seed=0,1", *DIGITS, TOGETHER, "sweep.dir=s")
    assert result.code == 0
    assert f"0-vae-digits and 1-vae-digits: trained by themselves: {why}" in result.out
    assert len(list(Path("s").glob("*/checkpoints/last.ckpt"))) == 2


def test_a_step_that_goes_by_the_time_is_not_repeated(train, monkeypatch, repeated):
    """It is compared after it was traced, with its gradients."""
    objective = VAE.objective

    def warmed_up(model: VAE, terms):
        loss = objective(model, terms)
        return loss + model.trainer.global_step * (loss - loss.detach())

    monkeypatch.setattr(VAE, "objective", warmed_up)
    given = ("-m", "model=vae", "seed=0,1", *DIGITS)
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "sweep.dir=together")
    assert result.code == 0, result.err
    assert (result.out + result.err).count("the step of 2 jobs depends on more than its tensors") == 1
    assert len(repeated) == 1
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name)


@pytest.mark.parametrize("own", [VAE, Encoder, Health])
def test_with_parts_of_ones_own_no_step_is_repeated(train, monkeypatch, repeated, own):
    """They may go by the time, and nothing tells whether they will."""
    monkeypatch.setattr(own, "__module__", "mine")
    result = train("-m", "model=vae", "seed=0,1", *DIGITS, TOGETHER)
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert not repeated


def test_odd_last_batches_are_not_traced(train, repeated):
    given = (*EPOCHS, "trainer.max_epochs=6", "dataset.batch_size=1200", "network.hidden_dims=[8]")
    result = train("-m", "model=vae", "seed=0,1", *given, TOGETHER)
    assert result.code == 0, result.err
    assert len(repeated) == 4  # of twelve steps, half of them of 94 images


def test_where_torch_looks_for_anomalies_no_step_is_repeated(train, repeated):
    result = train("-m", "model=vae", "seed=0,1", *DIGITS, "trainer.detect_anomaly=true", TOGETHER)
    assert result.code == 0, result.err
    assert not repeated
    assert "more slowly" not in result.out  # it was not tried
    assert not torch.is_anomaly_enabled()  # any more


def test_what_was_written_down_is_done_again_with_other_tensors():
    constant = torch.arange(3.0)

    def step(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = torch.empty(2, 3)
        for row, out in zip(x.unbind(0), made.unbind(0), strict=True):
            torch.mul(row, constant, out=out)
        start = torch.tensor(1.0)
        start += (made * w).exp().sum()  # a constant that is changed
        w.grad = None
        start.backward()
        assert w.grad is not None
        return start.detach(), w.grad

    x, w, other = torch.rand(2, 3), torch.rand(3, requires_grad=True), torch.rand(2, 3)
    with traced._Recorder([x, w]) as recorder:
        result = step(x, w)
    repeat = recorder.repeating(result)
    for given in (x, other, x):
        with torch.no_grad():
            again = repeat(given, w)
        assert all(map(torch.equal, again, step(given, w)))
    with pytest.raises(RuntimeError, match="tells Python what it has computed"), traced._Recorder([x]):
        x.sum().item()


def test_a_step_that_cannot_be_traced_is_taken_as_it_comes(train, monkeypatch):
    def fail(recorder, result):
        raise RuntimeError("no operation of torch\nfurther lines")

    monkeypatch.setattr(traced._Recorder, "repeating", fail)
    given = ("-m", "model=vae", "seed=0,1", *DIGITS)
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "sweep.dir=together")
    assert result.code == 0, result.err
    assert "cannot be traced (no operation of torch): it is taken anew each time" in result.out + result.err
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name)


def test_a_job_that_diverges_takes_no_other_along(train):
    given = ("model=vae", "optimizer.lr=0.001,1e12,0.002", *EPOCHS)
    result = train("-m", *given, TOGETHER, "sweep.dir=s")
    assert result.code == 1
    states = [json.loads(path.read_text())["status"] for path in sorted(Path("s").glob("*/summary.json"))]
    assert states == ["finished", "diverged", "finished"]
    assert "vaelab: 1-vae-digits: training diverged" in result.err
    assert "more slowly" not in result.out  # what is NaN both ways is the same
    assert "  s/1-vae-digits/run.log\n" in result.out + result.err  # where its error is: it printed nothing else
    train("-m", "model=vae", "optimizer.lr=0.001,0.002", *EPOCHS, "sweep.dir=alone")
    same(Path("alone/0-vae-digits"), Path("s/0-vae-digits"))
    same(Path("alone/1-vae-digits"), Path("s/2-vae-digits"))


def test_jobs_wait_for_room(train):
    result = train("-m", "model=vae", "seed=0,1,2", *EPOCHS, TOGETHER, "hydra.launcher.width=2", "sweep.dir=s")
    assert result.code == 0
    assert len(list(Path("s").glob("*/checkpoints/best.ckpt"))) == 3


def test_those_that_are_alike_have_room_together(train):
    swept = ("seed=0,1", "model=vae,beta")  # of which Hydra's order has the seeds apart
    result = train("-m", *swept, *DIGITS, TOGETHER, "hydra.launcher.width=2", "sweep.dir=s")
    assert result.code == 0
    assert not by_themselves(result.out)
    names = [run.name for run in sorted(Path("s").glob("[0-9]-*"))]
    assert names == ["0-vae-digits", "1-beta-digits", "2-vae-digits", "3-beta-digits"]  # numbered as ever


def test_results_come_in_the_order_of_the_jobs(monkeypatch, tmp_path):
    """A search tells the model of its space what came of each trial."""

    def run(self, works):
        return [SimpleNamespace(result=work.args, error=None) for work in works]

    monkeypatch.setattr(conductor.Conductor, "run", run)
    launcher = VectorizedLauncher(width=2)
    hydra = {"hydra_logging": None, "verbose": False, "sweep": {"dir": str(tmp_path)}}
    launcher.setup(hydra_context=None, task_function=None, config=OmegaConf.create({"logger": {}, "hydra": hydra}))  # type: ignore[arg-type]
    jobs = [["seed=0", "model=vae"], ["seed=0", "model=beta"], ["seed=1", "model=vae"], ["seed=1", "model=beta"]]
    assert launcher.launch(jobs, 4) == [(4 + place, job) for place, job in enumerate(jobs)]


def test_products_of_all_jobs_at_once_are_those_of_each_up_to_rounding(train, monkeypatch):
    monkeypatch.delattr("vaelab.training.vectorized.apart.Products.__torch_function__")
    given = ("-m", "model=vae", "optimizer.lr=0.001,0.002", "network.activation=tanh", *DIGITS)
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "hydra.launcher.exact=false", "sweep.dir=together")
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name, 1e-5)


@pytest.mark.parametrize("grouped", [("cpu",), ()], ids=["on a processor", "elsewhere"])
def test_convolutions_of_all_jobs_are_those_of_each_up_to_rounding(train, monkeypatch, grouped):
    """As grouped ones on a processor, for each job by itself on a GPU."""
    apart = []
    monkeypatch.setattr(stack, "GROUPED", grouped)
    monkeypatch.setattr(stack.apart, "each", lambda *given: apart.append(given) or each(*given))
    given = ("-m", "model=vae", "network=conv", "optimizer.lr=0.001,0.002", "network.activation=tanh", *DIGITS)
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "hydra.launcher.exact=false", "sweep.dir=together")
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert {function for function, _ in apart} == (set() if grouped else {F.conv2d, F.conv_transpose2d})
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name, 1e-5)


@pytest.mark.parametrize("exact", ["true", "false"])
def test_jobs_that_others_leave_behind_go_on_as_alone(train, exact):
    """One of three ends after an epoch, and another after two; the third steps by itself."""
    given = ("-m", "model=vae", *EPOCHS, "trainer.max_epochs=1,2,3", "network.activation=tanh")
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, f"hydra.launcher.exact={exact}", "sweep.dir=together")
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert result.out.count("3 jobs train as one") == result.out.count("train as one") == 1
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name, 1e-5)


def test_a_job_that_begins_later_joins_those_that_it_is_like(train):
    given = ("-m", "model=vae", *EPOCHS, "trainer.max_epochs=1,2,3,4", "network.activation=tanh")
    assert train(*given, "sweep.dir=alone").code == 0
    result = train(*given, TOGETHER, "hydra.launcher.width=3", "sweep.dir=together")
    assert result.code == 0, result.err
    assert not by_themselves(result.out)
    assert result.out.count("3 jobs train as one") == 2
    for run in sorted(Path("alone").glob("[0-9]-*")):
        same(run, Path("together") / run.name, 1e-5)


def test_too_few_that_are_left_go_on_by_themselves(train, monkeypatch):
    monkeypatch.setattr(conductor, "FEW", 3)
    result = train("-m", "model=vae", *EPOCHS, "trainer.max_epochs=1,2,3", TOGETHER)
    assert result.code == 0, result.err
    (line,) = by_themselves(result.out)
    assert "1-vae-digits and 2-vae-digits: go on by themselves: a processor gains nothing by fewer than 3" in line


def test_jobs_whose_batches_are_of_another_size_form_another_group(train):
    result = train("-m", "model=vae", "dataset.batch_size=16,32", "seed=0,1", *DIGITS, TOGETHER, "sweep.dir=s")
    assert result.code == 0, result.err
    assert result.out.count("2 jobs train as one") == 2
    result = train("-m", "model=vae", "dataset.batch_size=16,32", *DIGITS, TOGETHER, "sweep.dir=other")
    first, _ = by_themselves(result.out)
    assert "trained by itself: no other job under way is like it (beside 1-vae-digits, its batches are of" in first


@pytest.mark.parametrize(
    ("large", "said"), [(1e9, r"2 in step at epoch \d+/6\b"), (0, r"0-vae\S* by itself at epoch \d+/6\b")]
)
def test_it_says_how_far_it_is(train, monkeypatch, large, said):
    monkeypatch.setattr(conductor, "LARGE", large)
    monkeypatch.setattr(conductor, "SAID_EVERY", 0.01)
    result = train("-m", "model=vae", "seed=0,1", *EPOCHS, "trainer.max_epochs=6", TOGETHER, "report=false")
    assert result.code == 0, result.err
    lines = [line for line in result.err.splitlines() if re.fullmatch(rf"  [012] of 2 jobs done, {said}.*", line)]
    assert len(set(lines)) > 1


def test_ctrl_c_reaches_jobs_that_train_by_themselves(train, monkeypatch):
    monkeypatch.setattr(conductor, "LARGE", 0)
    epochs = "trainer.max_epochs=300"

    def press(self, trainer, *unused) -> None:
        if trainer.global_step == 5 and "0-vae" in str(self.path):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(KeepLast, "on_train_batch_end", press, raising=False)
    result = train("-m", "model=vae", "seed=0,1", *EPOCHS, epochs, TOGETHER, "report=false", "sweep.dir=s")
    assert result.code == 130
    for run in Path("s").glob("[0-9]-*"):
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
        assert zipfile.is_zipfile(run / "checkpoints" / "last.ckpt")


def test_a_width_of_none_is_refused(train):
    result = train("-m", "model=vae", "seed=0,1", *DIGITS, TOGETHER, "hydra.launcher.width=0")
    assert result.code == 2
    assert "hydra.launcher.width=0" in result.err
    assert "Traceback" not in result.err


def test_a_logger_of_one_run_per_process_is_refused(train):
    result = train("-m", "model=vae", "seed=0,1", *DIGITS, TOGETHER, "logger=wandb", "sweep.dir=a/b/s")
    assert result.code == 2
    assert "logger=wandb: it has one run per process" in result.err
    assert not Path("a").exists()


def test_a_checkpoint_holds_its_own_job_alone(train):
    """Weights are parts of the stacked ones, of which torch would save all."""
    train("-m", "model=vae", "seed=0,1,2,3", *DIGITS, TOGETHER, "sweep.dir=s")
    train("model=vae", *DIGITS, "run.dir=alone")
    one, other = (Path(run, "checkpoints", "last.ckpt").stat().st_size for run in ("s/0-vae-digits", "alone"))
    assert one == pytest.approx(other, rel=0.01)


def test_jobs_that_have_not_begun_do_not_keep_a_second_ctrl_c_waiting():
    leader = conductor.Conductor(None)
    leader.at_once = True
    with pytest.raises(KeyboardInterrupt):
        leader.run([lambda: pytest.fail("it began")] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_ends_all_jobs_with_their_checkpoints_and_the_same_command_goes_on(train, tmp_path, signals):
    smooth = ("model=vae", "network.activation=tanh", "dataset=digits", "dataset.batch_size=128")
    words = (*smooth, "report=false", "test=false", "accelerator=cpu", "trainer.max_epochs=12")
    swept = ("-m", *words, "seed=0,1,2,3,4,5", TOGETHER, "sweep.dir=s")
    process = subprocess.Popen(
        [sys.executable, "-m", "vaelab", "train", *swept],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lasts = [tmp_path / "s" / f"{i}-vae-digits" / "checkpoints" / "last.ckpt" for i in range(6)]
    until = time.monotonic() + 100
    while not all(map(zipfile.is_zipfile, lasts)) and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    states = [json.loads(last.parents[1].joinpath("summary.json").read_text())["status"] for last in lasts]
    assert states == ["interrupted"] * 6, text
    if signals == 2:
        return
    again = train(*swept, small=False)
    assert again.code == 0, again.err
    assert again.out.count("goes on") == 6
    assert train(*words, "run.dir=alone", "seed=1", small=False).code == 0
    same(tmp_path / "s" / "1-vae-digits", tmp_path / "alone")


RESTARTED = ("model=vqvae", "codebook=gradient", "model.num_embeddings=64", "codebook.restart_after=2", "seed=0,1")
"""Codes that start anew between the gradients and the step: Adam moves them by what it remembers."""


@pytest.mark.parametrize(
    "swept", [("model=beta", "model.beta=1,1.5"), ("model=vae", "optimizer.lr=0.001,0.002"), RESTARTED], ids=" ".join
)
def test_steps_of_a_stack_are_captured(train, monkeypatch, swept):
    monkeypatch.setattr(stack, "GROUPED", ())  # as on a GPU
    graphs: list[RecordedGraph] = []

    def made(device: torch.device) -> RecordedGraph:
        graphs.append(RecordedGraph())
        return graphs[-1]

    smooth = "network.activation=tanh"  # a GPU's products are of all jobs at once, and a kink makes much of a rounding
    given = ("-m", *swept, "lr_schedule=cosine", smooth, *EPOCHS, TOGETHER, "hydra.launcher.exact=false")
    assert train(*given, "sweep.dir=eager").code == 0
    monkeypatch.setattr("vaelab.training.captured.graphs_on", lambda device: made)
    monkeypatch.setattr(conductor, "graphs_on", lambda device: made)
    assert train(*given, "cuda_graph=true", "sweep.dir=captured").code == 0
    replays = [graph.replays for graph in graphs if graph.replays]
    assert replays == 2 * [2 * 40 - 2]  # of gradients and steps, but for the odd last batches
    for run in sorted(Path("eager").glob("[0-9]-*")):
        same(run, Path("captured") / run.name, 1e-5)  # learning rates are rounded


@pytest.mark.parametrize(
    ("make", "as_one"),
    [
        (functools.partial(torch.optim.Adam, weight_decay=0.1), True),
        (functools.partial(torch.optim.AdamW, weight_decay=0.1), True),
        (functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1), True),
        (torch.optim.Rprop, False),  # the rate is where its own ones start
    ],
    ids=lambda value: getattr(getattr(value, "func", value), "__name__", value),
)
def test_one_optimiser_steps_at_the_rate_of_each_model(make, as_one):
    from vaelab.training.vectorized.optimizers import Optimizers
    from vaelab.training.vectorized.stack import _stacked

    rates = [1e-3, 3e-3, 0.1]
    torch.manual_seed(0)
    alone = [torch.nn.Linear(4, 3) for _ in rates]
    models = [copy.deepcopy(model) for model in alone]
    trainers = [
        SimpleNamespace(optimizers=[make(model.parameters(), lr=rate)], gradient_clip_val=None)
        for model, rate in zip(models, rates, strict=True)
    ]
    singles = [make(model.parameters(), lr=rate) for model, rate in zip(alone, rates, strict=True)]
    weights = _stacked([dict(model.named_parameters()) for model in models])
    optimizers = Optimizers(models, trainers, weights)  # type: ignore[arg-type]
    for step in range(5):
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            for index, model in enumerate(alone):
                model.get_parameter(name).grad = weight.grad[index].clone()
        for optimizer, trainer in zip(singles, trainers, strict=True):
            for group in (optimizer.param_groups[0], trainer.optimizers[0].param_groups[0]):
                group["lr"] *= 1 + step / 10  # a schedule
            optimizer.step()
        optimizers.step()
        assert (optimizers.one is not None) == as_one
    for model, other in zip(models, alone, strict=True):
        torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()))


def linears(count: int, make) -> tuple[list[torch.nn.Module], list[SimpleNamespace], dict[str, torch.Tensor]]:
    """Layers of one size, the trainers of each, with an optimiser that `make` makes, and their stacked weights."""
    from vaelab.training.vectorized.stack import _stacked

    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 3) for _ in range(count)]
    weights = _stacked([dict(model.named_parameters()) for model in models])
    optimizers = [make(model.parameters(), lr=1e-3) for model in models]
    trainers = [SimpleNamespace(optimizers=[one], gradient_clip_val=None) for one in optimizers]
    return models, trainers, weights


@pytest.mark.parametrize("make", [functools.partial(torch.optim.Adam, fused=True), torch.optim.SGD, torch.optim.Rprop])
def test_steps_apart_are_those_of_each_model_to_the_last_digit(make):
    from vaelab.training.vectorized.apart import Steps

    alone, singles, _ = linears(3, make)
    models, trainers, weights = linears(3, make)
    steps = Steps(models, trainers, weights)  # type: ignore[arg-type]
    for step in range(6):
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            for index, model in enumerate(alone):
                model.get_parameter(name).grad = weight.grad[index].clone()
        for index, pair in enumerate(zip(singles, trainers, strict=True)):
            for trainer in pair:  # the same rate, then one for each, then the same again
                trainer.optimizers[0].param_groups[0]["lr"] = 1e-3 * (1 + (step in (2, 3)) * index)
        for trainer in singles:
            trainer.optimizers[0].step()
        steps.clip()
        steps.step()
    for name, weight in weights.items():
        assert torch.equal(weight, torch.stack([model.get_parameter(name) for model in alone]))
    for ours, theirs in zip(trainers, singles, strict=True):
        saved, expected = (x.optimizers[0].state_dict()["state"] for x in (ours, theirs))
        assert saved.keys() == expected.keys()
        for number, state in expected.items():
            assert all(torch.equal(torch.as_tensor(saved[number][key]), torch.as_tensor(state[key])) for key in state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ["of each", "shared"])
def test_products_apart_are_those_of_each_model_to_the_last_digit(bias, rows):
    from vaelab.training.vectorized.apart import Products

    torch.manual_seed(0)
    x = torch.randn(3, 17, 50, requires_grad=True) if rows == "of each" else torch.randn(17, 50, requires_grad=True)
    weight, added, fixed = torch.randn(3, 31, 50), torch.randn(3, 31), torch.randn(31, 8)
    inputs = [x, weight.requires_grad_(), *([added.requires_grad_()] if bias else [])]

    def function(x, weight, added=None):
        hidden = torch.nn.functional.linear(x, weight, added).relu()
        return (hidden @ (fixed @ fixed.T)).square().mean()  # a product that is no model's among them

    dims = (None if rows == "shared" else 0, *[0] * (len(inputs) - 1))
    with Products():
        losses = torch.vmap(function, in_dims=dims)(*inputs)
    got = torch.autograd.grad(losses.sum(), inputs)
    each = [[x if rows == "shared" else x[i], *[part[i] for part in inputs[1:]]] for i in range(3)]
    expected = [function(*parts) for parts in each]
    torch.testing.assert_close(losses, torch.stack(expected))
    wanted = torch.autograd.grad(sum(expected), inputs)
    for one, other in zip(got[1:], wanted[1:], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(got[0], wanted[0])


def mlp_vae(hidden: int, likelihood) -> VAE:
    return VAE((1, 4, 4), None, MLP([hidden], "relu", None), likelihood, latent_dim=2)


def test_models_are_alike_whatever_their_numbers():
    assert difference(mlp_vae(8, Gaussian(0.1)), mlp_vae(8, Gaussian(0.2))) is None
    assert difference(mlp_vae(8, Bernoulli()), mlp_vae(9, Bernoulli())) == "Linear: weight is of another size"
    assert difference(mlp_vae(8, Bernoulli()), mlp_vae(8, Gaussian(0.1))) == "Bernoulli: Bernoulli and Gaussian"


def test_a_method_of_the_model_itself_is_no_difference_and_that_of_another_object_is():
    a, b, other = (mlp_vae(8, Bernoulli()) for _ in range(3))
    a.prior.encode, b.prior.encode = a.encode, b.encode
    assert difference(a, b) is None
    for method in (b.decode, other.encode):
        b.prior.encode = method
        assert difference(a, b) == "StandardNormal: encode differs"
