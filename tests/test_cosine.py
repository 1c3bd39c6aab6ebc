"""Codes compared by their direction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vaelab.nn.quantizers import Chosen
from vaelab.nn.quantizers.cosine import CosineCodebook


def cosine(num=8, dim=3, restart_after=None, decay=0.9, rotation=False) -> CosineCodebook:
    torch.manual_seed(0)
    return CosineCodebook(num, dim, restart_after, decay, rotation).train()


def drawn(seed: int, dim: int = 3):
    return 3 * torch.randn(2, dim, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(book, z):
    if book.unplaced:
        book.place(z, None)
    out = book(z)
    book.learn([Chosen(out.rows, out.chosen, None)])
    return out


def test_every_vector_gets_the_code_of_the_largest_cosine():
    book, z = cosine(), drawn(0)
    step(book, drawn(1))
    out = book(z)
    flat = z.movedim(1, -1).flatten(0, -2).double()
    assert torch.equal(out.chosen, F.cosine_similarity(flat[:, None], book.codes.double()[None], dim=2).argmax(1))
    assert torch.equal(out.indices, book.search(1000 * z))  # lengths have no part in it
    torch.testing.assert_close(out.vectors, book.lookup(out.indices))


def test_codes_are_unit_vectors_from_the_first_batch_on():
    book = cosine(restart_after=2)
    book.place(drawn(0), None)
    for seed in range(5):
        torch.testing.assert_close(book.codes.norm(dim=1), torch.ones(8))
        step(book, drawn(seed))
    torch.testing.assert_close(book.codes.norm(dim=1), torch.ones(8))


def test_the_gradient_does_not_change_the_length_of_a_vector():
    book, z = cosine(), drawn(0).requires_grad_()
    out = step(book, z.detach()) and book(z)
    slope = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(out.vectors, z, slope)
    torch.testing.assert_close((found * z).sum(1), torch.zeros(2, 8, 8), rtol=0, atol=1e-5)
    unit = F.normalize(z.detach(), dim=1)
    expected = (slope - unit * (unit * slope).sum(1, keepdim=True)) / z.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)


def test_without_memory_a_step_is_one_of_spherical_k_means():
    book, z = cosine(decay=0.0), drawn(0)
    book.place(drawn(1), None)
    out = step(book, z)
    for code in range(8):
        mine = out.rows[out.chosen == code]
        assert len(mine)
        torch.testing.assert_close(book.codes[code], F.normalize(mine.sum(0), dim=0))


def test_a_code_that_nothing_chooses_keeps_its_direction_for_good():
    book = cosine(2, 2, decay=0.5)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    book.codes.copy_(start)
    book.cluster_sum.copy_(start)
    book.initialised = True
    for _ in range(300):  # after which 2^-300 of its average is left
        step(book, torch.tensor([1.0, 0.1]).view(1, 2, 1, 1))
    assert torch.equal(book.codes[1], start[1])


def test_an_idle_code_restarts_on_a_direction_of_the_batch():
    book = cosine(2, 2, restart_after=3)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    book.codes.copy_(start)
    book.cluster_sum.copy_(start)
    book.initialised = True
    z = 5 * torch.tensor([1.0, 0.1]).view(1, 2, 1, 1)
    for number in range(3):
        assert torch.equal(book.codes[1], start[1]), number
        step(book, z)
    torch.testing.assert_close(book.codes[1], F.normalize(z.flatten(), dim=0))


@pytest.mark.parametrize(("decay", "rotation"), [(0.2, False), (0.8, False), (0.8, True)])
def test_oracle_vector_quantize_pytorch_learns_the_same_codes(decay, rotation):
    import vector_quantize_pytorch

    book = cosine(16, 4, decay=decay, rotation=rotation)
    book.place(drawn(9, 4), None)
    theirs = vector_quantize_pytorch.VectorQuantize(
        dim=4,
        codebook_size=16,
        use_cosine_sim=True,
        decay=decay,
        accept_image_fmap=True,
        threshold_ema_dead_code=0,
        rotation_trick=rotation,
    )
    inside = theirs._codebook
    inside.embed.data.copy_(book.codes[None])
    inside.embed_avg.data.copy_(book.codes[None])
    inside.cluster_size.data.fill_(1.0)
    inside.initted.fill_(True)
    for seed in range(5):
        z = drawn(seed, 4).requires_grad_()
        other = z.detach().clone().requires_grad_()
        out, (vectors, indices, commitment) = step(book, z), theirs(other)
        assert torch.equal(out.indices, indices)
        torch.testing.assert_close(out.vectors, vectors)
        slope = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            torch.autograd.grad(out.vectors, z, slope, retain_graph=True),
            torch.autograd.grad(vectors, other, slope, retain_graph=True),
        )
        ours = out.commitment.sum() / z.numel()  # theirs is a mean
        torch.testing.assert_close(ours, commitment.squeeze())
        torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(commitment.sum(), other))
        torch.testing.assert_close(book.codes, inside.embed[0])
