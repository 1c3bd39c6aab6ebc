"""A resumed run is the run that was never interrupted: weights, figures and metrics.csv alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

import vaelab.training.callbacks
from vaelab.datasets.loaders import ResidentLoader
from vaelab.training import launch
from vaelab.training.callbacks import last
from vaelab.training.loop import ended_inside

VARIANTS = {
    "vae": ["model=vae", "schedule=cyclical", "dataset.binarize=dynamic"],
    "capacity": [
        *("model=capacity", "schedule.capacity.over=15", "schedule.capacity.unit=steps"),
        *("lr_schedule=cosine", "lr_factor.decoder=0.3"),
    ],
    "vqvae": ["model=vqvae", "codebook.restart_after=3"],
    "ema": ["model=vae", "averaging=ema"],
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


class Stop(pl.Callback):
    """Interrupts training in `hook` after `step` optimiser steps, as Ctrl-C would."""

    def __init__(self, hook: str, step: int):
        self.step = step
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(train, monkeypatch, hook, step, *arguments):
    monkeypatch.setattr(vaelab.training.callbacks, "Stop", Stop, raising=False)
    result = train(*arguments, f"+callbacks.stop={{_target_:vaelab.training.callbacks.Stop,hook:{hook},step:{step}}}")
    assert result.code == 130
    assert result.summary["status"] == "interrupted"
    assert torch.load(result.run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    return result


def same_weights(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if torch.is_tensor(a[k]))


# an epoch has three steps: in its middle, and after its end
@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_end", 4), ("on_train_epoch_end", 6)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(train, finished, monkeypatch, variant, hook, step):
    arguments = [*VARIANTS[variant], "trainer.max_epochs=4", "trainer.log_every_n_steps=2"]
    whole = finished(*arguments)
    run = interrupted(train, monkeypatch, hook, step, *arguments).run
    resumed = train(f"resume={run}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(run, whole.run)
    assert (run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()
    resumed = resumed._replace(run=run)
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    assert resumed.summary["status"] == "finished"


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_step_that_failed_is_taken_anew(train, finished, monkeypatch, step):
    """At an epoch's start, in its middle and in its last step; and another interruption later changes nothing."""
    whole = finished("trainer.max_epochs=4")
    run = interrupted(train, monkeypatch, "on_train_batch_start", step, "trainer.max_epochs=4").run
    train(f"resume={run}", "+callbacks.stop={_target_:vaelab.training.callbacks.Stop,hook:on_train_batch_end,step:7}")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7
    resumed = train(f"resume={run}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(run, whole.run)
    assert (run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()


@pytest.mark.parametrize("arguments", [[], ["dataset.binarize=dynamic"]], ids=["stored", "drawn"])
def test_reading_batches_ahead_changes_nothing(train, finished, monkeypatch, arguments):
    """A GPU's loader reads several batches at once, here two of an epoch's three: one is read and not yet seen."""
    whole, asked = finished("trainer.max_epochs=4", *arguments), []

    def loader(split, batches, seen, ahead, newest):
        asked.append(ahead)
        return ResidentLoader(split, batches, seen, 2, newest)

    monkeypatch.setattr("vaelab.datasets.base.ResidentLoader", loader)
    run = interrupted(train, monkeypatch, "on_train_batch_end", 4, "trainer.max_epochs=4", *arguments).run
    assert train(f"resume={run}", "~callbacks.stop").code == 0
    assert set(asked) == {1}  # on a processor
    assert same_weights(run, whole.run)
    assert (run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()


def test_resume_between_the_last_batch_and_validation(train, finished, monkeypatch):
    """The interrupted epoch's training figures are kept, and do not leak into the next epoch's."""
    whole = finished("trainer.max_epochs=3")
    run = interrupted(train, monkeypatch, "on_train_batch_end", 6, "trainer.max_epochs=3").run
    resumed = train(f"resume={run}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(run, whole.run)
    assert resumed._replace(run=run).series("train/loss") == whole.series("train/loss")


class CtrlC(pl.Callback):
    """Sends this process SIGINT in `hook`, at the step after `step` optimiser steps."""

    def __init__(self, hook: str, step: int):
        self.step = step
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_step == self.step and trainer.state.fn == "fit":
            self.step = -1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 4), ("on_before_backward", 4), ("on_before_zero_grad", 4), ("on_train_batch_start", 5)],
)
@pytest.mark.parametrize("options", [["model=vqvae"], ["trainer.accumulate_grad_batches=2"]], ids=" ".join)
def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(train, finished, monkeypatch, hook, step, options):
    """And in an epoch's last step, the sixth, for its validation."""
    arguments = [*options, "trainer.max_epochs=4"]
    whole = finished(*arguments)
    monkeypatch.setattr(vaelab.training.callbacks, "CtrlC", CtrlC, raising=False)
    stopped = train(*arguments, f"+callbacks.stop={{_target_:vaelab.training.callbacks.CtrlC,hook:{hook},step:{step}}}")
    assert stopped.code == 130, stopped.err
    assert f"resume={stopped.run}" in stopped.out
    resumed = train(f"resume={stopped.run}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(stopped.run, whole.run)
    assert (stopped.run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()


class Signal(pl.Callback):
    """Sends this process a signal in `hook`, the `count`-th time that training gets there."""

    def __init__(self, number: int, hook: str, count: int):
        self.number, self.left = number, count
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if not trainer.sanity_checking:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


PLACES = {
    "in a window of accumulated gradients": ("on_train_batch_start", 3, ["trainer.accumulate_grad_batches=2"]),
    "in an epoch's validation": ("on_validation_batch_start", 2, []),
    "in a validation inside an epoch": (
        "on_validation_batch_start",
        3,
        ["trainer.val_check_interval=2", "lr_schedule=plateau", "lr_schedule.patience=0"],
    ),
    "with averaged weights in validation": ("on_validation_batch_start", 2, ["averaging=ema"]),
    "in the test": ("on_test_batch_start", 1, []),
}


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize(
    ("number", "place"),
    [(n, p) for n in CODES for p in PLACES if n == signal.SIGTERM or p == "in a validation inside an epoch"],
)
def test_a_signal_ends_a_run_that_goes_on_exactly(train, finished, monkeypatch, number, place):
    hook, count, options = PLACES[place]
    arguments = [*options, "trainer.max_epochs=3", "dataset.size=160"]
    whole = finished(*arguments)
    monkeypatch.setattr(vaelab.training.callbacks, "Signal", Signal, raising=False)
    send = f"{{_target_:vaelab.training.callbacks.Signal,number:{int(number)},hook:{hook},count:{count}}}"
    stopped = train(*arguments, f"+callbacks.send={send}")
    assert stopped.code == CODES[number], stopped.err
    assert stopped.summary["status"] == "interrupted"
    assert f"resume={stopped.run}" in stopped.out
    resumed = train(f"resume={stopped.run}", "~callbacks.send")
    assert resumed.code == 0, resumed.err
    assert same_weights(stopped.run, whole.run)
    for name in ("metrics.csv", "kl_per_dim.csv"):
        assert (stopped.run / name).read_text() == (whole.run / name).read_text()
    for key in ("metrics", "findings", "kl_per_dim", "best"):
        assert stopped.summary[key] == whole.summary[key]


def test_slurms_warning_signal_resubmits_the_job(train, tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setattr(last, "STOPPING", [*last.STOPPING, signal.SIGUSR1])
    monkeypatch.setattr(vaelab.training.callbacks, "Signal", Signal, raising=False)
    send = (
        f"{{_target_:vaelab.training.callbacks.Signal,number:{int(signal.SIGUSR1)},hook:on_train_batch_start,count:2}}"
    )
    stopped = train(f"+callbacks.send={send}")
    assert stopped.code == 128 + signal.SIGUSR1, stopped.err
    assert (tmp_path / "asked").read_text() == "requeue 71\n"
    assert torch.load(stopped.run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_second_ctrl_c_does_not_wait(train, monkeypatch):
    class Twice(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(vaelab.training.callbacks, "Twice", Twice, raising=False)
    stopped = train("+callbacks.twice={_target_:vaelab.training.callbacks.Twice}")
    assert stopped.code == 130
    assert torch.load(stopped.run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_second_signal_does_not_keep_a_stopped_run_from_noting_its_end(train, monkeypatch):
    """The one that ends a sweep's job also ends the job's launcher, which ends the job."""
    monkeypatch.setattr(vaelab.training.callbacks, "Signal", Signal, raising=False)
    record = launch.record

    def asked_again(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        record(*arguments)

    monkeypatch.setattr(launch, "record", asked_again)
    number = int(signal.SIGTERM)
    stopped = train(
        f"+callbacks.send={{_target_:vaelab.training.callbacks.Signal,number:{number},hook:on_train_batch_start,count:3}}"
    )
    assert stopped.code == 143, stopped.err
    assert stopped.summary["status"] == "interrupted"


def test_a_refused_second_start_leaves_the_first_alone(train, tmp_path):
    """Another process, which is about to train in the folder, holds the lock of its log."""
    import fcntl

    (tmp_path / "taken").mkdir()
    with (tmp_path / "taken" / "run.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        second = train("run.dir=taken")
        assert second.code == 2
        assert "another process" in second.err
        assert (tmp_path / "taken" / "run.log").exists()
    third = train("run.dir=taken", "trainer.max_steps=1")
    assert third.code == 0, third.err


def test_what_a_kill_left_half_written_is_cleared(train, finished):
    run = finished("trainer.max_epochs=2").run
    (run / "checkpoints" / ".last.ckpt.123.tmp").write_bytes(b"half")
    (run / ".config.yaml.123.tmp").write_text("half")
    (run / ".mine.tmp").write_text("a user's")
    assert train(f"resume={run}", "trainer.max_epochs=3").code == 0
    assert [path.name for path in run.rglob(".*.tmp")] == [".mine.tmp"]


def test_an_interrupted_test_costs_nothing_but_the_test(train, monkeypatch):
    class StopTest(pl.Callback):
        def on_test_batch_end(self, *_):
            raise KeyboardInterrupt

    arguments = ["trainer.max_epochs=5", "optimizer.lr=0.05"]
    whole = train(*arguments)
    monkeypatch.setattr(vaelab.training.callbacks, "StopTest", StopTest, raising=False)
    stopped = train(*arguments, "+callbacks.stop={_target_:vaelab.training.callbacks.StopTest}")
    assert stopped.code == 130
    assert same_weights(stopped.run, whole.run)
    assert train(f"resume={stopped.run}", "~callbacks.stop").code == 0
    assert stopped.summary["metrics"] == whole.summary["metrics"]


def test_a_moved_run_keeps_its_best_checkpoint(train, tmp_path):
    first = train("model=ae", "trainer.max_epochs=3")
    best = min(first.series("val/reconstruction"))
    first.run.rename(tmp_path / "a place, moved")
    moved = first._replace(run=tmp_path / "a place, moved")
    result = train(f"resume={moved.run}", "trainer.max_epochs=4", "optimizer.lr=3")
    assert result.code == 0, result.err
    assert moved.series("val/reconstruction")[3] > best  # the epoch after the move is a worse one
    assert moved.summary["best"]["value"] == pytest.approx(best)
    assert torch.load(moved.run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("now", [["accelerator=cpu"], ["trainer.strategy=auto", "trainer.devices=1"]], ids=" ".join)
def test_another_accelerator_on_resume_forgets_what_was_set_of_the_former(train, now):
    run = train("trainer.max_epochs=1").run
    config = run / "config.yaml"
    former = "overrides:\n  - accelerator=fsdp\n  - trainer.devices=2\n  - trainer.strategy.min_weights=5\n"
    config.write_text(config.read_text().replace("overrides:\n", former))
    result = train(f"resume={run}", "trainer.max_epochs=2", *now)
    assert result.code == 0, result.err


def settings(run: Path) -> dict:
    from vaelab.runs import read_config

    return read_config(run)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (["model=beta", "schedule=linear", "schedule.beta.over=0.9"], ["schedule=constant"]),
        (["model=beta", "schedule=linear", "schedule.beta.over=0.9"], ["schedule=constant", "~schedule.beta.over"]),
        (["lr_schedule=plateau", "lr_schedule.patience=2"], ["lr_schedule=constant"]),
        (["lr_schedule=plateau", "lr_schedule.patience=2"], ["lr_schedule=cosine"]),
        (["model=beta", "schedule=warmup", "schedule.beta.over=1"], ["schedule=linear", "schedule.beta.over=0.25"]),
    ],
    ids=" ".join,
)
def test_what_was_set_of_an_option_goes_with_it(train, then, now):
    run = train("trainer.max_epochs=1", *then).run
    result = train(f"resume={run}", "trainer.max_epochs=2", *now)
    assert result.code == 0, result.err
    section = now[0].partition("=")[0]
    arguments = [a for a in (*then, *now) if not a.startswith(("~", f"{section}.")) or a in now[1:]]
    fresh = train("trainer.max_epochs=1", *(a for a in arguments if a[0] != "~")).run
    assert settings(run)[section] == settings(fresh)[section]


def test_an_option_that_is_said_again_keeps_what_was_set(train):
    run = train("trainer.max_epochs=1", "model=beta", "schedule=linear", "schedule.beta.over=0.9").run
    assert train(f"resume={run}", "schedule=linear", "trainer.max_epochs=2").code == 0
    assert settings(run)["schedule"]["beta"]["over"] == 0.9


def test_a_key_is_taken_back_or_changed_on_resume(train):
    added = "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/elbo, mode: max}"
    run = train("trainer.max_epochs=1", "optimizer.lr=0.01", added, "+callbacks.stop.patience=1").run
    result = train(f"resume={run}", "trainer.max_epochs=2", "~optimizer.lr", "callbacks.stop.patience=7")
    assert result.code == 0, result.err
    assert settings(run)["optimizer"]["lr"] == 0.001
    assert settings(run)["callbacks"]["stop"]["patience"] == 7
    assert "optimizer.lr=0.01" not in settings(run)["run"]["overrides"]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_new_learning_rate_counts_on_resume(train, schedule):
    run = train("trainer.max_epochs=2", f"lr_schedule={schedule}").run
    result = train(f"resume={run}", "trainer.max_epochs=4", "optimizer.lr=0.02")._replace(run=run)
    assert result.code == 0, result.err
    assert max(result.series("step/lr")[6:]) > 0.005


def test_resume_remembers_the_folder_of_ones_own_options(train, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = "_target_: vaelab.models.VAE\nnetwork: ${network}\nlikelihood: ${likelihood}\nlatent_dim: 2\n"
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text(text)
    run = train("--config-dir", "mine", "model=tiny").run
    result = train(f"resume={run}", "trainer.max_epochs=3", "trust=true")
    assert result.code == 0, result.err


def test_a_folder_that_is_no_run_is_not_resumed(train, tmp_path):
    (tmp_path / "other").mkdir()
    for text in ("a: 1\n", "a: [1\n", ""):
        (tmp_path / "other" / "config.yaml").write_text(text)
        result = train("resume=other")
        assert result.code == 2, text
        assert "config.yaml" in result.err


def test_a_finished_run_is_left_alone(train):
    done = train()
    before = (done.run / "summary.json").read_text()
    again = train(f"resume={done.run}")
    assert again.code == 2
    assert "trainer.max_epochs" in again.err
    assert (done.run / "summary.json").read_text() == before


def test_a_finished_run_can_be_trained_longer(train, finished):
    short, long = finished("trainer.max_epochs=2"), finished("trainer.max_epochs=4")
    resumed = train(f"resume={short.run}", "trainer.max_epochs=4")
    assert resumed.code == 0, resumed.err
    assert short.summary["epochs"] == 4
    for name, value in weights(long.run).items():
        torch.testing.assert_close(weights(short.run)[name], value, rtol=0, atol=0)


def test_a_run_that_ended_inside_an_epoch_goes_on_in_it_and_says_what_differs(train, finished):
    short, long = (finished("trainer.max_epochs=9", f"trainer.max_steps={steps}") for steps in (4, 8))
    resumed = train(f"resume={short.run}", "trainer.max_steps=8")
    assert "had ended inside epoch 2, after step 4" in resumed.out
    assert same_weights(short.run, long.run)
    assert short.series("step/loss") == long.series("step/loss")
    assert len(short.rows("train/loss")) == len(long.rows("train/loss")) + 1
    whole = torch.load(finished("trainer.max_epochs=2").run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not ended_inside(whole)


def test_averaging_may_come_go_and_change_at_a_resume(train, finished):
    """The weights that are trained do not depend on it."""
    plain, averaged = finished("trainer.max_epochs=2"), finished("trainer.max_epochs=2", "averaging=ema")
    long = finished("trainer.max_epochs=4")
    gone = train(f"resume={averaged.run}", "averaging=none", "trainer.max_epochs=4")
    assert "averaging was taken away" in gone.out
    assert same_weights(averaged.run, long.run)
    come = train(f"resume={plain.run}", "averaging=ema", "averaging.decay=0.5", "trainer.max_epochs=3")
    assert come.code == 0, come.err
    assert train(f"resume={plain.run}", "averaging.decay=0.9", "trainer.max_epochs=4").code == 0
    saved = torch.load(plain.run / "checkpoints" / "last.ckpt", weights_only=True)
    trained = weights(long.run)
    assert all(torch.equal(saved["current_model_state"][name], trained[name]) for name in trained)
    assert not same_weights(plain.run, long.run)


def test_resume_refuses_another_model(train):
    done = train("trainer.max_epochs=1")
    other = train(f"resume={done.run}", "model=ae", "trainer.max_epochs=2")
    assert other.code == 2
    assert "model" in other.err


@pytest.mark.parametrize("how", ["gone", "cut short"])
def test_without_the_last_checkpoint_training_goes_on_from_the_best(train, finished, how):
    whole = finished("trainer.max_epochs=4")
    run = finished("trainer.max_epochs=3").run
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    if how == "gone":
        last.unlink()
    result = train(f"resume={run}", "trainer.max_epochs=4")
    assert result.code == 0, result.err
    assert "last.ckpt" in result.out
    assert "goes on from" in result.out
    assert same_weights(run, whole.run)
    assert (run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()
    last.write_bytes(b"")
    (run / "checkpoints" / "best.ckpt").write_bytes(b"")
    refused = train(f"resume={run}", "trainer.max_epochs=5")
    assert refused.code == 2
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("how", ["resume", "run.dir"])
def test_a_run_that_had_saved_nothing_begins_anew(train, finished, monkeypatch, how):
    whole = finished("trainer.max_epochs=2")
    monkeypatch.setattr(vaelab.training.callbacks, "Stop", Stop, raising=False)
    stop = "+callbacks.stop={_target_:vaelab.training.callbacks.Stop,hook:on_train_batch_start,step:0}"
    stopped = train(stop)
    assert stopped.code == 130
    assert "begins anew" in stopped.out
    assert not list(stopped.run.glob("checkpoints/*"))
    again = train(f"resume={stopped.run}", "~callbacks.stop") if how == "resume" else train(f"run.dir={stopped.run}")
    assert again.code == 0, again.err
    assert same_weights(stopped.run, whole.run)
    assert (stopped.run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(tmp_path):
    command = [Path(sys.executable).parent / "vaelab", "train", "run.dir=run", "trainer.max_epochs=100000"]
    command += ["trainer.accelerator=cpu", "dataset=fake", "dataset.image_shape=[1,8,8]"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 143, out.decode()
    assert "resume=run" in out.decode()
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] > 0
