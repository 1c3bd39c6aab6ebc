import pickle

import pytest
import torch

from vaelab.datasets.classes import PartlyLabelled
from vaelab.datasets.loaders import IndexBatches, Newest, ResidentLoader, batch_bounds, epoch_order, streaming_loader
from vaelab.datasets.splits import Batch, TensorSplit, moments


def indices(batches):
    return [place.index for place in batches]


def tensor_split(count=50):
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return TensorSplit(images, torch.arange(count) % 3, torch.arange(count)[:, None])


def test_moments_are_those_of_the_values_that_are_there():
    torch.manual_seed(0)
    images = 3 + 2 * torch.randn(500, 1, 2, 3)
    images[torch.rand(images.shape) < 0.2] = torch.nan
    mean, spread = moments(images.split(130))
    expected = images.double().nanmean(0)
    torch.testing.assert_close(mean, expected.float())
    assert spread == pytest.approx((images - expected).square().nanmean().sqrt().item(), rel=1e-6)
    assert moments(torch.ones(4, 1, 2, 2).split(2))[1] == 0


def test_epoch_order_is_a_permutation_and_a_function_of_its_arguments():
    order = epoch_order(1000, seed=3, epoch=5)
    assert order.sort().values.equal(torch.arange(1000))
    torch.manual_seed(123)
    assert order.equal(epoch_order(1000, seed=3, epoch=5))
    assert not order.equal(epoch_order(1000, seed=3, epoch=6))
    assert not order.equal(epoch_order(1000, seed=4, epoch=5))


def test_epoch_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    epoch_order(10, 0, 0)
    assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize("size", [1, 7, 64, 65, 66, 129, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_world_size_sees_each_image_once_in_the_same_batches(size, world_size):
    order = epoch_order(size, 0, 0)
    ranks = [indices(IndexBatches(lambda: (order, 0), size, 16, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = torch.cat([torch.cat(parts) for parts in zip(*ranks, strict=True)])
    assert seen.equal(order)


def test_no_rank_gets_a_batch_of_one_image():
    for size in range(8, 200):
        for world_size in (1, 2, 3):
            for rank in range(world_size):
                batches = IndexBatches(lambda size=size: (torch.arange(size), 0), size, 4, rank, world_size)
                assert min(map(len, indices(batches))) >= 2, (size, world_size, rank)


def test_a_small_remainder_joins_the_batch_before_it():
    assert batch_bounds(33, 16, 1) == [(0, 16), (16, 33)]
    assert batch_bounds(34, 16, 1) == [(0, 16), (16, 32), (32, 34)]


def test_a_resumed_epoch_goes_on_with_the_batch_after_the_last_one_done():
    order = epoch_order(100, 0, 0)
    whole = indices(IndexBatches(lambda: (order, 0), 100, 16))
    rest = indices(IndexBatches(lambda: (order, 4), 100, 16))
    assert torch.cat(rest).equal(torch.cat(whole[4:]))


def test_tensor_split_gives_images_with_their_own_labels_and_factors():
    split = tensor_split().subset(torch.tensor([5, 40, 7]))
    batch = split.batch(torch.tensor([2, 0]))
    assert batch.images[:, 0, 0, 0].tolist() == [7, 5]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 2]
    assert batch.factors is not None
    assert batch.factors[:, 0].tolist() == [7, 5]
    assert split.nbytes == 3 * 4


def test_tensor_split_refuses_types_without_a_white():
    with pytest.raises(ValueError, match="uint8"):
        TensorSplit(torch.zeros(2, 1, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streaming_gives_what_resident_gives(num_workers):
    split, order = tensor_split(), epoch_order(50, 0, 0)
    batches = IndexBatches(lambda: (order, 0), 50, 16)
    resident = list(ResidentLoader(split, batches))
    streamed = list(streaming_loader(split, batches, num_workers, pin_memory=False))
    assert len(resident) == len(streamed) == 4
    for one, other in zip(resident, streamed, strict=True):
        assert isinstance(other, Batch)
        assert one.images.equal(other.images)
        assert one.labels.equal(other.labels)


@pytest.mark.parametrize("known", [None, torch.arange(50) % 3 == 0])
@pytest.mark.parametrize("shared", [False, True])
def test_batches_that_are_read_at_once_are_those_read_one_by_one(known, shared):
    split, order, newest = tensor_split(), epoch_order(50, 0, 0), Newest() if shared else None
    split = split if known is None else PartlyLabelled(split, known)

    def loader(**options):
        return ResidentLoader(split, IndexBatches(lambda: (order, 1), 50, 8), newest=newest, **options)

    singly, at_once = list(loader()), list(loader(ahead=4))
    assert [len(batch.images) for batch in at_once] == [8, 8, 8, 8, 8, 2]  # the first was done before
    for one, other in zip(singly, at_once, strict=True):
        assert all(a.equal(b) for a, b in zip(one[:3], other[:3], strict=True))
        assert one[3:] == other[3:]
    seen = list(loader(seen=lambda batch: batch._replace(images=batch.images + 1), ahead=4))
    assert all(a.images.equal(b.images + 1) for a, b in zip(seen, singly, strict=True))


def test_batches_and_splits_survive_pickling():
    split = pickle.loads(pickle.dumps(tensor_split()))
    assert split.batch(torch.tensor([3])).images.flatten().tolist() == [3] * 4
