import pytest
import torch
from torch import nn

from vaelab.evaluation.findings.diagnosis import diagnose_evaluation
from vaelab.evaluation.metrics.conditional import (
    class_accuracy,
    label_in_codes,
    swap_effects,
)
from vaelab.nn.posteriors import DiagonalGaussian

RANGE = (-1.0, 2.0)
CLASSES = 4


def draw(levels, labels):
    """Images [B, 1, 8, 8]: the quadrant of the label at a level, [B], the others black; black is -1."""
    images = torch.full((len(labels), CLASSES, 16), -1.0)
    images[torch.arange(len(labels)), labels] = levels[:, None].float()
    return assemble(images)


def assemble(quadrants):
    """[B, 4, 16] -> [B, 1, 8, 8]."""
    return quadrants.view(-1, 2, 2, 4, 4).permute(0, 1, 3, 2, 4).reshape(-1, 1, 8, 8)


def quadrants(images):
    """The level of each quadrant, [B, 4]."""
    return images.view(-1, 2, 4, 2, 4).mean((2, 4)).flatten(1)


class Judge:
    """Sees the brightest quadrant. The top left pixel may be lit in any image: it looks at means."""

    def classify(self, images):
        assert images.min() >= 0
        assert images.max() <= 1
        return quadrants(images).argmax(1)


class Likelihood:
    def mean(self, raw):
        return raw


class UsesBoth(nn.Module):
    """z is the level of the quadrant that the label names."""

    shape, num_classes, device, likelihood = (1, 8, 8), CLASSES, torch.device("cpu"), Likelihood()
    dimensions = 1

    def encode(self, x, labels):
        assert not self.training
        z = quadrants(x).gather(1, labels[:, None])
        return DiagonalGaussian(z, torch.full_like(z, -3.0))

    def decode(self, z, labels):
        return draw(z[:, 0], labels)

    def sample(self, count, labels):
        return self.decode(torch.rand(count, self.dimensions) + 0.5, labels)


class IgnoresZ(UsesBoth):
    def decode(self, z, labels):
        return draw(torch.ones(len(z)), labels)


class IgnoresLabel(UsesBoth):
    """z is the level of each quadrant, and so holds the label."""

    dimensions = 4

    def encode(self, x, labels):
        z = quadrants(x)
        return DiagonalGaussian(z, torch.full_like(z, -3.0))

    def decode(self, z, labels):
        return assemble(z[:, :, None].expand(-1, -1, 16))


@pytest.fixture(scope="module")
def data():
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (1200,), generator=noise)
    levels = torch.rand(1200, generator=noise) + 0.5
    return draw(levels, labels), labels, levels


def effects(model, data, seed=0, binary=False):
    return swap_effects(model, Judge(), data[0], data[1], RANGE, binary, seed)


def accuracy(model, per_class=500):
    return class_accuracy(model, Judge(), per_class, RANGE, False, seed=0)


def ailments(model, swaps):
    """What the diagnosis makes of the audit."""
    figures = swaps | {"sample_accuracy": accuracy(model).mean().item(), "classifier_accuracy": 1.0}
    figures = {f"conditional/{name}": value for name, value in (figures | {"chance": 1 / CLASSES}).items()}
    return [finding.code for finding in diagnose_evaluation(figures | {"likelihood/kl": 3.0}, {})]


def test_a_model_that_uses_both(data):
    images, labels, levels = data
    model = UsesBoth()
    assert accuracy(model).tolist() == [1.0] * CLASSES
    figures = effects(model, data)
    assert figures["reconstruction_mse"] == pytest.approx(0, abs=1e-12)
    # two of four quadrants change, between -1 and the level
    assert figures["label_swap_mse"] == pytest.approx((levels + 1).square().mean().item() / 2, rel=1e-5)
    assert figures["label_swap_followed"] == 1.0
    # one of four changes between two independent levels: twice the variance of a level
    assert figures["latent_swap_mse"] == pytest.approx(2 * levels.var().item() / 4, rel=0.1)
    value, chance = label_in_codes(model.eval().encode(images, labels).code, labels, seed=0)
    assert value == pytest.approx(1 / CLASSES, abs=0.07)  # three standard errors of 600 images
    assert chance == pytest.approx(1 / CLASSES, abs=0.07)
    assert ailments(model, figures) == []


def test_a_model_that_ignores_z(data):
    levels = data[2]
    figures = effects(IgnoresZ(), data)
    error = (levels - 1).square().mean().item() / 4
    assert figures["reconstruction_mse"] == pytest.approx(error, rel=1e-5)
    assert figures["latent_swap_mse"] == figures["latent_swap_ratio"] == 0.0
    assert figures["label_swap_mse"] == pytest.approx(2.0)  # (1 - -1)^2 in two of four quadrants
    assert figures["label_swap_ratio"] == pytest.approx(2.0 / error, rel=1e-5)
    assert ailments(IgnoresZ(), figures) == ["z_ignored"]


def test_a_model_that_ignores_the_label(data):
    images, labels, _ = data
    model = IgnoresLabel()
    per_class = accuracy(model)
    assert per_class.tolist() == pytest.approx([1 / CLASSES] * CLASSES, abs=0.06)
    figures = effects(model, data)
    assert figures["label_swap_mse"] == 0.0
    assert figures["label_swap_followed"] == 0.0  # the picture keeps its class, which is not the new one
    assert figures["latent_swap_ratio"] > 1
    assert label_in_codes(model.eval().encode(images, labels).code, labels, seed=0)[0] > 0.99
    assert ailments(model, figures) == ["label_ignored"]


def test_accuracies_are_told_by_class():
    class NoThree(UsesBoth):
        def decode(self, z, labels):
            return draw(z[:, 0], torch.where(labels == 3, 0, labels))

    assert accuracy(NoThree(), per_class=7).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_binary_data_is_judged_by_drawn_pixels(data):
    seen = []

    class Watching(Judge):
        def classify(self, images):
            seen.extend(images.unique().tolist())
            return super().classify(images)

    class_accuracy(UsesBoth(), Watching(), 50, RANGE, True, seed=0)
    swap_effects(UsesBoth(), Watching(), data[0], data[1], RANGE, True, seed=0)
    assert set(seen) == {0.0, 1.0}


def test_the_audit_is_a_function_of_its_arguments_and_leaves_the_rest_alone(data):
    model = IgnoresLabel().train()
    before = torch.get_rng_state()
    first = effects(model, data, seed=3, binary=True), accuracy(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    torch.rand(1)
    again = effects(model, data, seed=3, binary=True), accuracy(model)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert effects(model, data, seed=4)["latent_swap_mse"] != first[0]["latent_swap_mse"]


def test_new_labels_are_the_others_and_nobody_is_its_own_partner(data):
    from vaelab.evaluation.metrics.conditional import _swaps

    labels = data[1]
    new, partners = _swaps(labels, CLASSES, seed=0)
    shares = torch.bincount((new - labels) % CLASSES, minlength=CLASSES) / len(labels)
    assert shares[0] == 0
    assert shares[1:].tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    assert partners.sort().values.tolist() == list(range(1200))
    assert (partners != torch.arange(1200)).all()


def test_the_probe_is_asked_about_images_it_has_not_seen():
    """Wide noise codes let a probe learn a training set by heart."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=noise)
    value, chance = label_in_codes(torch.randn(200, 150, generator=noise), labels, seed=0)
    assert value == pytest.approx(0.5, abs=0.15)
    assert chance == pytest.approx(0.5, abs=0.15)


def test_chance_is_the_most_frequent_class():
    labels = (torch.arange(1000) % 10 == 0).long()
    value, chance = label_in_codes(torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)), labels, seed=0)
    assert chance == pytest.approx(0.9, abs=0.03)
    assert value == pytest.approx(chance, abs=0.02)


def test_bad_input_is_refused(data):
    images, labels, _ = data
    with pytest.raises(ValueError, match="labels"):
        swap_effects(UsesBoth(), Judge(), images, labels[:-1], RANGE, False, 0)
    with pytest.raises(ValueError, match="labels"):
        label_in_codes(torch.zeros(3, 1200), labels, 0)
    with pytest.raises(ValueError, match="codes"):
        label_in_codes(torch.full((1200, 3), torch.nan), labels, 0)
    with pytest.raises(ValueError, match="codes"):
        label_in_codes(torch.zeros(1200, 3, 2), labels, 0)
    with pytest.raises(ValueError, match="one value"):
        label_in_codes(torch.zeros(1200, 3), torch.zeros_like(labels), 0)
