import time

import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.datasets import Sprites
from vaelab.datasets.sources import indices_to_factors
from vaelab.datasets.sprites import (
    FACTORS,
    TOTAL,
    SpriteSplit,
    draw,
    draw_prototypes,
    windows_by_copy,
    windows_by_gather,
)


def sprites(common, **changes):
    return Sprites(**common | {"test_size": 1000, "train_size": None} | changes)


def index_of(shape, scale, orientation, x, y):
    return (((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y


def test_there_are_as_many_as_in_dsprites(common):
    train, test = sprites(common).load()
    assert len(SpriteSplit()) == TOTAL == 737_280
    assert (len(train), len(test)) == (736_280, 1000)
    assert torch.cat([train.index, test.index]).sort().values.equal(torch.arange(TOTAL))
    assert train.nbytes == 0


def test_factors_are_those_of_the_index():
    split = SpriteSplit()
    batch = split.batch(torch.tensor([index_of(2, 5, 39, 31, 30), index_of(1, 0, 3, 2, 1)]))
    assert batch.factors is not None
    assert batch.factors.tolist() == [[2, 5, 39, 31, 30], [1, 0, 3, 2, 1]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 1]
    everything = indices_to_factors(torch.arange(TOTAL), FACTORS)
    assert everything.max(0).values.tolist() == [size - 1 for size in FACTORS.values()]
    assert len(everything.unique(dim=0)) == TOTAL


def test_images_are_binary_and_move_by_one_pixel_per_position():
    split = SpriteSplit()
    index = torch.tensor([index_of(2, 3, 7, 0, 0), index_of(2, 3, 7, 1, 0), index_of(2, 3, 7, 0, 5)])
    corner, right, down = split.batch(index).images[:, 0]
    assert set(corner.unique().tolist()) == {0, 255}
    assert right.equal(corner.roll(1, dims=1))
    assert down.equal(corner.roll(5, dims=0))


@pytest.mark.parametrize("position", [(0, 0), (31, 0), (0, 31), (31, 31), (13, 21)])
def test_every_sprite_lies_wholly_within_the_image(position):
    x, y = position
    prototypes = draw_prototypes()
    factors = indices_to_factors(torch.arange(720), {"shape": 3, "scale": 6, "orientation": 40})
    factors = torch.cat([factors, torch.tensor([[x, y]]).expand(720, 2)], dim=1)
    images = draw(SpriteSplit()._tape, factors)[:, 0]
    assert images[:, y : y + 33, x : x + 33].equal(prototypes)
    assert images.long().sum() == prototypes.long().sum()


def test_no_orientation_is_there_twice():
    """A square comes back after a quarter turn, an ellipse after half a turn, a heart after a whole one."""
    prototypes = draw_prototypes().flatten(1).view(3, 6, 40, -1)
    for shape, distinct in enumerate((10, 20, 40)):
        for scale in range(6):
            assert len(prototypes[shape, scale].unique(dim=0)) == distinct
    assert len(prototypes.flatten(0, 2).unique(dim=0)) == 6 * (10 + 20 + 40)


def test_area_grows_with_scale_and_hardly_depends_on_orientation():
    area = (draw_prototypes() > 0).double().sum((1, 2)).view(3, 6, 40)
    mean = area.mean(2)
    assert (mean.diff(dim=1) > 0).all()
    torch.testing.assert_close(mean[:, 0] / mean[:, 5], torch.full((3,), 0.25).double(), atol=0.02, rtol=0)
    assert ((area - mean[:, :, None]).abs() / mean[:, :, None]).max() < 0.15


def test_both_ways_of_reading_the_tape_agree():
    """One is for CPUs, the other for all other devices."""
    tape = SpriteSplit()._tape
    start = torch.cat([torch.randint(0, len(tape) - 4095, (64,)), torch.tensor([0, len(tape) - 4096])])
    assert windows_by_copy(tape, start).equal(windows_by_gather(tape, start))


def test_train_size_limits_the_images(common):
    data = sprites(common, train_size=500)
    train, test = data.load()
    assert len(train) == 500
    assert not set(train.index.tolist()) & set(test.index.tolist())
    data.setup()
    assert (len(data.train), len(data.val)) == (450, 50)
    assert data.mean_image.shape == (1, 64, 64)
    assert data.factor_sizes == FACTORS


def test_sizes_that_ask_for_too_much_are_refused(common):
    with pytest.raises(UserError, match=r"dataset\.test_size"):
        sprites(common, test_size=TOTAL).load()
    with pytest.raises(UserError, match=r"dataset\.train_size"):
        sprites(common, train_size=TOTAL).load()


def test_static_binarisation_is_refused_as_nothing_is_stored(common):
    with pytest.raises(UserError, match=r"dataset\.binarize=static"):
        sprites(common, binarize="static").setup()


def test_drawing_is_fast():
    """Measured: 3 million a second on one core. A per-image loop draws some ten thousand."""
    split, index = SpriteSplit(), torch.randint(0, TOTAL, (100, 256))
    split.batch(index[0])
    start = time.perf_counter()
    for part in index:
        split.batch(part)
    assert 25_600 / (time.perf_counter() - start) > 100_000


def test_they_are_binary_data_whatever_the_option(common):
    """So that a Bernoulli likelihood of them is a probability."""
    assert sprites(common).binary
    assert sprites(common, binarize="threshold").binary
