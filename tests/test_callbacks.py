"""Schedules, learning rates and warnings at work in a run."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

import vaelab.training.callbacks
from vaelab.core.errors import UserError
from vaelab.nn import schedules
from vaelab.training.callbacks import Anneal
from vaelab.training.fsdp import FullySharded


def test_scheduled_values_reach_the_objective(train):
    result = train("model=beta", "model.beta=4", "schedule.beta.over=2", "trainer.max_epochs=4")
    betas = result.series("step/beta")
    assert betas == pytest.approx([1 + 3 * min(1, i / 6) for i in range(12)], rel=1e-6)
    for row in result.rows("step/beta"):
        loss, reconstruction, kl, beta = (float(row[f"step/{k}"]) for k in ("loss", "reconstruction", "kl", "beta"))
        assert loss == pytest.approx(reconstruction + beta * kl, rel=1e-5)


def test_a_scheduled_value_is_logged_as_it_is_in_its_step(train):
    """Its mean since the last row would lag behind, by more where more steps lie between two rows."""
    result = train("model=beta", "model.beta=4", "schedule.beta.over=2", "trainer.log_every_n_steps=2")
    logged = {row["step"]: float(row["step/beta"]) for row in result.rows("step/beta")}
    assert logged == pytest.approx({step: 1 + 3 * (int(step) - 1) / 6 for step in ("2", "3", "4", "6")}, rel=1e-6)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_last_step_has_the_final_values(accumulated):
    """Of a ramp that the run does not see the end of: three batches make three steps, or two."""
    anneal = Anneal({"beta": partial(schedules.linear, start=0.0, end=8.0, over=4.5, unit="epochs")})
    anneal.batches, anneal.accumulated, anneal.steps = 3, accumulated, 4 * math.ceil(3 / accumulated)
    last = schedules.Progress(anneal.steps - 1, 3 + 2 / 3, 1 - 1 / anneal.steps)
    value = schedules.linear(last, start=0.0, end=8.0, over=4.5, unit="epochs")
    assert anneal.at_end({"beta": value})
    assert not anneal.at_end({"beta": 0.98 * value})
    assert not anneal.at_end({})  # of a run that was resumed with another schedule


def test_any_scalar_can_be_scheduled_from_the_command_line(train):
    node = "{_target_:vaelab.nn.schedules.linear,_partial_:true,start:1,end:0,over:6,unit:steps}"
    result = train("model=vqvae", f"+schedule.commitment_cost={node}")
    assert result.code == 0, result.err
    assert result.series("step/commitment_cost") == pytest.approx([1 - i / 6 for i in range(6)], abs=1e-6)


def test_cosine_learning_rate(train):
    result = train("lr_schedule=cosine", "lr_schedule.factor.warmup=0", "optimizer.lr=0.01", "trainer.max_epochs=4")
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * i / 12)) for i in range(12)]
    assert result.series("step/lr") == pytest.approx(expected, rel=1e-5)


def test_plateau_lowers_the_learning_rate(train):
    arguments = ("lr_schedule=plateau", "lr_schedule.patience=0", "optimizer.lr=1e-9", "trainer.max_epochs=4")
    rates = train(*arguments, "lr_schedule.min_lr=0", "lr_schedule.factor=0.1").series("step/lr")
    assert rates[0] == 1e-9
    assert rates[-1] < 1e-10


def test_divergence_stops_and_names_the_term(train):
    result = train("optimizer.lr=1e15", "trainer.max_epochs=5")
    assert result.code == 1
    assert "diverged" in result.err
    assert "optimizer.lr" in result.err
    assert "kl" in result.err or "reconstruction" in result.err
    assert "Traceback" not in result.err
    assert result.summary["status"] == "diverged"


class Poison(pl.Callback):
    """Makes the weights NaN after `step` steps."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            next(pl_module.parameters()).data.fill_(float("nan"))


def test_the_checkpoint_before_a_divergence_is_kept(train, monkeypatch):
    """NaN weights never overwrite last.ckpt."""
    monkeypatch.setattr(vaelab.training.callbacks, "Poison", Poison, raising=False)
    result = train("+callbacks.poison={_target_:vaelab.training.callbacks.Poison,step:4}")
    assert result.code == 1
    saved = torch.load(result.run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


@pytest.mark.slow
def test_collapse_is_reported_with_evidence_and_remedy(train):
    result = train("model=beta", "schedule=constant", "model.beta=1000", "trainer.max_epochs=70")
    assert "posterior_collapse" in result.out
    assert "Remedy" in result.out
    assert "posterior_collapse" in (result.run / "run.log").read_text()
    assert "posterior_collapse" in [f["code"] for f in result.summary["findings"]]


@pytest.mark.slow
def test_codebook_collapse_is_reported(train):
    arguments = ("model=vqvae", "codebook=gradient", "codebook.restart_after=null", "model.num_embeddings=4096")
    result = train(*arguments, "dataset.size=1200", "trainer.max_epochs=7")
    assert "codebook_collapse" in [f["code"] for f in result.summary["findings"]]


def test_an_unfinished_ramp_is_reported(train):
    arguments = ("model=capacity", "schedule.capacity.over=5000", "schedule.capacity.unit=steps")
    assert "schedule.capacity.over" in train(*arguments).out


@pytest.mark.parametrize("key", ["schedule=linear schedule.beta", "lr_schedule=cosine lr_schedule.factor"])
def test_a_fraction_of_the_run_is_not_more_than_one(train, key):
    result = train(*f"model=beta {key}.unit=fraction".split(), f"{key.split()[1]}.over=5000")
    assert result.code == 2
    assert f"{key.split()[1]}.over=5000" in result.err
    assert "unit=steps" in result.err


def test_gradient_clipping_is_lightnings(train):
    assert train("trainer.gradient_clip_val=0.5").code == 0


def test_the_bar_can_be_switched_off(train):
    loud, quiet = train(), train("trainer.enable_progress_bar=false")
    assert "step" in loud.err
    assert "step" not in quiet.err


def test_the_last_line_is_of_the_epoch_that_was_trained(train):
    err = train("trainer.max_steps=2").err  # of three
    assert "epoch 1/2 step 2" in err
    assert "epoch 2" not in err
    assert "epoch 2/2 step 6" in train().err


class Window(pl.Callback):
    """Compares the gradient that the optimiser sees with that of the mean over the images of its step."""

    def __init__(self, ratios: list[float]):
        self.ratios, self.batches = ratios, []

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, model, optimizer):
        images = torch.cat([batch.images for batch in self.batches])
        seen = torch.cat([p.grad.flatten() for p in model.parameters()])
        with torch.enable_grad():
            loss = -model.likelihood.log_prob(model.decode(model.encode(images).code), images).mean()
            right = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        self.ratios.append((seen @ right / right.square().sum()).item())
        self.batches.clear()


@pytest.mark.parametrize("limit", [[], ["trainer.limit_train_batches=4"]], ids=["whole", "limited"])
def test_accumulated_batches_count_by_their_images(train, monkeypatch, limit):
    """Also in an epoch's last step, which has one batch of 12 images, where others have three of 16."""
    ratios: list[float] = []

    def window() -> pl.Callback:
        return Window(ratios)

    monkeypatch.setattr(vaelab.training.callbacks, "Window", window, raising=False)
    done = train(
        "model=ae", "dataset.batch_size=16", "trainer.accumulate_grad_batches=3", "dataset.size=84", *limit,
        "dataset.val_size=8", "trainer.max_epochs=1", "+callbacks.window={_target_:vaelab.training.callbacks.Window}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert ratios == pytest.approx([1.0] * 2, rel=1e-4)


def test_early_stopping_counts_from_where_the_schedules_have_arrived(train):
    stop = "+callbacks.stop={_target_:vaelab.training.callbacks.EarlyStopping,monitor:val/loss,mode:max,patience:1}"
    loss_falls = ["model=beta", "model.beta=2", "schedule=linear", "schedule.beta.unit=epochs", "schedule.beta.over=4"]
    done = train(*loss_falls, stop, "trainer.max_epochs=9", "optimizer.lr=0.01")
    assert done.code == 0, done.err
    assert 5 < done.summary["epochs"] < 9
    assert done.summary["metrics"]["val/beta"] == pytest.approx(2.0)


def test_early_stopping_takes_the_patience_that_a_resume_gives_it():
    stop = vaelab.training.callbacks.EarlyStopping(monitor="val/elbo", patience=3)
    stop.load_state_dict(stop.state_dict() | {"patience": 50, "wait_count": 2})
    assert (stop.patience, stop.wait_count) == (3, 2)


def rates(run):
    groups = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    return [group["lr"] for group in groups]


LOWERING = [
    "lr_schedule=plateau",
    *("lr_schedule.threshold=1000", "lr_schedule.patience=0", "lr_schedule.factor=0.1", "lr_schedule.min_lr=5e-5"),
]


@pytest.mark.parametrize(
    ("model", "schedule"), [("ae", ["lr_schedule=constant"]), ("vqvae", ["lr_schedule=cosine"]), ("ae", LOWERING)]
)
def test_parts_keep_the_ratio_of_their_learning_rates(train, model, schedule):
    """Also where a schedule lowers them, down to a least rate, and where a resume gives others; of the autoencoder
    nothing is left beside the two.
    """
    factors = ["lr_factor.encoder=5", "lr_factor.decoder=0.5"]
    done = train(f"model={model}", *schedule, *factors, "trainer.max_epochs=4")
    assert done.code == 0, done.err
    first = rates(done.run)
    assert [rate / first[0] for rate in first] == pytest.approx([1, 5, 0.5])
    assert done.series("step/lr")[-1] == first[0]
    again = train(f"resume={done.run}", "lr_factor.decoder=0.25", "trainer.max_epochs=5")
    assert again.code == 0, again.err
    assert [rate / rates(done.run)[0] for rate in rates(done.run)] == pytest.approx([1, 5, 0.25])


def test_a_part_that_is_not_there_has_no_learning_rate(train, finished):
    result = train("model=vae", "+lr_factor.codebook=2")
    assert result.code == 2
    assert "lr_factor.codebook: VAE has no such part to learn; it has encoder and decoder" in result.err
    assert "lr_factor.decoder=0" in train("lr_factor.decoder=0").err
    begun = finished("model=vae").run
    changed = train(f"resume={begun}", "lr_factor.encoder=2", "trainer.max_epochs=3")
    assert changed.code == 2
    assert "lr_factor: a run goes on with the parts" in changed.err
    assert "Traceback" not in changed.err


def test_a_model_in_parts_has_one_learning_rate():
    """FSDP gathers weights of several parts of the model into one."""
    trainer, strategy = SimpleNamespace(checkpoint_callbacks=[1]), FullySharded(min_weights=1)
    strategy.check(trainer, SimpleNamespace(lr_factors={}, own_options={}))
    with pytest.raises(UserError, match="leave out lr_factor"):
        strategy.check(trainer, SimpleNamespace(lr_factors={"encoder": 2.0}))


def test_plateau_takes_what_a_resume_gives_it(train):
    never = ["lr_schedule=plateau", "lr_schedule.threshold=1000", "lr_schedule.patience=0", "lr_schedule.factor=0.5"]
    first = train(*never, "trainer.max_epochs=3", "optimizer.lr=0.01")
    assert first.series("step/lr")[-1] == pytest.approx(0.005)
    now = ["optimizer.lr=0.001", "lr_schedule.factor=0.1", "lr_schedule.patience=0"]
    again = train(f"resume={first.run}", *now, "trainer.max_epochs=5")._replace(run=first.run)
    assert again.code == 0, again.err
    rates = list(dict.fromkeys(round(rate, 9) for rate in again.series("step/lr")[9:]))
    assert rates == pytest.approx([0.00025, 0.000025])  # halved twice by then, as the former rate


@pytest.mark.parametrize("which", ["schedule=linear", "lr_schedule=cosine"])
def test_a_fraction_of_an_endless_run_is_refused(train, which):
    result = train(which, "trainer.max_epochs=-1", "trainer.max_time=00:00:00:03")
    assert result.code == 2
    assert "unit=fraction" in result.err
    assert not result.run.exists()


def test_an_unfinished_ramp_is_reported_where_time_ends_the_run(train):
    """The schedule is a fraction of a run that is longer than its time."""
    done = train("schedule=linear", "trainer.max_epochs=100000", "trainer.max_time=00:00:00:01")
    assert "schedule.beta had reached" in done.out + done.err


@pytest.mark.parametrize("how", ["every_steps=2", "every_minutes=0.0000001"])
def test_checkpoints_inside_epochs(train, monkeypatch, how):
    saved: list[int] = []
    save = pl.Trainer.save_checkpoint
    monkeypatch.setattr(
        pl.Trainer, "save_checkpoint", lambda self, *a, **k: (saved.append(self.global_step), save(self, *a, **k))
    )
    done = train(f"checkpoint.{how}", "dataset.size=192", "trainer.max_epochs=1", "dataset.val_size=0")
    assert done.code == 0, done.err
    inside = [2, 4] if "steps" in how else [1, 2, 3, 4, 5]
    assert [step for step in saved if step < 6] == inside
