"""An encoder and a decoder of one's own: plain modules, from the command line and from Python."""

from __future__ import annotations

import functools
import math
import sys

import pytest
import torch
from torch import nn

from tests.test_bad_input import refused
from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.nn.modules import Given, Modules, giving


class Encoder(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


class Decoder(nn.Sequential):
    """Gives the numbers of an image in a row."""

    def __init__(self, inputs, shape):
        super().__init__(nn.Flatten(), nn.LazyLinear(math.prod(shape)))


class Mapping(nn.Conv2d):
    def __init__(self, outputs):
        super().__init__(1, outputs, 2, stride=2)


class Noisy(nn.Module):
    def forward(self, x):
        raise RuntimeError("of my own")


WORDS = ["network=modules", "network.encoder._target_=ownnet.Encoder", "network.decoder._target_=ownnet.Decoder"]
SOURCE = """
from torch import nn

class Encoder(nn.Sequential):
    def __init__(self, outputs, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))

class Decoder(nn.Sequential):
    def __init__(self, inputs):
        super().__init__(nn.Linear(inputs, 64))
"""


@pytest.fixture
def ownnet(tmp_path, monkeypatch):
    """A file of one's own in the working folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "ownnet.py").write_text(SOURCE)
    yield
    sys.modules.pop("ownnet", None)


def test_they_are_found_in_the_working_folder_and_told_their_sizes(train, ownnet):
    done = train(*WORDS, "+network.encoder.width=5", "model=cvae")
    assert (done.code, "mat1" in done.err) == (2, True)  # the encoder has no place for what cvae is told
    done = train(*WORDS, "+network.encoder.width=5", "model.latent_dim=3")
    assert done.code == 0, done.err
    state = torch.load(done.run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert state["encoder.body.0.3.weight"].shape == (6, 5)
    assert state["decoder.body.0.0.weight"].shape == (64, 3)
    assert main(["reconstruct", f"run={done.run}", "trust=true"]) == 0


def test_their_own_arguments_are_checked(train, ownnet):
    refused(train(*WORDS, "+network.encoder.widht=5"), "did you mean network.encoder.width?")


@pytest.mark.parametrize(
    ("encoder", "decoder", "said"),
    [
        (nn.Flatten(), Decoder, "Flatten makes [64] of [1, 8, 8], and the model takes 6 numbers"),
        (Encoder, nn.Linear(3, 60), "Linear makes [60] of [3], and it must give [1, 8, 8]"),
        (Encoder, nn.Linear(4, 64), "network.decoder: it fails on [2, 3]"),
        (Noisy(), Decoder, "RuntimeError: of my own"),
        (nn.LSTM(8, 6), Decoder, "network.encoder"),
    ],
)
def test_what_does_not_fit_is_said_with_its_sizes(encoder, decoder, said):
    make = [part if isinstance(part, type) else lambda part=part: part for part in (encoder, decoder)]
    network = Modules(*make)
    with pytest.raises(UserError) as error:
        network.encoder((1, 8, 8), 6), network.decoder(3, (1, 8, 8))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("ownnet.Encoder", "network.encoder: 'ownnet.Encoder' is no module, nor a class or a function"),
        (lambda shape: None, "network.encoder: what makes it gives a NoneType"),
    ],
)
def test_what_makes_no_module_is_refused(encoder, said):
    with pytest.raises(UserError, match=said):
        Modules(encoder, Decoder).encoder((1, 8, 8), 6)


def test_a_feature_map_is_quantised():
    network = Modules(Mapping, lambda inputs: nn.ConvTranspose2d(inputs, 1, 2, stride=2))
    assert network.map_size((1, 8, 6)) == (4, 3)
    assert network.map_encoder((1, 8, 6), 5)(torch.zeros(2, 1, 8, 6)).shape == (2, 5, 4, 3)
    assert network.map_decoder(5, (1, 8, 6))(torch.zeros(2, 5, 4, 3)).shape == (2, 1, 8, 6)
    with pytest.raises(UserError, match="a feature map"):
        Modules(Encoder, Decoder).map_size((1, 8, 8))


def test_objects_are_copied_and_missed_where_they_are_not_given():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    network = Modules(functools.partial(Given, role="encoder"), functools.partial(Given, role="decoder"))
    with giving(encoder=module, decoder=Decoder):
        made = network.encoder((1, 8, 8), 6)
        assert network.decoder(3, (1, 8, 8))(torch.zeros(2, 3)).shape == (2, 1, 8, 8)
    assert made.body[0] is not module
    assert torch.equal(made.body[0][1].weight, module[1].weight)
    with pytest.raises(UserError, match=r"network\.encoder: it was given in Python"):
        network.encoder((1, 8, 8), 6)


def test_trying_draws_no_random_numbers_and_leaves_a_batch_norm_as_it_is():
    body = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(64), nn.Linear(64, 6))
    before, state = {k: v.clone() for k, v in body.state_dict().items()}, torch.get_rng_state()
    encoder = Modules(lambda: body, Decoder).encoder((1, 8, 8), 6)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in body.state_dict().items())
    assert encoder.training
    assert body.training
