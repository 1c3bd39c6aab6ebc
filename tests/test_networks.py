import functools
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from tests.test_conf import options
from tests.test_resume import interrupted, same_weights
from vaelab.core.conf import CONF
from vaelab.core.config import build, check
from vaelab.core.errors import UserError
from vaelab.core.renames import upgrade
from vaelab.models import VAE
from vaelab.nn.layers import Residual, SelfAttention, normalisation
from vaelab.nn.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vaelab.nn.networks import NoFeatureMap
from vaelab.runs.trained import Trained
from vaelab.training.fit import check_batch_norm

SIZES = [(8, 8), (9, 13), (28, 28), (64, 64), (1, 16), (1, 27)]


@functools.cache
def option(name, *overrides):
    """The config of `network=name`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[f"network={name}", *overrides]).network


def network(name, *overrides):
    """A network as `network=name` gives it."""
    return build(option(name, *overrides))


VECTOR = [name for name in options("network") if name != "modules"]  # test_modules.py has those
MAP = [name for name in VECTOR if not isinstance(network(name), NoFeatureMap)]


def shapes(names):
    """Every network with every image shape that it takes."""
    return [
        (name, (channels, *size))
        for name in names
        for size in SIZES
        for channels in (1, 3)
        if takes(name, (channels, *size))
    ]


def takes(name, shape):
    """Whether a network takes images of a shape."""
    try:
        return bool(network(name).encoder(shape, 2))
    except UserError:
        return False


def test_every_shape_is_taken_by_some_and_every_network_takes_some():
    assert {shape[1:] for _, shape in shapes(VECTOR)} == {*SIZES}
    assert {name for name, _ in shapes(VECTOR)} == {*VECTOR}


def squares(likelihood_mean, wanted):
    return (likelihood_mean - wanted).square().mean().item()


@pytest.fixture
def mean_image():
    """A bright disc on black, [1, 28, 28]: a mean image with pixels that are always 0."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    return (0.6 - x.square() - y.square()).clamp(0, 0.6)[None]


@pytest.mark.parametrize(("name", "shape"), shapes(VECTOR))
def test_an_image_becomes_a_vector_and_a_vector_an_image(name, shape):
    parts = network(name)
    assert parts.encoder(shape, 6)(torch.rand(3, *shape)).shape == (3, 6)
    assert parts.decoder(5, shape)(torch.randn(3, 5)).shape == (3, *shape)


@pytest.mark.parametrize(("name", "shape"), shapes(MAP))
def test_an_image_becomes_a_map_and_a_map_an_image(name, shape):
    parts = network(name)
    height, width = parts.map_size(shape)
    halvings = len(parts.hidden_dims)
    assert (height, width) == (max(1, shape[1] >> halvings), shape[2] >> halvings)
    assert parts.map_encoder(shape, 7)(torch.rand(3, *shape)).shape == (3, 7, height, width)
    assert parts.map_decoder(7, shape)(torch.randn(3, 7, height, width)).shape == (3, *shape)


@pytest.mark.parametrize(("name", "shape"), shapes(VECTOR))
def test_encoders_see_the_context_and_every_pixel_nearly(name, shape):
    torch.manual_seed(0)
    encoder = network(name).encoder(shape, 6, context=4)
    x, context = torch.rand(2, *shape, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    out = encoder(x, context)
    assert out.shape == (2, 6)
    out.square().sum().backward()
    assert context.grad.abs().min() > 0
    assert (x.grad != 0).double().mean() > 0.8  # an odd size may lose its last row and column
    with torch.no_grad():
        assert not torch.allclose(out, encoder(x, context + 1))
        assert torch.allclose(encoder(x, context)[0], encoder(x[:1], context[:1])[0], atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), shapes(VECTOR))
def test_every_weight_is_used(name, shape):
    torch.manual_seed(0)
    parts = network(name)
    encoder, decoder = parts.encoder(shape, 5), parts.decoder(5, shape)
    decoder(encoder(torch.rand(4, *shape))).square().sum().backward()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_the_default_vae_has_973624_parameters():
    model = VAE((1, 28, 28), None, network("mlp"), Bernoulli(), 20)
    assert sum(p.numel() for p in model.parameters()) == 973_624


def test_hidden_sizes_are_read_from_the_image_inwards():
    parts = network("mlp_512_256")
    sizes = [layer.out_features for layer in parts.encoder((1, 8, 8), 6).body if hasattr(layer, "out_features")]
    assert sizes == [512, 256, 6]
    sizes = [layer.out_features for layer in parts.decoder(6, (1, 8, 8)).body if hasattr(layer, "out_features")]
    assert sizes == [256, 512, 64]


def test_burgess_has_the_published_layers():
    encoder = network("burgess").encoder((1, 64, 64), 20)
    weights = [tuple(layer.weight.shape) for layer in encoder.body if hasattr(layer, "weight")]
    assert weights == [(32, 1, 4, 4), *3 * [(32, 32, 4, 4)], (256, 512), (256, 256), (20, 256)]
    decoder = network("burgess").decoder(10, (1, 64, 64))
    weights = [tuple(layer.weight.shape) for layer in decoder.body if hasattr(layer, "weight")]
    assert weights == [(256, 10), (256, 256), (512, 256), *3 * [(32, 32, 4, 4)], (32, 1, 4, 4)]


def test_conv_has_one_activation_between_two_layers():
    parts = network("conv")
    kinds = [type(layer).__name__ for layer in parts.encoder((1, 28, 28), 6).body]
    assert kinds == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Flatten", "LatentLinear"]
    kinds = [type(layer).__name__ for layer in parts.decoder(6, (1, 28, 28)).body]
    assert kinds == ["LatentLinear", "Unflatten", "ReLU", "ConvTranspose2d", "ReLU", "ConvTranspose2d"]
    kinds = [type(layer).__name__ for layer in parts.map_encoder((1, 28, 28), 6)]
    assert kinds == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]


def test_resnet_has_two_residual_blocks_on_each_side():
    parts = network("resnet")
    for half in (parts.map_encoder((3, 32, 32), 16), parts.map_decoder(16, (3, 32, 32))):
        assert sum(isinstance(module, Residual) for module in half.modules()) == 2
    assert not any(isinstance(m, Residual) for m in network("conv").map_encoder((3, 32, 32), 16).modules())


def test_a_residual_block_adds_to_its_input():
    block = Residual(4, torch.nn.ReLU)
    torch.nn.init.zeros_(block.body[-1].weight)
    torch.nn.init.zeros_(block.body[-1].bias)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("name", "shape"), shapes(VECTOR))
def test_decoders_end_without_squashing(name, shape):
    torch.manual_seed(0)
    decoder = network(name).decoder(5, shape)
    z = torch.randn(64, 5) * 1000
    out = decoder(z)
    assert out.min() < -1
    assert out.max() > 2


@pytest.mark.parametrize("name", MAP)
def test_map_decoders_and_encoders_end_without_squashing(name):
    torch.manual_seed(0)
    parts, shape = network(name), (1, 28 if takes(name, (1, 28, 28)) else 1, 28)
    decoder, encoder = parts.map_decoder(5, shape), parts.map_encoder(shape, 5)
    for last in (decoder.body[-1], encoder[-1]):
        last.weight.data *= 1000  # a norm before it bounds what it is given
    for out in (decoder(torch.randn(8, 5, *parts.map_size(shape))), encoder(torch.randn(8, *shape))):
        assert out.min() < -1
        assert out.max() > 2


NORMS = {"none": (), "batch": (nn.BatchNorm1d, nn.BatchNorm2d), "group": (nn.GroupNorm,), "layer": (nn.GroupNorm,)}


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_norm_stands_on_both_sides_if_asked_for(name, norm):
    parts = network(name, f"network.norm={norm}")
    encoder, decoder = parts.encoder((1, 28, 28), 6), parts.decoder(6, (1, 28, 28))
    for half in (encoder, decoder):
        norms = [m for m in half.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)]
        assert {type(m) for m in norms} <= set(NORMS[norm])
        assert bool(norms) == (norm != "none")
        if norm == "layer":
            assert {m.num_groups for m in norms} == {1}
        if norm == "group":
            assert all(m.num_groups > 1 and m.num_channels >= 4 * m.num_groups for m in norms)
    x = torch.rand(4, 1, 28, 28)
    assert torch.allclose(encoder(x)[:1], encoder(x[:1].repeat(2, 1, 1, 1))[:1], atol=1e-5) == (norm != "batch")


def test_a_layer_norm_of_vectors_is_that_of_torch():
    x = torch.randn(3, 10)
    ours = normalisation("layer", 10, nn.BatchNorm1d)[0]
    torch.testing.assert_close(ours(x), nn.LayerNorm(10)(x))


def test_a_group_is_never_of_one_value():
    """Its normalised value would be 0 for every image."""
    for channels in range(2, 70):
        assert normalisation("group", channels, nn.BatchNorm1d)[0](torch.randn(2, channels)).abs().max() > 0.1


def test_an_older_config_says_batch_norm():
    node = {"_target_": "vaelab.networks.MLP", "hidden_dims": [4], "activation": "relu"}
    assert upgrade([node | {"batch_norm": True}, node | {"batch_norm": False}]) == [
        node | {"_target_": "vaelab.nn.networks.MLP", "norm": norm} for norm in ("batch", "none")
    ]


def test_batch_norm_is_averaged_resumed_and_evaluated_as_the_weights_are(train, monkeypatch):
    """With accumulated gradients: what is saved gives the metrics that the run reports, and goes on exactly."""
    given = ["model=ae", "network.norm=batch", "trainer.accumulate_grad_batches=2", "averaging=ema"]
    given += ["averaging.decay=0.7", "trainer.max_epochs=2", "dataset.size=160"]
    whole = train(*given)
    cut = interrupted(train, monkeypatch, "on_train_batch_end", 5, *given)
    resumed = train(f"resume={cut.run}", "~callbacks.stop")
    assert resumed.code == 0, resumed.err
    assert same_weights(cut.run, whole.run)
    trained = Trained(whole.run)
    x = trained.batch("test", torch.arange(len(trained.split("test")))).images
    model = trained.model.eval()
    loss = -model.likelihood.log_prob(model.decode(model.encode(x).code), x)
    assert loss.mean().item() == pytest.approx(whole.summary["metrics"]["test/reconstruction"], rel=1e-5)
    torch.testing.assert_close(model.encode(x).code[:1], model.encode(x[:1]).code)
    assert all(m.running_mean.abs().max() > 0 for m in model.modules() if isinstance(m, nn.BatchNorm1d))


def test_attention_sees_every_place_and_adds_to_its_input():
    torch.manual_seed(0)
    block, x = SelfAttention(4), torch.randn(2, 4, 3, 5, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    assert (x.grad[0] != 0).all()
    assert (x.grad[1] == 0).all()
    for weights in block.project.parameters():
        nn.init.zeros_(weights)
    assert torch.equal(block(x), x)


def test_attention_is_that_of_the_formula():
    torch.manual_seed(0)
    block, x = SelfAttention(4), torch.randn(1, 4, 2, 3)
    asked = block.asks.weight[:, :, 0, 0] @ block.norm(x)[0].flatten(1) + block.asks.bias[:, None]
    query, key, value = asked.chunk(3)
    seen = value @ (query.T @ key / 2).softmax(1).T
    wanted = block.project.weight[:, :, 0, 0] @ seen + block.project.bias[:, None]
    torch.testing.assert_close(block(x) - x, wanted.view(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "resnet", "conv1d"])
def test_attention_stands_once_on_each_side_at_the_smallest_size(name):
    shape = (1, 1, 28) if name == "conv1d" else (1, 28, 28)
    parts = network(name, "network.attention=true")
    for half in (parts.encoder(shape, 6), parts.decoder(6, shape)):
        assert sum(isinstance(m, SelfAttention) for m in half.modules()) == 1
    assert parts.map_decoder(5, shape)(parts.map_encoder(shape, 5)(torch.rand(2, *shape))).shape == (2, *shape)


def test_resnet_64_has_blocks_at_each_size_and_takes_faces():
    parts, shape = network("resnet_64"), (3, 64, 64)
    encoder, decoder = parts.encoder(shape, 256), parts.decoder(128, shape)
    for half in (encoder, decoder):
        assert sum(isinstance(m, Residual) for m in half.modules()) == 4
    decoder(encoder(torch.rand(2, *shape))[:, :128]).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for half in (encoder, decoder) for p in half.parameters())


def of_skips(name, shape, inputs):
    torch.manual_seed(0)
    decoder = network(name, "network.skip=true").decoder(inputs, shape)
    return decoder, torch.randn(3, inputs, requires_grad=True)


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet", "resnet_64"])
def test_latents_reach_every_layer_of_a_decoder_with_skips(name):
    """With the first layer cut off, z still decides what is drawn; each layer after it has a share of its own."""
    decoder, z = of_skips(name, (1, 32, 32), 5)
    weights = [layer for layer in decoder.body if isinstance(layer, nn.Linear | nn.ConvTranspose2d | Residual)]
    assert len(decoder.skips) == len(weights) - 1
    nn.init.zeros_(decoder.body[0].weight)
    assert decoder(z).std(0).min() > 0
    for place in decoder.skips:
        assert torch.autograd.grad(decoder(z).sum(), decoder.skips[place].weight)[0].abs().sum() > 0


def test_a_skip_is_the_layer_of_features_and_latents_side_by_side():
    decoder, z = of_skips("mlp", (1, 4, 4), 5)
    first, act, second, *_ = decoder.body
    joined = torch.cat([second.weight, decoder.skips["2"].weight], 1)
    wanted = torch.cat([act(first(z)), z], 1) @ joined.T + second.bias
    layers = nn.Sequential(*decoder.body[:3])
    found = type(decoder)(layers, (1, 20, 20), 5)
    found.skips["2"].load_state_dict(decoder.skips["2"].state_dict())
    torch.testing.assert_close(found(z).flatten(1), wanted)


def test_without_skips_a_decoder_is_what_it_was():
    plain = network("conv").decoder(5, (1, 8, 8))
    assert type(plain).__name__ == "Decoder"
    skips, z = of_skips("conv", (1, 8, 8), 5)
    for skip in skips.skips.values():
        nn.init.zeros_(skip.weight)
    torch.testing.assert_close(skips(z), skips.body(z).view(3, 1, 8, 8))


def test_codes_of_a_map_reach_the_places_above_them():
    decoder = network("conv", "network.skip=true").map_decoder(4, (1, 8, 8))
    nn.init.zeros_(decoder.body[0].weight)
    z = torch.zeros(1, 4, 2, 2)
    z[:, :, 0, 0] = 1.0
    changed = (decoder(z) - decoder(0 * z)).abs()[0, 0]
    assert (changed[:4, :4] > 0).all()
    assert (changed[6:, 6:] == 0).all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
def test_the_activation_is_the_one_that_was_asked_for(name, activation):
    encoder = network(name, f"network.activation={activation}").encoder((1, 28, 28), 6)
    found = {type(m).__name__.lower() for m in encoder.modules() if type(m).__module__ == "torch.nn.modules.activation"}
    assert found == {activation.replace("_", "")}


def test_without_hidden_layers_encoder_and_decoder_are_linear():
    torch.manual_seed(0)
    parts = network("mlp", "network.hidden_dims=[]")
    encoder, decoder = parts.encoder((1, 8, 8), 6).double(), parts.decoder(6, (1, 8, 8)).double()
    for part, size in ((encoder, (1, 8, 8)), (decoder, (6,))):
        a, b, zero = (torch.randn(1, *size).double(), torch.randn(1, *size).double(), torch.zeros(1, *size).double())
        torch.testing.assert_close(
            part(2 * a - 3 * b) - part(zero), 2 * (part(a) - part(zero)) - 3 * (part(b) - part(zero))
        )
    hidden = network("mlp").encoder((1, 8, 8), 6).double()
    a = torch.randn(1, 1, 8, 8).double()
    assert not torch.allclose(hidden(2 * a) - hidden(0 * a), 2 * (hidden(a) - hidden(0 * a)))


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), Gaussian(1.0)])
def test_a_fresh_vae_decodes_the_mean_image(mean_image, likelihood):
    torch.manual_seed(0)
    model = VAE((1, 28, 28), None, network("mlp"), likelihood, 20)
    model.start_from(mean_image, 0.3, 1)
    decoded = model.sample(64)
    assert squares(decoded.mean(0), mean_image) < 0.2 * squares(mean_image.mean(), mean_image)


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), Gaussian(1.0)])
@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_a_fresh_convolutional_vae_decodes_the_mean_colour(mean_image, name, likelihood):
    torch.manual_seed(0)
    image = torch.cat([mean_image, mean_image / 2, 1 - mean_image])
    model = VAE((3, 28, 28), None, network(name), likelihood, 20)
    model.start_from(image, 0.3, 1)
    torch.testing.assert_close(model.sample(64).mean((0, 2, 3)), image.mean((1, 2)), rtol=0, atol=0.05)


def test_a_fresh_linear_decoder_has_the_mean_image_at_the_origin():
    model = VAE((3, 5, 6), None, network("mlp", "network.hidden_dims=[]"), Gaussian(1.0), 4)
    image = torch.rand(3, 5, 6)
    model.start_from(image, 0.3, 1)
    torch.testing.assert_close(model.decode(torch.zeros(2, 4)), image.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: network("conv", "network.hidden_dims=[]"), ["network.hidden_dims"]),
        (lambda: network("conv", "network.hidden_dims=[8,8,8,8]").encoder((1, 8, 8), 2), ["network.hidden_dims", "3"]),
        (lambda: network("conv", "network.hidden_dims=[8,8,8,8]").map_decoder(4, (1, 9, 13)), ["network.hidden_dims"]),
        (lambda: network("conv").encoder((1, 1, 16), 2), ["1x16", "network=mlp", "conv1d"]),
        (lambda: network("resnet").map_encoder((1, 1, 16), 2), ["1x16", "network=mlp", "conv1d"]),
        (lambda: network("conv1d").encoder((1, 8, 16), 2), ["network=conv1d", "8x16", "network=conv"]),
        (lambda: network("conv1d", "network.hidden_dims=[8,8,8]").encoder((1, 1, 7), 2), ["network.hidden_dims", "2"]),
        (lambda: network("burgess").encoder((1, 28, 28), 2), ["network=burgess", "28x28", "conv"]),
        (lambda: network("burgess").decoder(2, (1, 64, 32)), ["network=burgess", "64x32", "conv"]),
        (lambda: network("burgess").map_encoder((1, 64, 64), 2), ["network=burgess", "conv"]),
        (lambda: network("mlp").map_decoder(2, (1, 28, 28)), ["network=mlp", "conv"]),
        (lambda: network("mlp").map_size((1, 28, 28)), ["network=mlp", "conv"]),
    ],
)
def test_what_a_network_cannot_do_is_refused_by_its_key(make, words):
    with pytest.raises(UserError) as refused:
        make()
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_most_halvings_an_image_allows_are_allowed(count):
    parts = network("conv", f"network.hidden_dims={[4] * count}".replace(" ", ""))
    assert parts.decoder(2, (1, 8, 15))(parts.encoder((1, 8, 15), 2)(torch.rand(2, 1, 8, 15))).shape == (2, 1, 8, 15)


@pytest.mark.parametrize("name", VECTOR)
def test_shipped_options_fit_their_constructors(name):
    check(OmegaConf.to_container(option(name)), "network")


@pytest.mark.parametrize("name", ["mlp", "conv", "burgess"])
def test_layers_next_to_the_latents_stay_in_float32_under_autocast(name):
    parts, x = network(name), torch.rand(2, 1, 64, 64)
    encoder, decoder, z = parts.encoder((1, 64, 64), 6), parts.decoder(3, (1, 64, 64)), torch.randn(2, 3)
    first = next(layer for layer in decoder.body if hasattr(layer, "weight"))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.body[0](torch.rand(2, *([4096] if name == "mlp" else [1, 64, 64]))).dtype == torch.bfloat16
        assert encoder(x).dtype == torch.float32
        assert first(z).dtype == torch.float32


def test_a_batch_norm_of_several_processes_is_refused_on_processors():
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    model = VAE((1, 8, 8), None, network("mlp", "network.norm=batch"), Bernoulli(), 2)
    with pytest.raises(UserError, match=r"network\.norm=batch.*network\.norm=group"):
        check_batch_norm({"trainer": {"sync_batchnorm": True}}, model, trainer)
    check_batch_norm({"trainer": {"sync_batchnorm": False}}, model, trainer)
    check_batch_norm(
        {"trainer": {"sync_batchnorm": True}}, VAE((1, 8, 8), None, network("mlp"), Bernoulli(), 2), trainer
    )
    trainer.world_size = 1
    check_batch_norm({"trainer": {"sync_batchnorm": True}}, model, trainer)
