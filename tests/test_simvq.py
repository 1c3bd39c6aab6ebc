"""Fixed codes under one linear layer."""

from __future__ import annotations

import pytest
import torch

from tests.test_quantizers import brute_force, rows
from vaelab.nn.quantizers.simvq import SimVQ


def simvq(num: int = 32, dim: int = 4, rotation: bool = False) -> SimVQ:
    torch.manual_seed(0)
    return SimVQ(num, dim, rotation).train()


def drawn(seed: int, dim: int = 4):
    return torch.randn(2, dim, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_every_vector_becomes_its_nearest_code():
    book, z = simvq(), drawn(1)
    out = book(z)
    assert torch.equal(out.chosen, brute_force(rows(z).double(), book.vectors.double()))
    assert torch.equal(out.indices, book.search(z))
    torch.testing.assert_close(out.vectors, book.lookup(out.indices))
    torch.testing.assert_close(book.vectors, book.fixed @ book.linear.weight.T)


def test_the_fixed_codes_are_of_unit_length_on_average_and_the_layer_alone_is_learned():
    book = simvq(20_000, 16)
    assert book.fixed.square().sum(1).mean().item() == pytest.approx(1, rel=0.02)
    assert [name for name, _ in book.named_parameters()] == ["linear.weight"]
    assert set(book.state_dict()) == {"fixed", "linear.weight", "_extra_state"}


def test_codes_start_as_the_gaussian_that_the_first_batch_has():
    """Its mean and covariance, also where the vectors leave a direction out; and all codes are different."""
    book, z = simvq(50_000), drawn(1)
    z = torch.cat([z[:, :1] + 2, 3 * z[:, 1:2] - z[:, :1], 0.1 * z[:, 2:3], torch.ones(2, 1, 8, 8)], 1)
    assert book.unplaced
    book.place(z, None)
    assert not book.unplaced
    torch.testing.assert_close(book.vectors, book.fixed)
    flat = rows(z)
    torch.testing.assert_close(book.fixed.mean(0), flat.mean(0), atol=0.05, rtol=0)
    covariance = flat.T.cov(correction=0)
    torch.testing.assert_close(book.fixed.T.cov(), covariance, atol=0.03 * covariance.max().item(), rtol=0)
    assert len(book.fixed.unique(dim=0)) == 50_000
    again = simvq(50_000)
    again.load_state_dict(book.state_dict())
    assert not again.unplaced


def test_one_choice_moves_every_code_and_its_loss_is_that_of_the_paper():
    """d/dW of |sg(z) - W c|^2, summed over positions, is 2 sum (W c - z) c^T."""
    book, z = simvq(), drawn(1)[:1, :, :1, :1]
    out = book(z)
    out.codebook_loss.sum().backward()
    c = book.fixed[out.chosen]
    torch.testing.assert_close(book.linear.weight.grad, 2 * (c @ book.linear.weight.T - rows(z)).T @ c)
    torch.testing.assert_close(out.codebook_loss, out.commitment)
    before = book.vectors.detach().clone()
    book.linear.weight.data -= 0.1 * book.linear.weight.grad
    assert (book.vectors.detach() - before).norm(dim=1).min() > 0


def test_codes_stay_in_float32_under_autocast():
    book = simvq()
    expected = book.vectors
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.vectors, expected)
        assert torch.equal(book.lookup(torch.arange(32)[None, None]), expected.T[None, :, None])


@pytest.mark.parametrize("rotation", [False, True])
def test_oracle_vector_quantize_pytorch_has_the_same_codes_and_gradients(rotation):
    import vector_quantize_pytorch

    book, z = simvq(rotation=rotation), drawn(1).requires_grad_()
    theirs = vector_quantize_pytorch.SimVQ(dim=4, codebook_size=32, channel_first=True, rotation_trick=rotation)
    theirs.frozen_codebook.copy_(book.fixed)
    theirs.code_transform.weight.data.copy_(book.linear.weight)
    other = z.detach().clone().requires_grad_()
    out, (vectors, indices, loss) = book(z), theirs(other)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.vectors, vectors)
    ours = (out.codebook_loss + 0.25 * out.commitment).sum() / z.numel()  # theirs is a mean over all
    torch.testing.assert_close(ours, loss)
    slope = drawn(2)
    ((out.vectors * slope).sum() + ours).backward()
    ((vectors * slope).sum() + loss).backward()
    torch.testing.assert_close(z.grad, other.grad)
    torch.testing.assert_close(book.linear.weight.grad, theirs.code_transform.weight.grad)
