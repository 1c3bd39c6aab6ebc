"""Laws of the objectives, on models built as the config builds them."""

from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import terms_of
from tests.test_conf import composed, options
from vaelab.core.batch import Batch
from vaelab.core.config import build
from vaelab.nn.posteriors import DiagonalGaussian


def model(name: str, *overrides: str, shape=(1, 8, 8), classes=10):
    torch.manual_seed(0)
    return build(composed(f"model={name}", *overrides)["model"], shape=shape, num_classes=classes)


def data(count=64, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *shape, generator=generator), torch.arange(count) % 10


ALL = options("model")


@pytest.mark.parametrize("name", ALL)
def test_terms_are_per_image(name):
    """An image's terms do not depend on its batch, and there is one of each per image."""
    made = model(name).eval()
    x, labels = data()
    noise = made.noise(len(x))
    terms = made.terms(Batch(x, labels), noise)
    for key, term in terms.items():
        assert term.ndim == 0 or len(term) % len(x) == 0, key
    alone = made.terms(Batch(x[:1], labels[:1]), None if noise is None else noise[..., :1, :])
    assert alone["reconstruction"].shape == (1,)
    for key in ("reconstruction", "kl", "commitment"):
        if key in terms:
            torch.testing.assert_close(alone[key][0], terms[key][0])


@pytest.mark.parametrize("name", ALL)
def test_reconstruction_is_the_negative_log_likelihood_in_nats(name):
    made = model(name, "likelihood=bernoulli").eval()
    x, labels = data()
    for p in made.decoder.parameters():
        torch.nn.init.zeros_(p)  # logits 0: every pixel costs log 2
    terms = terms_of(made, x, labels)
    counted = 48 if name == "quadrants" else 64  # a quadrant is seen, and costs nothing
    torch.testing.assert_close(terms["reconstruction"], torch.full((64,), counted * math.log(2)))


@pytest.mark.parametrize("name", ["vae", "beta", "cvae"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.5])
def test_objective_is_reconstruction_plus_beta_kl(name, beta):
    made = model(name)
    made.beta.fill_(beta)
    terms = terms_of(made, *data())
    loss = made.objective(terms)
    torch.testing.assert_close(loss, (terms["reconstruction"] + beta * terms["kl"]).mean())
    derived = made.derived({k: terms[k].mean().item() for k in ("reconstruction", "kl")}, {})
    assert derived["elbo"] == pytest.approx(-(terms["reconstruction"] + terms["kl"]).mean().item())


def test_kl_sums_over_dimensions():
    """Not a mean over them: with q = N(m, 1), KL is |m|^2 / 2 in nats per image."""
    made = model("vae")
    made.encode = lambda x, labels=None: DiagonalGaussian(torch.full((len(x), 20), 0.5), torch.zeros(len(x), 20))
    torch.testing.assert_close(terms_of(made, *data())["kl"], torch.full((64,), 20 * 0.125))


def test_l1_capacity_is_the_published_loss():
    made = model("capacity", "model.constraint=l1", "model.gamma=30")
    made.capacity.fill_(2.0)
    terms = terms_of(made, *data())
    expected = terms["reconstruction"].mean() + 30 * (terms["kl"].mean() - 2).abs()  # of the mean, not a mean of |.|
    torch.testing.assert_close(made.objective(terms), expected)


class Toy(torch.nn.Module):
    """One weight k stands for the KL; the reconstruction is 100 exp(-k / 10): its slope at k is the multiplier."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.k = torch.nn.Parameter(torch.tensor(1.0))

    def terms(self):
        return {"reconstruction": 100 * torch.exp(-self.k / 10)[None], "kl": self.k[None], "gap": self.k - self.target}


@pytest.mark.parametrize("target", [3.0, 15.0])
def test_the_lagrangian_reaches_the_constraint_and_its_multiplier(target):
    made, toy = model("capacity"), Toy(target)
    made.capacity.fill_(target)
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.01)
    for _ in range(4000):
        optimizer.zero_grad()
        terms = toy.terms()
        made.objective(terms).backward()
        made.observed.append(made.observe(Batch(torch.zeros(1)), terms))
        made.on_before_optimizer_step(optimizer)
        optimizer.step()
    assert toy.k.item() == pytest.approx(target, abs=1e-3)
    assert made.multiplier.item() == pytest.approx(10 * math.exp(-target / 10), rel=1e-3)


def test_the_multiplier_stays_below_gamma_and_does_not_move_in_evaluation():
    made = model("capacity", "model.gamma=1.5")
    made.capacity.fill_(0.0)
    terms = {"reconstruction": torch.ones(4), "kl": torch.full((4,), 1e4), "gap": torch.tensor(1e4)}
    for _ in range(5):
        made.objective(terms)
    assert made.multiplier.item() == 1.0
    made.learn([made.observe(Batch(torch.zeros(1)), terms)])
    assert made.multiplier.item() == 1.5


def test_the_multiplier_comes_back_from_a_constraint_that_could_not_be_met():
    made = model("capacity", "model.multiplier_rate=0.1")
    made.capacity.fill_(20.0)
    for kl in [0.0] * 1000 + [30.0] * 20:
        made.learn([torch.tensor(kl - 20)])
    assert made.multiplier.item() == pytest.approx(1e-6 * math.exp(0.1 * 10 * 20), rel=1e-3)


def test_the_label_enters_encoder_and_decoder():
    made = model("cvae").eval()
    x, labels = data()
    other = (labels + 1) % 10
    assert not torch.allclose(made.encode(x, labels).code, made.encode(x, other).code)
    z = torch.randn(64, made.latent_dim)
    assert not torch.allclose(made.decode(z, labels), made.decode(z, other))
    with pytest.raises(ValueError, match="labels"):
        made.encode(x)


def test_the_label_does_not_dwarf_z():
    """At the decoder's first layer, what varies with the label is no larger than what varies with z."""
    made = model("cvae", classes=1000)
    first = made.decoder.body[0].weight
    z_part = torch.randn(1000, made.latent_dim) @ first[:, : made.latent_dim].t()
    label_part = made.condition.embedding.weight @ first[:, made.latent_dim :].t()
    assert label_part.std() < z_part.std()


def test_cvae_samples_each_class_in_turn():
    made = model("cvae").eval()
    torch.manual_seed(0)
    unasked = made.sample(20)
    torch.manual_seed(0)
    torch.testing.assert_close(unasked, made.sample(20, torch.arange(20) % 10))


def test_vqvae_objective_is_the_papers():
    made = model("vqvae", "codebook=gradient", "model.commitment_cost=0.4")
    terms = terms_of(made, *data())
    z = made.encoder(data()[0])
    squares = (z - made.codebook.lookup(made.codebook.search(z))).square().flatten(1).sum(1)
    torch.testing.assert_close(terms["vq"], 1.4 * squares)
    torch.testing.assert_close(terms["commitment"], squares)
    torch.testing.assert_close(made.objective(terms), (terms["reconstruction"] + terms["vq"]).mean())


def test_ema_codebook_has_no_codebook_loss():
    terms = terms_of(model("vqvae", "codebook=ema"), *data())
    torch.testing.assert_close(terms["vq"], 10 * terms["commitment"])


def test_the_autoencoder_is_deterministic():
    made = model("ae")
    x, labels = data()
    torch.testing.assert_close(terms_of(made, x, labels), terms_of(made, x, labels))
    assert made.prior is None


def test_posterior_noise_is_drawn_anew():
    made = model("vae")
    x, labels = data()
    assert not torch.equal(terms_of(made, x, labels)["reconstruction"], terms_of(made, x, labels)["reconstruction"])


@pytest.mark.parametrize("name", ALL)
def test_scalars_are_saved_buffers(name):
    made = model(name)
    for scalar in made.scalars:
        assert made.state_dict()[scalar].ndim == 0


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name):
    made = model(name)
    if hasattr(made, "codebook"):  # the default one learns without a gradient
        made = model(name, "codebook=gradient")
    made.objective(terms_of(made, *data())).backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ALL)
def test_bf16_autocast_keeps_the_objective_in_float32(name):
    made = model(name)
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(made, *data())
    for key, term in terms.items():
        assert not term.is_floating_point() or term.dtype == torch.float32, key
