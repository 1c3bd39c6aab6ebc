import functools
import itertools
from copy import deepcopy
from typing import Annotated

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vaelab.core.conf import CONF
from vaelab.core.config import build, check, values
from vaelab.core.errors import UserError
from vaelab.nn import networks
from vaelab.nn.schedules import Progress
from vaelab.training.callbacks import Anneal
from vaelab.training.checks import check_run

MLP = {"_target_": "vaelab.nn.networks.MLP", "hidden_dims": [4, 3], "activation": "relu", "norm": "none", "skip": False}
BETA = {
    "_target_": "vaelab.models.BetaVAE",
    "network": MLP,
    "likelihood": {"_target_": "vaelab.nn.likelihoods.Gaussian", "sigma": 1.0},
    "latent_dim": 20,
    "beta": 4.0,
}
LINEAR = {
    "_target_": "vaelab.nn.schedules.linear",
    "_partial_": True,
    "start": 0.0,
    "end": 1.0,
    "over": 5,
    "unit": "epochs",
}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "betas": [0.9, 0.999]}
OPTIONS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def refusal(config, key):
    with pytest.raises(UserError) as refused:
        check(config, key)
    return str(refused.value)


@functools.cache
def composed(*overrides):
    """The config of a run but its folder, resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=list(overrides)))
    config["run"] = {"name": "name", "dir": "folder"}
    return OmegaConf.to_container(OmegaConf.create(config), resolve=True)


@pytest.mark.parametrize("config", [MLP, BETA, LINEAR, ADAM])
def test_what_fits_is_accepted(config):
    check(config, "key")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_model_is_accepted_as_shipped(option):
    check(composed(f"model={option}"))


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (BETA, "latent_dim", "abc"),
        (BETA, "latent_dim", "20"),
        (BETA, "latent_dim", 0),
        (BETA, "latent_dim", -3),
        (BETA, "latent_dim", 2.5),
        (BETA, "latent_dim", 20.0),
        (BETA, "latent_dim", True),
        (BETA, "latent_dim", None),
        (BETA, "latent_dim", [20]),
        (BETA, "beta", -0.1),
        (BETA, "beta", "much"),
        (BETA, "beta", float("nan")),
        (BETA, "beta", float("inf")),
        (BETA, "beta", True),
        (BETA, "network", None),
        (BETA, "network", "mlp"),
        (BETA, "likelihood", None),
        (BETA, "likelihood", "gaussian"),
        (MLP, "activation", "rulu"),
        (MLP, "activation", None),
        (MLP, "hidden_dims", 400),
        (MLP, "hidden_dims", "400"),
        (MLP, "hidden_dims", None),
        (MLP, "skip", "maybe"),
        (MLP, "skip", "off"),
        (MLP, "skip", 1),
        (LINEAR, "unit", "minutes"),
        (LINEAR, "over", -1),
        (ADAM, "lr", "fast"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_key(config, name, value):
    message = refusal(config | {name: value}, "part")
    assert message.startswith(f"part.{name}=")
    assert repr(value) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([4, -1], "[1]=-1"),
        ([0], "[0]=0"),
        ([4, 3, "x"], "[2]='x'"),
        ([4.5], "[0]=4.5"),
        ([8.0], "[0]=8.0"),
        ([None], "[0]"),
    ],
)
def test_a_wrong_item_of_a_list_is_named_by_its_place(value, place):
    assert refusal(MLP | {"hidden_dims": value}, "network").startswith(f"network.hidden_dims{place}")


@pytest.mark.parametrize("value", [0, 1, 4, 4.5, 1e-3])
def test_whole_numbers_are_numbers(value):
    check(BETA | {"beta": value}, "model")


def test_an_empty_list_is_a_list():
    check(MLP | {"hidden_dims": []}, "network")


def test_an_optional_value_may_be_none_or_in_range():
    book = {"_target_": "vaelab.nn.quantizers.GradientCodebook", "_partial_": True, "restart_after": None}
    check(book, "codebook")
    check(book | {"restart_after": 7}, "codebook")
    assert "codebook.restart_after" in refusal(book | {"restart_after": 0}, "codebook")


@pytest.mark.parametrize(("value", "fits"), [(0, True), (0.5, True), (1, True), (1.01, False), (-0.01, False)])
def test_a_fraction_is_between_zero_and_one(value, fits):
    shape = {"_target_": "vaelab.nn.schedules.cyclical", "_partial_": True, "rise": value}
    if fits:
        check(shape, "schedule.beta")
    else:
        assert refusal(shape, "schedule.beta").startswith("schedule.beta.rise=")


@pytest.mark.parametrize(
    ("config", "wrong", "near"),
    [(BETA, "latent_dims", "latent_dim"), (MLP, "hiden_dims", "hidden_dims"), (ADAM, "beta", "betas")],
)
def test_an_unknown_name_is_refused_with_the_nearest(config, wrong, near):
    message = refusal(config | {wrong: 1}, "part")
    assert f"part.{wrong}" in message
    assert f"did you mean part.{near}?" in message


def test_a_name_like_no_other_is_refused_without_a_guess():
    message = refusal(BETA | {"zzz": 1}, "model")
    assert "model.zzz" in message
    assert "did you mean" not in message


def test_wrong_values_are_found_at_any_depth():
    config = {
        "callbacks": {"anneal": {"schedules": {"beta": LINEAR | {"over": -1}}}, "more": [MLP, BETA | {"beta": -1}]}
    }
    assert refusal(config, "").startswith("callbacks.anneal.schedules.beta.over=-1")
    del config["callbacks"]["anneal"]
    assert refusal(config, "").startswith("callbacks.more[1].beta=-1")
    assert refusal(BETA | {"network": MLP | {"hidden_dims": [0]}}, "model").startswith("model.network.hidden_dims[0]=0")


@pytest.mark.parametrize("target", ["vaelab.nn.networks.Mlp", "nowhere.Thing"])
def test_a_target_that_is_not_there_is_refused(target):
    message = refusal({"_target_": target}, "network")
    assert message.startswith(f"network._target_={target}")
    assert len(message.splitlines()) <= 2


def test_plain_values_are_nobodys_to_check():
    check({"seed": 1, "list": [1, "a", None], "none": None}, "")


def test_what_checks_a_type_is_made_once(monkeypatch):
    check(BETA, "model")
    monkeypatch.setattr(values, "TypeAdapter", None)
    check(BETA, "model")
    assert "latent_dim=0" in refusal(BETA | {"latent_dim": 0}, "model")


def noted(size: Annotated[int, ["an annotation that is no key"]]) -> int:
    return size


def test_any_annotation_is_checked():
    node = {"_target_": f"{__name__}.noted", "size": 3}
    check(node, "key")
    assert "key.size='a'" in refusal(node | {"size": "a"}, "key")


def test_a_built_object_gets_plain_python():
    network = build(OmegaConf.create(MLP))
    assert isinstance(network, networks.MLP)
    assert type(network.hidden_dims) is list
    callback = build(OmegaConf.create({"_target_": "vaelab.training.callbacks.Anneal", "schedules": {"beta": LINEAR}}))
    assert type(callback.schedules) is dict
    schedule = build(OmegaConf.create(LINEAR))
    assert schedule(Progress(0, 2.5, 0.0)) == 0.5


def test_arguments_are_added_to_the_config():
    model = build(BETA, shape=(1, 8, 8), num_classes=None)
    assert model.shape == (1, 8, 8)
    assert model.beta.item() == 4.0


def test_a_part_without_a_value_that_it_needs_is_named():
    """A part is built by the model, which gives it its sizes and no more."""
    book = {"_target_": "vaelab.nn.quantizers.fsq.FSQ", "_partial_": True}
    check({"codebook": book})
    with pytest.raises(UserError, match=r"^FSQ needs 'levels': give it in the YAML file that selects it$"):
        build(composed("model=vqvae")["model"] | {"codebook": book}, shape=(1, 8, 8), num_classes=None)
    flow = {"_target_": "vaelab.nn.posteriors.Diagonal"}
    assert "or _partial_: true, with which the model gives latent_dim" in refusal(flow, "posterior")


def test_a_constructors_own_error_comes_out_as_it_was_raised():
    with pytest.raises(UserError, match=r"network\.hidden_dims"):
        build(
            {
                "_target_": "vaelab.nn.networks.Conv",
                "hidden_dims": [],
                "activation": "relu",
                "norm": "none",
                "residual_blocks": 0,
            }
        )
    with pytest.raises(UserError, match="needs labels"):
        build(composed("model=cvae")["model"], shape=(1, 8, 8), num_classes=None)
    with pytest.raises(UserError, match="network=mlp"):
        build(composed("model=vqvae", "network=mlp")["model"], shape=(1, 8, 8), num_classes=None)


def anything():
    return 7


def linear() -> networks.MLP:
    return networks.MLP([], "relu", False)


def test_a_nested_part_that_is_named_as_an_option_is_told_how_to_choose_it():
    book = composed("model=vqvae", "codebook=residual")["codebook"] | {"num_embeddings": 8, "embedding_dim": 4}
    said = refusal(book | {"of": "simvq"}, "codebook")
    assert said.endswith("codebook.of='simvq': must be a mapping with a _target_: the option of that name is "
                         "codebook@codebook.of=simvq")  # fmt: skip
    assert refusal(book | {"of": "nothing"}, "codebook").endswith("must be a mapping with a _target_")


FOREIGN = ["builtins.len", "torch.nn.ReLU", "os.getcwd", "platform.node", f"{__name__}.anything"]
PLACES = ["network", "likelihood", "posterior", "prior", "condition", "codebook", "optimizer", "lr_schedule",
          "averaging", "checkpoint", "dataset", "callbacks.x", "logger.x", "model.posterior", "model.network",
          "trainer.profiler", "trainer.strategy"]  # fmt: skip


def placed(key, node):
    """A config with a node in one place."""
    config = deepcopy(composed(*(["model=vqvae"] if key == "codebook" else []), "schedule=linear", "logger=csv"))
    config |= {"resume": None, "run": config["run"] | {"dir": "nowhere"}, "logger": {}}
    *sections, last = key.split(".")
    functools.reduce(dict.__getitem__, sections, config)[last] = node
    return config


@pytest.mark.parametrize("key", PLACES)
def test_what_makes_something_else_is_refused_by_its_key(key, tmp_path):
    """Whether it is called where it stands, or by whoever knows its sizes."""
    for target, lazy in itertools.product(FOREIGN, (True, False)):
        with pytest.raises(UserError) as refused:
            check_run(placed(key, {"_target_": target, "_partial_": lazy}), tmp_path)
        assert str(refused.value).startswith(key), target


def test_a_function_that_says_what_it_makes_is_taken(tmp_path):
    check_run(placed("network", {"_target_": f"{__name__}.linear"}), tmp_path)


@pytest.mark.parametrize("target", ["torch.nn.ReLU", "platform.node"])
def test_a_schedule_that_gives_no_number_is_refused(target):
    schedule = build({"_target_": target, "_partial_": True})
    with pytest.raises(UserError, match="it is no function that gives a number"):
        Anneal({"beta": schedule}).check(None)


def test_a_runs_config_is_read_as_it_was_written(tmp_path):
    from vaelab.runs import read_config, write_config

    twice = [1, 2.5]
    odd = ["1e-3", "1_000", "true", "null", "0x1f", "1:30", "~", "é", "a: b", "- c", "${x}", "", " ", "2026-11-27", "#"]
    config = {"run": {"name": "x", "format": 2}, "model": {"a": twice, "b": twice, "c": {}}, "dataset": {"odd": odd}}
    config |= {"trainer": {"lr": 1e-05, "big": 1e30, "none": None, "yes": True, "long": "word " * 60}}
    write_config(tmp_path, config)
    read = read_config(tmp_path)
    added = [read["dataset"].pop(key) for key in ("leave_out", "balance", "labelled")]  # by a reader
    assert added == [None, False, None]
    assert {key: read[key] for key in config} == config
