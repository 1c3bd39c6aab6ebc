import torch

from vaelab.datasets import Digits


def test_digits(common):
    data = Digits(**common)
    train, test = data.load()
    assert (len(train), len(test), train.shape) == (1438, 359, (1, 8, 8))
    assert train.images.min() == 0
    assert train.images.max() == 255
    assert data.num_classes == 10
    shares = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert shares.sub(0.2).abs().max() < 0.01


def test_grey_values_are_those_of_scikit_learn(common):
    from sklearn.datasets import load_digits

    train, test = Digits(**common).load()
    ours = torch.cat([train.images, test.images]).flatten(1).double()
    theirs = torch.as_tensor(load_digits().data) * 255 / 16
    assert (ours.sum() - theirs.sum()).abs() / theirs.sum() < 1e-3
    assert torch.cdist(ours, theirs).min(1).values.max() < 0.5 * 8 + 1e-3


def test_the_test_images_are_always_the_same_and_not_trained_on(common):
    train, test = Digits(**common).load()
    assert test.images.equal(Digits(**common | {"seed": 5, "split_seed": 5}).load()[1].images)
    distances = torch.cdist(test.images.flatten(1).double(), train.images.flatten(1).double())
    assert (distances == 0).sum() == 0
