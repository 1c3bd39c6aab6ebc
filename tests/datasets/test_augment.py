"""Augmentation changes training images alone, each by draws of its own, and the same at a resume."""

import pytest
import torch

from tests.test_conf import composed, options
from tests.test_resume import interrupted, same_weights
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.datasets import Fake
from vaelab.nn.augment import Augment

OFF = {"flip": 0.0, "flip_vertical": 0.0, "crop": 1.0, "shift": 0}


def made(x, **changes):
    torch.manual_seed(0)
    return Augment(**OFF | changes)(x)


@pytest.fixture
def x():
    return torch.rand(64, 3, 6, 7, generator=torch.Generator().manual_seed(1))


def test_off_is_off(x):
    assert torch.equal(made(x), x)


@pytest.mark.parametrize(("name", "axis"), [("flip", 3), ("flip_vertical", 2)])
def test_flips_are_of_the_share_of_images_that_was_asked_for(x, name, axis):
    assert torch.equal(made(x, **{name: 1.0}), x.flip(axis))
    flipped = (made(x.repeat(40, 1, 1, 1), **{name: 0.3}) == x.flip(axis).repeat(40, 1, 1, 1)).flatten(1).all(1)
    assert flipped.double().mean().item() == pytest.approx(0.3, abs=0.03)


def test_a_shift_moves_all_channels_alike_and_black_comes_in():
    x = torch.zeros(500, 2, 9, 9)
    x[:, :, 4, 4] = torch.tensor([0.5, 1.0])
    shifted = made(x, shift=2)
    places = shifted[:, 1].flatten(1).argmax(1)
    found = {(int(p) // 9 - 4, int(p) % 9 - 4) for p in places}
    assert found == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert torch.equal(shifted[:, 0], shifted[:, 1] / 2)
    assert torch.equal(shifted.sum((2, 3)), x.sum((2, 3)))
    edge = torch.ones(200, 1, 4, 4)
    assert (made(edge, shift=3)[:, 0].flatten(1).sum(1) == 16).double().mean() < 0.1


def test_a_crop_is_a_part_enlarged():
    """Of a ramp it is a ramp: less steep by the side's fraction, and inside the old values."""
    ramp = torch.arange(16.0).div(15).expand(300, 1, 16, 16)
    cropped = made(ramp, crop=0.5)
    slopes = 15 * (cropped[:, 0, 8, 9] - cropped[:, 0, 8, 8])
    assert slopes.min().item() == pytest.approx(0.5, abs=0.02)
    assert slopes.max().item() == pytest.approx(1.0, abs=0.02)
    assert cropped.min() >= 0
    assert cropped.max() <= 1
    assert cropped[:, 0, 8, 8].std() > 0.03  # its place is drawn, too


def test_images_are_changed_each_by_itself(x):
    same = x[:1].expand(64, -1, -1, -1)
    changed = made(same, flip=0.5, crop=0.8, shift=2)
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 60


@pytest.mark.parametrize("option", [name for name in options("augment") if name != "none"])
def test_every_option_keeps_shape_and_range(x, option):
    torch.manual_seed(0)
    changed = build(composed(f"augment={option}")["augment"])(x)
    assert changed.shape == x.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, x)


def test_training_images_are_changed_and_others_are_not(common, trainer):
    data = Fake(image_shape=(1, 12, 12), size=100, classes=4, **common | {"binarize": "static"})
    data.setup()
    data.trainer, data.augment = trainer, Augment(**OFF | {"crop": 0.6})
    batch = data.train.batch(torch.arange(50))
    plain = data.as_model_sees(batch).images
    trainer.training = False
    assert torch.equal(data.on_after_batch_transfer(batch, 0).images, plain)
    trainer.training = True
    changed = data.on_after_batch_transfer(batch, 0).images
    assert not torch.equal(changed, plain)
    assert set(changed.unique().tolist()) == {0.0, 1.0}  # static images stay binary


def test_a_run_goes_on_with_the_same_changes(train, monkeypatch):
    given = ["augment=all", "dataset.balance=true", "trainer.max_epochs=3"]
    whole = train(*given)
    assert whole.code == 0, whole.err
    cut = interrupted(train, monkeypatch, "on_train_batch_end", 4, *given).run
    assert train(f"resume={cut}", "~callbacks.stop").code == 0
    assert same_weights(cut, whole.run)
    plain = train("dataset.balance=true", "trainer.max_epochs=3")
    assert not same_weights(plain.run, whole.run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment=flips", "dataset.image_shape=[1,1,16]"], "augment: it moves pixels"),
        (["augment=shifts", "augment.shift=8"], "augment.shift=8: images of 8x8"),
        (["augment=crops", "augment.crop=0"], "augment.crop=0"),
        (["augment=flips", "augment.flip=2"], "augment.flip=2"),
    ],
)
def test_what_cannot_be_is_refused(train, words, said):
    result = train(*words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_table_is_no_picture():
    with pytest.raises(UserError, match="no complete pictures"):
        Augment(**OFF | {"flip": 0.5}).check((1, 8, 8), pictures=False)
