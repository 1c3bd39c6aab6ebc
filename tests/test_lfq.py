"""Lookup-free quantisation and its entropy term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vaelab
from tests.test_conf import composed
from vaelab.core.config import check
from vaelab.core.distributed import Share
from vaelab.core.errors import UserError
from vaelab.nn.quantizers import lfq
from vaelab.nn.quantizers.lfq import LFQ, entropy_of_mean, mean_joint


def book_of(bits: int, weight: float = 1.0, inverse_temperature: float = 1.0, rotation: bool = False) -> LFQ:
    return LFQ(2**bits, bits, bits, weight, inverse_temperature, rotation).train()


def drawn(seed: int, bits: int) -> Tensor:
    return torch.randn(2, bits, 4, 3, generator=torch.Generator().manual_seed(seed))


def probabilities(z: Tensor, book: LFQ) -> Tensor:
    """p(c|z) written out over all codes, [N, K]."""
    rows = z.movedim(1, -1).flatten(0, -2)
    squares = (rows[:, None] - book.vectors.to(z.dtype)).square().sum(2)
    return (-book.inverse_temperature * squares).softmax(1)


def brute_force(z: Tensor, book: LFQ) -> Tensor:
    """Mean of E[H(p(c|z))] - H(E[p(c|z)]) times the positions of an image, by all codes."""
    p = probabilities(z, book)
    return z[0, 0].numel() * (torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum())


@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_the_codes_are_all_signs_and_the_nearest_is_chosen(bits):
    book, z = book_of(bits), drawn(0, bits)
    assert book.vectors.shape == (2**bits, bits)
    assert len(book.vectors.unique(dim=0)) == 2**bits
    assert set(book.vectors.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(book.choose(book.vectors), torch.arange(2**bits))
    out = book(z)
    torch.testing.assert_close(out.vectors, z.sign())
    assert torch.equal(book.search(z), out.indices)
    torch.testing.assert_close(out.rows, z.tanh().movedim(1, -1).flatten(0, -2))
    assert torch.equal(out.chosen, torch.cdist(out.rows.double(), book.vectors.double()).argmin(1))


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
@pytest.mark.parametrize("inverse_temperature", [0.1, 1.0])
def test_the_entropy_term_and_its_gradient_are_those_of_all_codes(bits, inverse_temperature):
    book = book_of(bits, 0.7, inverse_temperature)
    z = drawn(0, bits).double().requires_grad_()
    found = book.codebook_loss(z, z, None).mean()
    expected = 0.7 * brute_force(z, book)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))


def test_mean_probabilities_are_in_the_order_of_the_codes():
    book, z = book_of(5), drawn(0, 5)
    logits = 4 * z.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(mean_joint(logits), probabilities(z, book).mean(0))


def test_it_is_least_where_choices_are_sure_and_even():
    book = book_of(3)
    z = 20 * book.vectors.t().reshape(1, 3, 2, 4)  # each code once
    assert book.codebook_loss(z, z, None).item() == pytest.approx(-8 * math.log(8))
    same = 20 * torch.ones(1, 3, 2, 4)
    assert book.codebook_loss(same, same, None).item() == pytest.approx(0, abs=1e-6)


def test_far_from_zero_its_gradient_is_zero_and_no_nan():
    book = book_of(4, inverse_temperature=100.0)
    z = torch.full((1, 4, 2, 2), 1e4)
    z[0, 0, 0, 0] = 0.0
    z.requires_grad_()
    (found,) = torch.autograd.grad(book.codebook_loss(z, z, None).sum(), z)
    assert found.isfinite().all()
    assert not found[0, 1:].any()


def test_more_bits_than_are_looked_at_together_are_summed_by_groups(monkeypatch):
    logits = 4 * drawn(0, 6).movedim(1, -1).flatten(0, -2)
    whole = entropy_of_mean(logits, None)
    monkeypatch.setattr(lfq, "JOINT", 3)
    parts = entropy_of_mean(logits, None)
    torch.testing.assert_close(parts, entropy_of_mean(logits[:, :3], None) + entropy_of_mean(logits[:, 3:], None))
    assert parts > whole


def test_two_processes_have_the_value_of_one_and_its_gradient(monkeypatch):
    """Each has its mean and gets the others' added; its loss is weighted, and the gradients are averaged."""
    book, z = book_of(4), torch.cat([drawn(0, 4), drawn(1, 4)])[:3]
    whole = z.clone().requires_grad_()
    loss = book.codebook_loss(whole, whole, None).mean()
    (expected,) = torch.autograd.grad(loss, whole)

    parts = [z[:1], z[1:]]
    shares = [Share(0, 1, 3, 2), Share(1, 2, 3, 2)]
    sums = sum(
        mean_joint(4 * part.movedim(1, -1).flatten(0, -2)) * (share.weight / 2)
        for part, share in zip(parts, shares, strict=True)
    )
    monkeypatch.setattr("vaelab.core.distributed.all_sum", lambda x: sums)
    losses, found = [], []
    for part, share in zip(parts, shares, strict=True):
        own = part.clone().requires_grad_()
        losses.append(book.codebook_loss(own, own, share).mean() * share.weight / 2)
        found += torch.autograd.grad(losses[-1], own)
    torch.testing.assert_close(sum(losses), loss)
    torch.testing.assert_close(torch.cat(found), expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["codebook.bits=0"], "codebook.bits=0: must be greater than or equal to 1"),
        (["codebook.bits=21"], "codebook.bits=21: must be less than or equal to 20"),
        (["codebook.bits=200"], "codebook.bits=200: must be less than or equal to 20"),
        (["codebook.bits=x"], "codebook.bits='x': must be an integer"),
    ],
)
def test_wrong_bits_are_named(arguments, said):
    config = composed("model=vqvae", "codebook=lfq", *arguments)
    assert list(config).index("codebook") < list(config).index("model")  # the bits are checked before what follows
    with pytest.raises(UserError) as error:
        check(config)
    assert said in str(error.value)


@pytest.mark.parametrize("size", [(512, 4), (16, 64)])
def test_sizes_that_do_not_follow_from_the_bits_are_refused(size):
    with pytest.raises(UserError, match=r"codebook\.bits=4 makes 16 codes of 4 numbers: it must be"):
        LFQ(*size, 4, 0.1, 1.0)


def test_the_sizes_follow_from_the_bits(train):
    result = train("model=vqvae", "codebook=lfq", "codebook.bits=5")
    assert result.code == 0, result.err
    loaded = vaelab.load(result.run)
    assert loaded.layout.codes == loaded.prior.codes == 32
    assert loaded.codebook.vectors.shape == (32, 5)


def test_oracle_vector_quantize_pytorch_has_the_same_codes_losses_and_gradients():
    import vector_quantize_pytorch

    book, z = book_of(6, 0.1, 0.5), drawn(0, 6).requires_grad_()
    theirs = vector_quantize_pytorch.LFQ(
        dim=6, codebook_size=64, entropy_loss_weight=0.1, commitment_loss_weight=0.0, soft_clamp_input_value=1.0
    ).train()
    other = z.detach().clone().requires_grad_()
    out, (vectors, indices, loss) = book(z), theirs(other, inv_temperature=0.5)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.vectors, vectors)
    assert not out.commitment.any()
    ours = out.codebook_loss.mean() / 12  # theirs are means
    torch.testing.assert_close(ours, loss)
    slope = drawn(1, 6)
    ((out.vectors * slope).sum() + ours).backward()
    ((vectors * slope).sum() + loss).backward()
    torch.testing.assert_close(z.grad, other.grad)
