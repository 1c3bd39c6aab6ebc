"""Every option of every group works: a new file is tested by being there."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra import compose, initialize_config_dir

import vaelab
from vaelab.core.conf import CONF
from vaelab.core.config import check, resolved, target_of


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def in_training(prior: str) -> bool:
    """Whether a model can have this option of conf/prior while it trains."""
    node = yaml.safe_load((CONF / "prior" / f"{prior}.yaml").read_text())
    return bool(node) and target_of(node, "prior").in_training


def with_part(group: str, option: str) -> list[str]:
    """The words that choose a part of a model: for a VAE, unless it is another model's own alone."""
    own = f"override /{group}@_global_.{group}: {option}\n"
    having = [name for name in options("model") if own in (CONF / "model" / f"{name}.yaml").read_text()]
    return [f"model={having[0]}"] if having and "vae" not in having else ["model=vae", f"{group}={option}"]


def named(group: str, option: str) -> tuple[str, ...]:
    """The words that choose an option; a user's own modules are those of the tests."""
    own = ("network.encoder._target_=tests.test_modules.Encoder", "network.decoder._target_=tests.test_modules.Decoder")
    return (f"{group}={option}", *(own if option == "modules" else ()))


ATTRIBUTES = "dataset.label_names=[one,two,three]"
"""Has fake images come with vectors of 0 and 1 in the place of classes."""


def condition(option: str) -> tuple[str, ...]:
    """The words that choose an option of conf/condition, with such labels of fake images as it is for."""
    text = (CONF / "condition" / f"{option}.yaml").read_text()
    return (f"condition={option}", *([ATTRIBUTES] if "dataset.label_names" in text else []))


def composed(*overrides: str) -> dict:
    """The config of a run in the folder x, resolved; the caller may change it."""
    return copy.deepcopy(_composed(*overrides))


@functools.cache
def _composed(*overrides: str) -> dict:
    from omegaconf import OmegaConf, open_dict

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    with open_dict(config):
        config.run, config.sweep = {"name": "x", "dir": "x"}, {"dir": "x"}
        if OmegaConf.is_missing(config.dataset, "root"):
            config.dataset.root = "x"
    return resolved(config)


@pytest.mark.parametrize("model", options("model"))
def test_every_model_trains_reloads_and_samples(train, model):
    result = train(f"model={model}")
    assert result.code == 0, result.err
    loaded = vaelab.load(result.run)
    assert not loaded.training
    x, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 2
    made = loaded.reconstruct(x, labels)
    assert made.shape == x.shape
    assert made.isfinite().all()
    if loaded.prior is not None:
        samples = loaded.sample(7)
        assert samples.shape == (7, 1, 8, 8)
        assert samples.isfinite().all()
    final = torch.load(result.run / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(final["state_dict"]) == set(loaded.state_dict())
    assert result.summary["status"] == "finished"


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 11, 14)])
def test_every_model_takes_any_image_or_refuses(train, model, shape):
    network = ["network=conv"] if model in ("vae", "cvae") else []
    result = train(
        f"model={model}", f"dataset.image_shape={list(shape)}".replace(" ", ""), *network, "trainer.max_epochs=1"
    )
    assert result.code == 0, result.err
    assert vaelab.load(result.run).reconstruct(torch.rand(2, *shape), torch.zeros(2).long()).shape == (2, *shape)


@pytest.mark.parametrize("model", options("model"))
def test_every_model_trains_in_bf16(train, model):
    """With batch norm, too; the figures stay close to those in float32."""
    arguments = (f"model={model}", "network.norm=batch", "trainer.max_epochs=1")
    half, full = train(*arguments, "trainer.precision=bf16-mixed"), train(*arguments)
    assert half.code == 0, half.err
    assert half.series("train/reconstruction") == pytest.approx(full.series("train/reconstruction"), rel=0.05)


@pytest.mark.parametrize("network", options("network"))
def test_every_network_trains(train, network):
    size = {"burgess": "64,64", "conv1d": "1,16", "resnet_64": "64,64"}.get(network, "8,8")
    result = train(*named("network", network), f"dataset.image_shape=[1,{size}]", "trainer.max_epochs=1")
    assert result.code == 0, result.err


@pytest.mark.parametrize("likelihood", options("likelihood"))
def test_every_likelihood_trains(train, tmp_path, likelihood):
    """On images, but for one of a table's columns."""
    (tmp_path / "x.csv").write_text("a,b,c\n" + "1.5,0,red\n2.5,1,blue\n4,0,blue\n" * 20)
    data = ["dataset=table", "dataset.root=x.csv", "report=false"] if likelihood == "table" else []
    result = train(f"likelihood={likelihood}", "trainer.max_epochs=1", *data, small=not data)
    assert result.code == 0, result.err
    assert result.summary["objective"]["log_likelihood_is"]


@pytest.mark.parametrize("schedule", options("schedule"))
def test_every_schedule_trains(train, schedule):
    model = "capacity" if schedule == "capacity" else "beta"
    result = train(f"model={model}", f"schedule={schedule}")
    assert result.code == 0, result.err
    assert len(result.series(f"step/{model}")) == result.summary["steps"]


def test_several_schedules_go_together(train):
    result = train("model=capacity", "schedule=[constant,capacity]")
    assert result.code == 0, result.err
    assert len({*result.series("step/capacity")}) > 1


@pytest.mark.parametrize("group", ["optimizer", "lr_schedule", "averaging"])
def test_every_other_option_trains(train, group):
    for option in options(group):
        result = train(f"{group}={option}", "trainer.max_epochs=1")
        assert result.code == 0, (option, result.err)


@pytest.mark.parametrize("group", ["accelerator", "logger", "dataset", "experiment"])
def test_every_option_composes_and_passes_the_check(group):
    for option in options(group):
        check(composed(f"{group}={option}"))


def test_every_file_opens_with_what_it_is():
    for path in CONF.glob("**/*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


def test_experiments_say_command_runtime_and_expectation():
    for path in (CONF / "experiment").glob("*.yaml"):
        text = path.read_text()
        assert f"# command:  vaelab train experiment={path.stem}" in text, path
        assert "# runtime:" in text, path
        assert "# expect:" in text, path
        assert "@RUNTIME@" not in text, path
        assert "@EXPECT@" not in text, path


def test_trainer_lists_all_of_lightnings_arguments():
    """So that no argument needs a plus sign."""
    listed = set(yaml.safe_load((CONF / "train.yaml").read_text())["trainer"]) - {"_target_"}
    assert listed == set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", "logger", "callbacks"}


def test_one_model_one_file():
    models = Path(vaelab.__file__).parent / "models"
    assert {p.stem for p in models.rglob("*.py")} - {"__init__", "base", "module", "held"} == set(options("model"))


def test_a_users_own_folder_of_options(train, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text(
        "_target_: vaelab.models.VAE\nnetwork: ${network}\nlikelihood: ${likelihood}\nlatent_dim: 2\n"
    )
    result = train("--config-dir", str(tmp_path / "mine"), "model=tiny")
    assert result.code == 0, result.err
    assert result.summary["model"]["latent_dimensions"] == 2


@pytest.mark.parametrize("sweep", options("sweep"))
def test_every_ready_sweep_is_of_jobs_that_can_run(sweep):
    """Each of its values composes, fits what it is for, and the header says how many jobs there are."""
    text = (CONF / "sweep" / f"{sweep}.yaml").read_text()
    params = {key: str(values).split(",") for key, values in yaml.safe_load(text)["hydra"]["sweeper"]["params"].items()}
    assert f"# jobs:     {math.prod(map(len, params.values()))}" in text
    assert f"sweep={sweep}" in text
    for place in range(max(map(len, params.values()))):
        chosen = [f"{key}={values[min(place, len(values) - 1)]}" for key, values in params.items()]
        check(composed(f"sweep={sweep}", *chosen))


def test_a_ready_sweep_needs_no_flag(train, tmp_path):
    result = train("sweep=study_small", "trainer.max_epochs=1", "sweep.dir=sweep", "run.name=job")
    assert result.code == 0, result.err
    betas = [yaml.safe_load(path.read_text())["model"]["beta"] for path in sorted(tmp_path.glob("sweep/*/config.yaml"))]
    assert betas == [1.0, 4.0, 16.0]
    assert (tmp_path / "sweep" / "sweep.csv").is_file()
