import pytest
import torch

from vaelab.datasets import Fake


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (3, 20, 33)])
def test_any_shape(common, shape):
    data = Fake(image_shape=shape, size=30, classes=3, **common)
    data.setup()
    assert data.shape == shape
    assert len(data.train) + len(data.val) == 30
    assert len(data.test) == 6
    assert data.num_classes == 3


def test_images_are_the_same_every_time_and_the_class_says_where_the_blob_lies(common):
    options = {"image_shape": (1, 28, 28), "size": 400, "classes": 4}
    train, test = Fake(**options, **common).load()
    assert train.images.equal(Fake(**options, **common | {"seed": 9}).load()[0].images)
    means = torch.stack([train.images[train.labels == k].float().mean(0).flatten() for k in range(4)])
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95


def test_without_classes(common):
    data = Fake(image_shape=(1, 8, 8), size=10, classes=None, **common)
    assert data.num_classes is None
    assert data.load()[0].labels is None
