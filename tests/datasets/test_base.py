import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import Fake, TensorSplit
from vaelab.datasets.base import ImageData, gather
from vaelab.datasets.sources import hold_out


def fake(common, **changes):
    options = {"image_shape": (1, 12, 10), "size": 200, "classes": 4} | common | changes
    data = Fake(**options)
    data.setup()
    return data


class Numbered(ImageData):
    """300 + 20 images, the i-th of which has the factor i."""

    def load(self):
        def part(first, count):
            images = torch.full((count, 1, 8, 8), 100, dtype=torch.uint8)
            return TensorSplit(images, factors=torch.arange(first, first + count)[:, None])

        return part(0, 300), part(1000, 20)


def numbered(common, **changes):
    data = Numbered(**common | changes)
    data.setup()
    return data


def ids(split):
    return set(split.factors[:, 0].tolist())


def test_validation_images_come_out_of_the_training_images(common):
    data = numbered(common)
    assert len(data.val) == 30
    assert ids(data.train) | ids(data.val) == set(range(300))
    assert not ids(data.train) & ids(data.val)
    assert ids(data.test) == set(range(1000, 1020))


@pytest.mark.parametrize(("val_size", "count"), [(0, 0), (0.5, 150), (1, 1), (25, 25)])
def test_val_size_is_a_fraction_below_one_and_else_a_count(common, val_size, count):
    data = numbered(common, val_size=val_size)
    assert (len(data.train), len(data.val)) == (300 - count, count)


def test_no_validation_means_no_loader(common, trainer):
    data = numbered(common, val_size=0)
    data.trainer = trainer
    assert data.val_dataloader() == []


def test_validation_images_depend_on_split_seed_alone(common):
    assert ids(numbered(common, seed=1).val) == ids(numbered(common, seed=2).val)
    assert ids(numbered(common, split_seed=1).val) != ids(numbered(common, split_seed=2).val)


def test_validation_larger_than_the_data_is_refused(common):
    with pytest.raises(UserError, match=r"dataset\.val_size=300"):
        numbered(common, val_size=300)


def test_a_reversed_pixel_range_is_refused(common):
    with pytest.raises(UserError, match=r"dataset\.pixel_range"):
        numbered(common, pixel_range=(1.0, 0.0))


def model_input(data, split=None):
    split = split or data.train
    return data.as_model_sees(split.batch(torch.arange(len(split)))).images


def test_pixel_range(common):
    unit = model_input(fake(common))
    assert unit.dtype == torch.float32
    assert 0 <= unit.min() < 0.1
    assert 0.5 < unit.max() <= 1
    torch.testing.assert_close(model_input(fake(common, pixel_range=(-1.0, 1.0))), 2 * unit - 1)


def test_threshold(common):
    grey = model_input(fake(common))
    data = fake(common, binarize="threshold")
    assert data.binary
    assert model_input(data).equal((grey > 0.5).float())


def test_static_binarisation_is_drawn_once_per_seed(common):
    first = fake(common, binarize="static")
    images = model_input(first)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert images.equal(model_input(first))
    assert images.equal(model_input(fake(common, binarize="static")))
    assert not images.equal(model_input(fake(common, binarize="static", seed=1)))


def test_dynamic_binarisation_is_drawn_anew_each_time(common):
    data = fake(common, binarize="dynamic")
    torch.manual_seed(0)
    one, other = model_input(data), model_input(data)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert not one.equal(other)


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_drawn_pixels_have_the_grey_value_as_their_mean(common, binarize):
    grey = model_input(fake(common, size=2000))
    torch.manual_seed(0)
    drawn = model_input(fake(common, size=2000, binarize=binarize))
    assert drawn.mean(0).sub(grey.mean(0)).abs().max() < 5 * 0.5 / 1800**0.5


@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_mean_image(common, pixel_range):
    data = fake(common, pixel_range=pixel_range)
    torch.testing.assert_close(data.mean_image, model_input(data).mean(0), atol=1e-5, rtol=0)


def test_setup_twice_changes_nothing(common):
    data = fake(common)
    train = data.train
    data.setup("fit")
    assert data.train is train


def test_training_batches_cover_the_epoch_and_change_with_it(common, trainer):
    data = numbered(common)
    data.trainer = trainer
    loader = data.train_dataloader()
    first = torch.cat([batch.factors for batch in loader])
    again = torch.cat([batch.factors for batch in loader])
    trainer.current_epoch = 1
    second = torch.cat([batch.factors for batch in loader])
    assert set(first[:, 0].tolist()) == ids(data.train)
    assert first.equal(again)
    assert not first.equal(second)


def test_training_resumes_in_the_middle_of_an_epoch(common, trainer):
    data = numbered(common)
    data.trainer = trainer
    loader = data.train_dataloader()
    whole = [batch.factors for batch in loader]
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.is_last_batch, progress.current.processed = False, 5
    assert torch.cat([batch.factors for batch in loader]).equal(torch.cat(whole[5:]))


def test_gather_reads_a_whole_split():
    split = TensorSplit(
        torch.randint(0, 256, (600, 3, 4, 4), dtype=torch.uint8), torch.arange(600), torch.arange(1200).view(600, 2)
    )
    held = gather(split)
    assert held.images.equal(split.images)
    assert held.labels is not None
    assert held.labels.equal(torch.arange(600))
    assert held.factors is not None
    assert held.factors.equal(torch.arange(1200).view(600, 2))


def test_hold_out_keeps_the_proportions_of_the_classes():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)[torch.randperm(160)]
    kept, aside = hold_out(labels, 16)
    assert torch.cat([kept, aside]).sort().values.equal(torch.arange(160))
    assert labels[aside].bincount().tolist() == [10, 5, 1]
    assert aside.equal(hold_out(labels, 16)[1])


IMAGES, LABELS = torch.rand(20, 1, 8, 8), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ((255 * IMAGES, LABELS), "images to train on values lie from"),
        ((IMAGES - 1, LABELS), "they must lie in [0, 1]"),
        ((IMAGES / 0, LABELS), "values lie from"),
        ((IMAGES, LABELS + 1), "labels lie from 1 to 2: num_classes=2 has 0 to 1"),
        ((IMAGES, LABELS - 1), "labels lie from -1 to 0"),
        ((IMAGES, LABELS[:9]), "there are 20, and 9 labels"),
        ((IMAGES, LABELS.float()), "labels are torch.float32 [20]: classes are [N] int64"),
        ((IMAGES, LABELS, LABELS[:3]), "there are 20, and 3 factors"),
        ((IMAGES[..., 1:], LABELS), "images to train on are (1, 8, 7), to test on (1, 8, 8): make them alike"),
        (None, "load gives a TensorSplit: two splits are wanted"),
    ],
)
def test_what_a_data_set_of_ones_own_may_give_is_refused(common, train, said):
    class Own(ImageData):
        num_classes = 2  # type: ignore[assignment]

        def load(self):
            test = TensorSplit(IMAGES, LABELS)
            return test if train is None else (TensorSplit(*train), test)

    with pytest.raises(UserError) as error:
        Own(**common).setup()
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
