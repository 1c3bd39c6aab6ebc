"""Class balance: an epoch has as many images of each class, as a function of seed and epoch."""

import pytest
import torch

from vaelab.datasets import Fake
from vaelab.datasets.classes import balanced_order

LABELS = torch.tensor([0] * 70 + [1] * 20 + [2] * 9 + [5])


def counts(order):
    return torch.bincount(LABELS[order]).tolist()


def test_every_class_comes_as_often_and_its_images_in_turn():
    order = balanced_order(LABELS, seed=3, epoch=0)
    assert sorted(counts(order)) == [0, 0, 25, 25, 25, 25]
    seen = torch.bincount(order, minlength=100)
    for label in (0, 1, 2, 5):
        of_class = seen[label == LABELS]
        assert of_class.max() - of_class.min() <= 1


def test_what_is_left_over_goes_to_classes_by_chance():
    labels = torch.arange(100) % 7
    found = {tuple(torch.bincount(labels[balanced_order(labels, 0, epoch)]).tolist()) for epoch in range(20)}
    assert all(sorted(c) == [14] * 5 + [15] * 2 for c in found)
    assert len(found) > 5


def test_the_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(0)
    first = balanced_order(LABELS, 1, 2)
    state = torch.get_rng_state()
    assert torch.equal(balanced_order(LABELS, 1, 2), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(balanced_order(LABELS, 1, 3), first)
    assert not torch.equal(balanced_order(LABELS, 2, 2), first)
    half = counts(first[:50])
    assert min(half[0], half[1], half[2], half[5]) >= 5  # mixed, not class after class


def test_the_loader_deals_it_out(common, trainer):
    data = Fake(image_shape=(1, 8, 8), size=103, classes=4, **common | {"balance": True, "val_size": 0})
    data.setup()
    data.trainer = trainer
    seen = torch.cat([batch.labels for batch in data.train_dataloader()])
    assert torch.bincount(seen).max() - torch.bincount(seen).min() <= 1
    assert len(seen) == 103


def test_data_without_classes_cannot_be_balanced(train):
    result = train("dataset.balance=true", "dataset.classes=null")
    assert result.code == 2
    assert "dataset.balance=true" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_a_balanced_run_trains(train, model):
    assert train(f"model={model}", "dataset.balance=true", "trainer.max_epochs=1").code == 0
