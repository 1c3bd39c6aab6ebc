import io

import pytest
import torch

from vaelab.core.means import Means

SIZES = [7, 7, 2]  # a short last batch


def data():
    """Per-image figures of 16 images: two scalars, and a vector of five components."""
    torch.manual_seed(0)
    return torch.randn(16, dtype=torch.float64), torch.rand(16, dtype=torch.float64), torch.randn(16, 5)


def fed(parts):
    """Means over batches of (loss, kl, vector)."""
    means = Means()
    for loss, kl, vector in parts:
        means.update({"loss": loss.mean(), "kl": kl.mean()}, {"per_dim": vector.sum(0)}, len(loss))
    return means


def batches(sizes=SIZES):
    return list(zip(*(column.split(sizes) for column in data()), strict=True))


def assert_exact(means):
    loss, kl, vector = data()
    values, vectors = means.compute()
    assert values == pytest.approx({"loss": loss.mean().item(), "kl": kl.mean().item()}, rel=1e-12)
    torch.testing.assert_close(vectors["per_dim"], vector.double().mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sizes", [[16], SIZES, [1] * 16, [15, 1]])
def test_means_are_over_images_whatever_the_batches(sizes):
    assert_exact(fed(batches(sizes)))


def test_the_mean_over_images_is_not_the_mean_of_the_batches():
    values, _ = fed(batches()).compute()
    of_batches = torch.stack([loss.mean() for loss, _, _ in batches()]).mean().item()
    assert abs(values["loss"] - of_batches) > 0.01


def test_vectors_keep_their_shapes_and_names():
    means = Means()
    means.update(
        {"a": torch.tensor(1.0)}, {"wide": torch.full((2, 3), 8.0), "flat": torch.arange(4.0), "one": torch.ones(1)}, 4
    )
    _, vectors = means.compute()
    assert list(vectors) == ["wide", "flat", "one"]
    assert torch.equal(vectors["wide"], torch.full((2, 3), 2.0).double())
    assert torch.equal(vectors["flat"], torch.arange(4.0).double() / 4)
    assert vectors["one"].tolist() == [0.25]


def test_names_keep_their_order():
    means = Means()
    for _ in range(3):
        means.update({name: torch.tensor(float(i)) for i, name in enumerate("zmab")}, {}, 2)
    values, vectors = means.compute()
    assert list(values.items()) == [("z", 0.0), ("m", 1.0), ("a", 2.0), ("b", 3.0)]
    assert vectors == {}


def test_sums_are_of_double_precision():
    means = Means()
    means.update({"x": torch.tensor(1e8)}, {"v": torch.tensor([1e8])}, 1)
    for _ in range(100):
        means.update({"x": torch.tensor(1.0)}, {"v": torch.tensor([1.0])}, 1)
    values, vectors = means.compute()
    assert values["x"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)
    assert vectors["v"].item() == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_nothing_seen_gives_nothing():
    means = Means()
    assert means.compute() == ({}, {})
    means.merge(Means())
    assert means.compute() == ({}, {})
    assert means.count == 0


def test_computing_changes_nothing():
    means = fed(batches())
    assert means.compute()[0] == means.compute()[0]
    assert_exact(means)


def test_clear_forgets_all():
    means = fed([(torch.full((5,), 1e6), torch.full((5,), 1e6), torch.full((5, 5), 1e6))])
    means.clear()
    assert means.count == 0
    for loss, kl, vector in batches():
        means.update({"loss": loss.mean(), "kl": kl.mean()}, {"per_dim": vector.sum(0)}, len(loss))
    assert_exact(means)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_merging_windows_is_seeing_all_batches(cut):
    whole, rest = fed(batches()[:cut]), fed(batches()[cut:])
    whole.merge(rest)
    assert whole.count == 16
    assert_exact(whole)


def test_merging_leaves_the_other_alone_and_shares_nothing_with_it():
    window, epoch = fed(batches()[:2]), Means()
    before = window.compute()
    epoch.merge(window)
    epoch.merge(fed(batches()[2:]))
    assert window.compute()[0] == before[0]
    window.clear()
    assert_exact(epoch)


def test_values_carry_no_gradient():
    means = Means()
    weight = torch.tensor(2.0, requires_grad=True)
    means.update({"x": weight * 3}, {"v": weight[None] * 3}, 1)
    means.compute()
    assert not means.sums.requires_grad
    assert not means.vectors["v"].requires_grad


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_saved_sums_go_on_where_they_were(cut):
    file = io.BytesIO()
    torch.save(fed(batches()[:cut]).state(), file)
    file.seek(0)
    means = Means()
    means.restore(torch.load(file, weights_only=True))
    for loss, kl, vector in batches()[cut:]:
        means.update({"loss": loss.mean(), "kl": kl.mean()}, {"per_dim": vector.sum(0)}, len(loss))
    assert_exact(means)


def test_a_state_is_a_copy():
    means = fed(batches()[:1])
    state = means.state()
    sums, per_dim = state["sums"].clone(), state["vectors"]["per_dim"].clone()
    means.merge(fed(batches()[1:]))
    assert torch.equal(state["sums"], sums)
    assert torch.equal(state["vectors"]["per_dim"], per_dim)
    assert state["count"] == SIZES[0]


def test_restored_sums_move_to_the_device_of_what_is_merged_in():
    """A resumed run restores its sums on the CPU and merges windows of the training device; `meta` stands for it."""
    restored, window = Means(), fed(batches()[1:])
    restored.restore(fed(batches()[:1]).state())
    window.compute()
    window.sums = window.sums.to("meta")
    window.vectors = {name: value.to("meta") for name, value in window.vectors.items()}
    restored.merge(window)
    assert restored.sums.device.type == "meta"
    assert restored.vectors["per_dim"].device.type == "meta"
