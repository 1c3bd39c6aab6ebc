"""Finite scalar quantisation."""

import math

import pytest
import torch

import vaelab
from vaelab.core.errors import UserError
from vaelab.nn.quantizers.fsq import FSQ


def fsq(*levels):
    return FSQ(math.prod(levels), len(levels), list(levels))


def test_uniform_numbers_cost_what_theory_says():
    """Five levels on the ends of U[-1, 1]: every number is at most 1/4 off, so the error is 1/48, and the two ends
    have half the frequency of the others, so the entropy is 3 * 2/4 + 2 * 3/8 = 2.25 bits.
    """
    z = torch.linspace(-1, 1, 400_001)[:, None]
    book = fsq(5)
    indices = book.choose(z)
    assert (z - book.vectors[indices]).square().mean().item() == pytest.approx(1 / 48, rel=1e-4)
    p = torch.bincount(indices, minlength=5) / len(indices)
    assert torch.special.entr(p).sum().item() / math.log(2) == pytest.approx(2.25, abs=1e-4)


@pytest.mark.parametrize("levels", [(2,), (5,), (4, 3, 2), (8, 5, 5, 5), (8, 8, 8, 5, 5, 5)])
def test_the_codes_are_the_grid_and_the_nearest_is_chosen(levels):
    book = fsq(*levels)
    assert book.vectors.shape == (math.prod(levels), len(levels))
    assert len(book.vectors.unique(dim=0)) == math.prod(levels)
    assert torch.equal(book.choose(book.vectors), torch.arange(len(book.vectors)))
    for channel, count in enumerate(levels):
        assert torch.allclose(book.vectors[:, channel].unique(), torch.linspace(-1, 1, count))
    z = 2 * torch.rand(200, len(levels), generator=torch.Generator().manual_seed(0)) - 1
    least = torch.cdist(z, book.vectors).min(1).values
    assert torch.allclose((z - book.vectors[book.choose(z)]).norm(dim=1), least, atol=1e-5)


def test_the_gradient_goes_straight_through_the_rounding():
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = fsq(8, 5, 5, 5)(z)
    assert torch.equal(out.vectors.detach(), fsq(8, 5, 5, 5).lookup(out.indices))
    weights = torch.randn(out.vectors.shape, generator=torch.Generator().manual_seed(1))
    (out.vectors * weights).sum().backward()
    assert torch.allclose(z.grad, weights * (1 - z.detach().tanh().square()), atol=1e-6)


def test_there_is_no_loss_and_nothing_is_learned():
    book = fsq(8, 5, 5, 5)
    out = book(torch.randn(3, 4, 2, 2))
    assert out.codebook_loss.tolist() == out.commitment.tolist() == [0, 0, 0]
    assert not list(book.parameters())
    assert not book.state_dict()  # the levels say it all
    assert not book.unplaced


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["codebook.levels=[1,4]"], "codebook.levels[0]=1: must be greater than or equal to 2"),
        (["codebook.levels=[]"], "codebook.levels"),
        (["codebook.levels=7"], "codebook.levels=7: must be a list"),
        (["codebook.levels=[1000,1000,1000]"], "makes 1,000,000,000 codes, more than 1,048,576"),
        (["model.num_embeddings=512"], "model.num_embeddings=512: codebook.levels=[8, 5, 5, 5] makes 1000 codes of 4"),
        (["model.embedding_dim=64"], "model.embedding_dim=64: codebook.levels=[8, 5, 5, 5] makes 1000 codes of 4"),
    ],
)
def test_wrong_sizes_are_refused_with_what_follows(train, arguments, said):
    result = train("model=vqvae", "codebook=fsq", *arguments)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.strip().splitlines()) <= 2


def test_the_sizes_follow_from_the_levels(train):
    result = train("model=vqvae", "codebook=fsq", "codebook.levels=[4,3]")
    assert result.code == 0, result.err
    loaded = vaelab.load(result.run)
    assert loaded.layout.codes == loaded.prior.codes == 12
    assert loaded.codebook.vectors.shape == (12, 2)


def test_a_notebook_is_told_too():
    with pytest.raises(UserError, match="levels"):
        FSQ(12, 3, [4, 3])


def test_oracle_vector_quantize_pytorch_has_the_same_codes_and_gradients():
    import vector_quantize_pytorch

    z = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = z.detach().clone().requires_grad_()
    theirs = vector_quantize_pytorch.FSQ([8, 5, 4, 3], preserve_symmetry=True)
    out, (vectors, indices) = fsq(8, 5, 4, 3)(z), theirs(other)
    torch.testing.assert_close(out.vectors, vectors)
    assert torch.equal(out.indices, fsq(8, 5, 4, 3).choose(theirs.implicit_codebook)[indices])  # theirs count otherwise
    slope = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad(out.vectors, z, slope), torch.autograd.grad(vectors, other, slope))
