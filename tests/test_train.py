"""A run from end to end: its folder, its figures, its reproducibility."""

from __future__ import annotations

import csv
import gc
import json

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import vaelab
import vaelab.training.callbacks
from tests.conftest import terms_of
from vaelab.core.config import build
from vaelab.runs import read_config
from vaelab.training import fit
from vaelab.training.loggers import MetricsFile


def weights(run) -> torch.Tensor:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([v.flatten().double() for v in state.values() if torch.is_tensor(v)])


def test_a_run_folder_is_complete(train):
    result = train("report=true")
    assert result.code == 0, result.err
    names = {str(p.relative_to(result.run)) for p in result.run.glob("**/*") if p.is_file()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "run.log",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "kl_per_dim.csv",
        "report.html",
        *(f"figures/{path.name}" for path in (result.run / "figures").glob("*.png")),  # tests/test_gallery.py has them
    }
    config = OmegaConf.load(result.run / "config.yaml")
    assert "${" not in (result.run / "config.yaml").read_text()
    assert config.model.latent_dim == 20
    assert {"versions", "commit", "device", "seconds", "model", "data", "objective", "metrics"} <= set(result.summary)
    assert str(result.run) in result.out
    assert "elbo" in result.out
    assert not list(result.run.glob("**/*.tmp"))


def test_the_summary_states_units_and_the_mean_reduced_beta(train):
    objective = train("model=beta", "model.beta=4", "schedule=constant", "model.latent_dim=8").summary["objective"]
    assert objective["beta"] == 4
    assert objective["beta_if_mean_reduced"] == pytest.approx(4 * 8 / 64)
    assert "not a density" in objective["log_likelihood_is"]


def test_the_same_seed_gives_the_same_run_and_another_another(train):
    one, two, other = train("seed=1"), train("seed=1"), train("seed=2")
    assert torch.equal(weights(one.run), weights(two.run))
    assert one.series("val/elbo") == two.series("val/elbo")
    assert not torch.equal(weights(one.run), weights(other.run))


def test_validation_does_not_touch_training(train):
    """Neither the noise nor the schedule advances on validation batches."""
    arguments = ("model=capacity", "schedule.capacity.over=20", "schedule.capacity.unit=steps", "trainer.max_epochs=4")
    often, seldom = train(*arguments), train(*arguments, "trainer.check_val_every_n_epoch=4")
    assert len(often.series("val/kl")) == 4
    assert len(seldom.series("val/kl")) == 1
    assert torch.equal(weights(often.run), weights(seldom.run))
    assert often.series("step/capacity") == pytest.approx([25 * min(1, i / 20) for i in range(12)])


def test_epoch_figures_are_exact_means_over_images(train):
    """With a last batch of 16 + 2: the mean over images is not the mean over batches, nor the last batch."""
    result = train("dataset.size=100", "dataset.val_size=0", "trainer.max_epochs=1", "dataset.batch_size=41")
    sizes, losses = [41, 41, 18], result.series("step/loss")
    assert len(losses) == 3
    exact = sum(n * v for n, v in zip(sizes, losses, strict=True)) / 100
    assert result.series("train/loss")[0] == pytest.approx(exact, rel=1e-6)
    assert abs(exact - sum(losses) / 3) > 1e-4


def test_the_elbo_is_at_beta_one_whatever_is_minimised(train):
    result = train("model=beta", "schedule=constant", "model.beta=7", "trainer.max_epochs=1")
    row = result.rows("val/elbo")[0]
    loss, elbo, kl, reconstruction = (float(row[f"val/{k}"]) for k in ("loss", "elbo", "kl", "reconstruction"))
    assert elbo == pytest.approx(-(reconstruction + kl), rel=1e-6)
    assert loss == pytest.approx(reconstruction + 7 * kl, rel=1e-5)


def test_the_best_checkpoint_has_the_best_validation_elbo(train):
    result = train("trainer.max_epochs=6", "optimizer.lr=0.05")
    elbos = result.series("val/elbo")
    best = torch.load(result.run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == max(range(6), key=elbos.__getitem__)
    assert result.summary["best"]["value"] == pytest.approx(max(elbos))
    assert result.summary["best"]["epoch"] == best["epoch"] + 1
    assert f"of epoch {best['epoch'] + 1}, the best by val/elbo" in result.out


class Spoil(pl.Callback):
    """Shifts all weights before the epoch `since` and each after it, so that these are not the best."""

    def __init__(self, since, by):
        self.since, self.by = since, by

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch >= self.since:
            for parameter in pl_module.parameters():
                parameter.data.add_(self.by)


@pytest.fixture
def spoil(monkeypatch):
    monkeypatch.setattr(vaelab.training.callbacks, "Spoil", Spoil, raising=False)
    return lambda since, by: f"+callbacks.spoil={{_target_:vaelab.training.callbacks.Spoil,since:{since},by:{by}}}"


RISING = ("model=beta", "model.beta=8", "schedule=linear", "optimizer.lr=1e-6")


def test_the_best_checkpoint_is_of_an_epoch_with_the_final_weights(train, spoil):
    """Beta rises during four of seven epochs; before its end the ELBO is better, but of another objective."""
    ramp = ("schedule.beta.unit=epochs", "schedule.beta.over=3.5", "trainer.max_epochs=7")
    result = train(*RISING, *ramp, spoil(0, 0.002))
    assert result.code == 0, result.err
    elbos, beta = result.series("val/elbo"), result.series("val/beta")
    assert elbos == sorted(elbos, reverse=True)
    assert [value == 8 for value in beta] == [False] * 3 + [True] * 4
    best = torch.load(result.run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 3
    assert result.summary["best"] == {"epoch": 4, "by": "val/elbo", "value": pytest.approx(elbos[3])}
    assert result.series("test/beta") == [8.0]


def test_the_best_checkpoint_is_of_any_cycle_that_had_the_final_weights(train, spoil):
    """Beta is at its end in every second epoch; the rise of the next cycle takes nothing from the last one's best."""
    cycles = ("schedule=cyclical", "schedule.beta.cycles=2", "trainer.max_epochs=4")
    result = train(*RISING, *cycles, spoil(0, 0.002))
    assert [value == 8 for value in result.series("val/beta")] == [False, True, False, True]
    assert result.summary["best"]["epoch"] == 2


@pytest.mark.parametrize(
    ("ramp", "first", "then"),
    [
        (("schedule.beta.unit=fraction", "schedule.beta.over=0.5"), 3, 3),
        (("schedule.beta.unit=epochs", "schedule.beta.over=4.5"), 4, 5),
    ],
)
def test_a_longer_run_has_its_best_at_its_own_end(train, spoil, ramp, first, then):
    """Resumed to be longer than four epochs: the first part's best one counts if it had the beta of the new end."""
    run = train(*RISING, *ramp, "trainer.max_epochs=4", spoil(0, 0.002))
    assert run.summary["best"]["epoch"] == first
    assert train(f"resume={run.run}", "trainer.max_epochs=12", "trust=true").code == 0  # Spoil is not vaelab's
    assert run.summary["best"]["epoch"] == then
    assert run.series("test/beta")[-1] == 8


def test_the_test_is_of_the_best_checkpoint(train, spoil):
    result = train("model=ae", "trainer.max_epochs=4", spoil(3, 0.1))
    figures = result.series("val/reconstruction")
    assert min(figures) < figures[-1]  # the last epoch is not the best
    data = build(OmegaConf.to_container(OmegaConf.load(result.run / "config.yaml"))["dataset"])
    data.setup()
    x = data.as_model_sees(data.test.batch(torch.arange(len(data.test)))).images
    with torch.no_grad():
        best, last = (
            terms_of(vaelab.load(result.run, name), x)["reconstruction"].mean().item() for name in ("best", "last")
        )
    assert result.series("test/reconstruction")[0] == pytest.approx(best, rel=1e-5)
    assert abs(best - last) > 1e-3 * best


def test_the_best_checkpoint_is_read_once(train, monkeypatch):
    read, paths = fit.runs.read_checkpoint, []
    monkeypatch.setattr(fit.runs, "read_checkpoint", lambda path: paths.append(path.name) or read(path))
    assert train().code == 0
    assert paths == ["best.ckpt"]


def test_without_validation_images_training_selects(train):
    result = train("dataset.val_size=0")
    assert result.code == 0, result.err
    assert result.summary["best"]["by"] == "train/elbo"
    assert (result.run / "checkpoints" / "best.ckpt").exists()


def test_the_test_images_are_read_once_at_the_end(train):
    result = train("trainer.max_epochs=3")
    assert len(result.series("test/elbo")) == 1
    assert not train("test=false").summary["metrics"].keys() & {"test/elbo"}


def test_a_fresh_model_starts_at_the_mean_picture(train):
    """The first steps cost about what the mean picture costs, not D log 2 nats."""
    result = train("dataset.val_size=0", "trainer.max_epochs=1", "dataset.image_shape=[1,16,16]")
    assert result.series("step/reconstruction")[0] < 0.6 * 256 * 0.6931


def test_gradient_accumulation_counts_optimiser_steps(train):
    result = train("trainer.accumulate_grad_batches=3", "dataset.val_size=0", "trainer.max_epochs=2")
    assert result.code == 0, result.err
    assert result.summary["steps"] == 2
    # a row's figures are of all three batches of its step, and here a step is an epoch
    assert [row["step"] for row in result.rows("step/loss")] == ["1", "2"]
    assert result.series("step/loss") == pytest.approx(result.series("train/loss"))


@pytest.mark.parametrize("option", ["model=vqvae", "lr_schedule=plateau", "logger=tensorboard", "model=capacity"])
def test_training_may_end_in_the_middle_of_an_epoch(train, option):
    result = train(option, "trainer.max_steps=4", "trainer.max_epochs=-1")
    assert result.code == 0, result.err
    assert result.summary["steps"] == 4
    assert len(result.series("train/loss")) == 2
    assert vaelab.load(result.run, checkpoint="last")


def test_plateau_waits_for_validations(train):
    arguments = ("lr_schedule=plateau", "lr_schedule.patience=1", "trainer.check_val_every_n_epoch=4")
    assert set(train(*arguments, "trainer.max_epochs=8").series("step/lr")) == {0.001}


def test_a_checkpoint_that_wants_to_execute_is_refused(train):
    import pickle

    from vaelab.core.errors import UserError

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    result = train()
    path = result.run / "checkpoints" / "best.ckpt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="refused"):
        vaelab.load(result.run)
    torch.save({"state_dict": {}, "evil": Evil()}, path)
    with pytest.raises(UserError, match="refused"):
        vaelab.load(result.run)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        vaelab.load(result.run)


def test_load_takes_last_and_names_what_is_missing(train, tmp_path):
    from vaelab.core.errors import UserError

    result = train("run.dir=outputs/a")
    newest = train("run.dir=outputs/b", "model.latent_dim=3")
    assert newest.code == result.code == 0
    assert vaelab.load("last").latent_dim == 3
    with pytest.raises(UserError, match="no run"):
        vaelab.load(tmp_path / "nothing")
    last = vaelab.load("outputs/a", "last")
    (tmp_path / "outputs/a/checkpoints/best.ckpt").unlink()
    assert all(
        torch.equal(*pair) for pair in zip(vaelab.load("outputs/a").parameters(), last.parameters(), strict=True)
    )
    (tmp_path / "outputs/a/checkpoints/last.ckpt").unlink()
    with pytest.raises(UserError, match=r"best\.ckpt does not exist"):
        vaelab.load("outputs/a")


def test_ema_weights_are_the_saved_model(train):
    plain, averaged = train("seed=3"), train("seed=3", "averaging=ema")
    state = torch.load(averaged.run / "checkpoints" / "last.ckpt", weights_only=True)
    assert "current_model_state" in state
    assert not torch.equal(weights(plain.run), weights(averaged.run))
    trained = torch.cat([v.flatten().double() for v in state["current_model_state"].values() if torch.is_tensor(v)])
    assert torch.equal(trained, weights(plain.run))
    assert averaged.series("test/elbo") != plain.series("test/elbo")


def test_ema_does_not_average_scheduled_scalars(train):
    result = train("averaging=ema", "model=beta", "schedule.beta.over=1", "trainer.max_epochs=4")
    assert result.series("val/beta")[-1] == 4.0
    assert result.summary["objective"]["beta"] == 4.0


def test_metrics_and_summary_agree(train):
    result = train()
    metrics = json.loads((result.run / "summary.json").read_text())["metrics"]
    for part in ("train", "val", "test"):
        assert metrics[f"{part}/elbo"] == pytest.approx(result.series(f"{part}/elbo")[-1], rel=1e-6)


def test_every_step_draws_other_noise_on_other_images(train, monkeypatch):
    """Seeding by the place in the run repeats neither the noise nor the order of the images."""
    seeds, first = [], []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seeds.append(torch.default_generator.initial_seed())
            first.append(batch.images[0].sum().item())

    monkeypatch.setattr(vaelab.training.callbacks, "Watch", Watch, raising=False)
    assert train("+callbacks.watch={_target_:vaelab.training.callbacks.Watch}", "trainer.max_epochs=4").code == 0
    assert len(set(seeds)) == len(seeds) == 12
    assert len(set(first)) > 9


def test_the_final_table_has_what_was_set_in_one_line_if_it_did_not_move():
    from vaelab.report.run import final_metrics
    from vaelab.training.summary import table

    metrics = {"train/loss": 7.5, "train/beta": 0.5000000001, "train/capacity": 20.0, "train/codebook_usage": 1.0}
    metrics |= {"test/loss": 7.0, "test/beta": 0.5, "test/capacity": 25.0, "test/codebook_usage": 1.0}
    lines = table({"metrics": metrics, "best": {"by": None}, "epochs": 2}).splitlines()
    assert [line.split()[0] for line in lines] == ["train", "loss", "capacity", "codebook_usage", "with", "train"]
    assert lines[1].split() == ["loss", "7.500", "7.000"]
    assert lines[4] == "with beta 0.500"
    cut = table({"metrics": {"test/loss": 7.0}, "best": {"by": None}, "epochs": 0})
    assert cut.splitlines()[-1] == "test before the end of the first epoch"
    page = final_metrics({"metrics": metrics})
    assert [row["name"] for row in page["rows"]] == ["loss", "capacity", "codebook_usage"]
    assert "Set, and the same throughout: beta 0.500." in page["notes"]


def test_plain_lightning_returns_the_metrics_of_a_test_and_logs_them_once(finished):
    run = finished("trainer.accumulate_grad_batches=2").run
    config, model = read_config(run), vaelab.load(run)
    data, model.seed = build(config["dataset"]), config["seed"]
    log = MetricsFile(run / "tested.csv", None)
    trainer = pl.Trainer(accelerator="cpu", logger=log, enable_progress_bar=False, default_root_dir=run)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    summary = json.loads((run / "summary.json").read_text())
    assert tested == pytest.approx({n: v for n, v in summary["metrics"].items() if n.startswith("test/")})
    assert log.rows == [{"step": 0, "epoch": 0.0} | tested]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["test/elbo"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (str(summary["steps"]), "1.0")
    ]  # the epoch of the row, which is the last one


def test_what_a_command_imports_is_not_searched_for_cycles_again_and_again(command):
    def searches() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())

    command("--version")
    before = searches()
    kept = [[] for _ in range(20_000)]
    assert searches() - before <= 3
    assert len(kept) == 20_000


def test_a_folder_of_other_things_is_left_as_it_was(train, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    result = train("run.dir=mine")
    assert result.code == 2
    assert "run.dir=mine is not empty" in result.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
