"""Labels of some training images only: which, in which order, and what a model is told."""

import pytest
import torch

from vaelab.datasets import Fake
from vaelab.datasets.classes import EVERY, chosen, mixed_order, shares

LABELS = torch.arange(800) % 4
KNOWN = chosen(LABELS, 22, 0)


def test_those_with_a_label_are_as_many_of_each_class():
    counts = torch.bincount(LABELS[KNOWN])
    assert sorted(counts.tolist()) == [5, 5, 6, 6]
    assert torch.equal(chosen(LABELS, 22, 0), KNOWN)
    assert not torch.equal(chosen(LABELS, 22, 1), KNOWN)


def test_one_in_so_many_of_any_stretch_of_an_epoch_has_a_label():
    order = mixed_order(KNOWN, seed=3, epoch=5)
    with_label = KNOWN[order]
    assert len(order) == 800
    assert all(with_label[start : start + 64].sum() in (7, 8, 9) for start in range(0, 737))
    assert with_label.float().mean().item() == pytest.approx(shares(KNOWN).places) == 1 / EVERY
    assert shares(KNOWN).images == 22 / 800
    seen = torch.bincount(order, minlength=800)
    assert seen[~KNOWN].max() == 1
    assert seen[KNOWN].max() - seen[KNOWN].min() <= 1


def test_with_many_labels_every_image_comes_once():
    known = chosen(LABELS, 400, 0)
    assert torch.equal(mixed_order(known, 0, 0).sort().values, torch.arange(800))
    assert shares(known).places == shares(known).images == 0.5


def test_the_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), mixed_order(KNOWN, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mixed_order(KNOWN, 1, 2), first)
    assert not torch.equal(mixed_order(KNOWN, 1, 3), first)
    assert not torch.equal(mixed_order(KNOWN, 2, 2), first)


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_training_is_not_told_the_other_labels_and_measures_are(common, trainer, storage):
    more = {"labelled": 20, "storage": storage, "num_workers": 0}
    data = Fake(image_shape=(1, 8, 8), size=203, classes=4, **common | more)
    data.setup()
    data.trainer = trainer
    batches = list(data.train_dataloader())
    labels = torch.cat([batch.labels for batch in batches])
    assert all(batch.labelled == shares(data._known) for batch in batches)
    assert (labels >= 0).sum().item() == round(shares(data._known).places * len(data.train))
    assert all((batch.labels >= 0).any() and (batch.labels < 0).any() for batch in batches if len(batch.labels) > 8)
    everything = torch.arange(len(data.train))
    assert (data.train.batch(everything).labels >= 0).all()
    assert all((batch.labels >= 0).all() for batch in data.val_dataloader())
