"""The semi-supervised M2: its bounds against sums over classes written out, and against log p(x) in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vaelab.core.batch import Batch, Labelled
from vaelab.models import M2
from vaelab.nn.likelihoods import Bernoulli, Gaussian
from vaelab.nn.networks import MLP

SHAPE, D, K = (1, 2, 3), 2, 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return M2(SHAPE, K, MLP([8], "relu", False), Bernoulli(), D, 4, alpha=5.0)


def images(count=6):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)).round()


def noise(count=6):
    return torch.randn(K, count, D, generator=torch.Generator().manual_seed(2))


def given(model, label):
    """-L(x, y) of each image and its KL of z, by encoder and decoder alone."""
    y = torch.full((6,), label)
    posterior = model.encode(images(), y)
    z, kl = posterior.sample_with_kl(noise()[label], model.prior)
    return -model.likelihood.log_prob(model.decode(z, y), images()) + kl.total + math.log(K)


def test_the_bound_without_a_label_is_the_sum_over_classes(model):
    q = model.classify(images()).exp()
    sums = sum(q[:, y] * (given(model, y) + q[:, y].log()) for y in range(K))
    unknown = Batch(images(), torch.full((6,), -1), labelled=Labelled(0.5, 0.1))
    for batch in (Batch(images()), unknown):
        terms = model.terms(batch, noise())
        torch.testing.assert_close(terms["reconstruction"] + terms["kl"], sums)
    assert terms["kl_per_dim"].shape == (6, D)
    torch.testing.assert_close(terms["kl_per_dim"].sum(1), terms["kl"] - terms["kl_label"])


def test_the_bound_with_a_label_is_that_of_its_class(model):
    labels = torch.tensor([0, 2, -1, 1, -1, 1])
    terms = model.terms(Batch(images(), labels, labelled=Labelled(0.5, 0.1)), noise())
    bounds = terms["reconstruction"] + terms["kl"]
    for image, label in enumerate(labels.tolist()):
        if label >= 0:
            assert bounds[image].item() == pytest.approx(given(model, label)[image].item(), rel=1e-5)


def test_held_out_images_are_taken_as_without_labels(model):
    labels, plain = torch.arange(6) % K, model.terms(Batch(images()), noise())
    terms = model.eval().terms(Batch(images(), labels), noise())
    assert torch.equal(terms["reconstruction"] + terms["kl"], plain["reconstruction"] + plain["kl"])
    assert torch.equal(terms["accuracy"], (model.classify(images()).argmax(1) == labels).float())


def test_the_objective_is_that_of_the_data_whatever_the_share_of_labels_in_a_batch(model):
    """Half of a batch has labels where a tenth of the data has: bounds count 0.1 / 0.5 and 0.9 / 0.5, labels the same
    as ever."""
    labels = torch.tensor([0, 1, 2, -1, -1, -1])
    terms = model.terms(Batch(images(), labels, labelled=Labelled(0.5, 0.1)), noise())
    bounds = terms["reconstruction"] + terms["kl"]
    known = -model.classify(images())[range(3), range(3)].mean()
    expected = 0.1 * bounds[:3].mean() + 0.9 * bounds[3:].mean() + 5 * known
    assert model.objective(terms).item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["classification"].mean().item() == pytest.approx(known.item(), rel=1e-5)
    right = (model.classify(images())[:3].argmax(1) == torch.arange(3)).float().mean()
    assert terms["accuracy"].mean().item() == pytest.approx(right.item())


class Exact(nn.Module):
    """Encoder or decoder of x = m_y + z + noise, with unit variances: what is right for it, by the class vector."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def test_with_the_true_posteriors_it_is_the_evidence():
    """log p(x) of a mixture of N(m_y, 2 I), for every draw."""
    means, shape = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]), (1, 1, 2)
    model = M2(shape, K, MLP([], "relu", False), Gaussian(1.0), 2, 2, alpha=0.0)
    model.condition.embedding.weight.data.copy_(means)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3))

    def log_joint(flat):  # log p(x, y), [B, K]
        squares = (flat.unsqueeze(1) - means).square().sum(2)
        return -squares / 4 - math.log(4 * math.pi) - math.log(K)

    half = torch.full((1, 2), math.log(0.5))
    model.encoder = Exact(lambda x, m: torch.cat([(x.flatten(1) - m) / 2, half.expand(len(x), 2)], 1))
    model.decoder = Exact(lambda z: (z[:, :2] + z[:, 2:]).view(-1, *shape))
    model.classifier = Exact(lambda x: log_joint(x.flatten(1)).log_softmax(1))
    model.estimator = "draws"
    terms = model.terms(Batch(x), torch.randn(K, 5, 2))
    torch.testing.assert_close(-(terms["reconstruction"] + terms["kl"]), log_joint(x.flatten(1)).logsumexp(1))


def test_it_learns_from_a_few_labels(train):
    """The accuracy is logged of held-out images; samples are of a class."""
    result = train("model=m2", "dataset.labelled=30", "dataset.classes=3", "trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert 0 <= result.summary["metrics"]["val/accuracy"] <= 1
    assert 0 <= result.summary["metrics"]["test/accuracy"] <= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model=vae", "dataset.labelled=30"], "dataset.labelled=30: VAE does not learn"),
        (["model=m2", "dataset.labelled=1"], "dataset.labelled=1: as many of each class"),
        (["model=m2", "dataset.labelled=100000"], "dataset.labelled=100000: as many of each class"),
        (["model=m2", "dataset.labelled=30", "dataset.classes=null"], "dataset.labelled=30: these data have no labels"),
        (["model=m2", "dataset.labelled=30", "dataset.balance=true"], "dataset.balance=true needs the labels"),
        (["model=m2", "dataset.classes=null"], "model=m2 needs labels"),
    ],
)
def test_what_cannot_be_is_refused(train, given, said):
    result = train(*given)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
