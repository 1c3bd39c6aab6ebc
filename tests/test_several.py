"""Codebooks of several levels: in turn over what is left, and side by side."""

from __future__ import annotations

from functools import partial
from math import pi, sqrt

import pytest
import torch

from tests.test_conf import composed
from vaelab.core.config import build
from vaelab.core.errors import UserError
from vaelab.evaluation.metrics.codes import codebook_use
from vaelab.nn.quantizers import Chosen, EMACodebook, GradientCodebook
from vaelab.nn.quantizers.cosine import CosineCodebook
from vaelab.nn.quantizers.fsq import FSQ
from vaelab.nn.quantizers.several import GroupedVQ, ResidualVQ
from vaelab.nn.quantizers.simvq import SimVQ

EMA = partial(EMACodebook, restart_after=None, decay=0.0, epsilon=1e-9)
GRADIENT = partial(GradientCodebook, restart_after=None)


def residual(num=8, dim=3, of=EMA, depth=3, shared=False, dropout=0.0, rotation=False):
    torch.manual_seed(0)
    return ResidualVQ(num, dim, of, depth, shared, dropout, rotation)


def grouped(num=8, dim=6, of=EMA, groups=3, shared=False, rotation=False):
    torch.manual_seed(0)
    return GroupedVQ(num, dim, of, groups, shared, rotation)


def drawn(dim: int, seed: int = 0, size=(2, 4, 5)):
    return torch.randn(size[0], dim, *size[1:], generator=torch.Generator().manual_seed(seed))


def step(book, z, share=None):
    if book.unplaced:
        book.place(z, share)
    out = book(z, share, book.noise(len(z)))
    book.learn([Chosen(out.rows, out.chosen, share, len(z))])
    return out


def nearest(rows, codes):
    """Indices by brute force in float64. rows: [N, D]; codes: [K, D]."""
    return torch.cdist(rows.double(), codes.double()).argmin(1)


# --- what is chosen ---------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_each_stage_takes_the_code_nearest_to_what_is_left(shared):
    book, z = residual(shared=shared), drawn(3)
    step(book, drawn(3, 1))
    out = book(z)
    left, total = z.movedim(1, -1).flatten(0, -2).double(), 0.0
    commitment = torch.zeros(2).double()
    for stage, part in enumerate(book.parts()):
        index = nearest(left, part.vectors)
        assert torch.equal(out.indices[:, stage].flatten(), index)
        left, total = left - part.vectors[index].double(), total + part.vectors[index]
        commitment += left.square().view(2, -1).sum(1)
    torch.testing.assert_close(out.vectors.movedim(1, -1).flatten(0, -2), total)
    torch.testing.assert_close(out.commitment.double(), commitment, rtol=1e-5, atol=0)
    assert torch.equal(book.search(z), out.indices)
    torch.testing.assert_close(book.lookup(out.indices), out.vectors.detach())
    torch.testing.assert_close(book.lookup(out.indices, 1), book.books[0].lookup(out.indices[:, 0]))
    assert len(book.books) == (1 if shared else 3)


@pytest.mark.parametrize("of", [EMA, partial(CosineCodebook, restart_after=None, decay=0.9)])
def test_each_group_is_quantised_by_itself(of):
    book, z = grouped(of=of), drawn(6)
    step(book, drawn(6, 1))
    out = book(z)
    alone = [own(part) for own, part in zip(book.books, z.chunk(3, 1), strict=True)]
    assert torch.equal(out.indices, torch.stack([one.indices for one in alone], 1))
    torch.testing.assert_close(out.vectors, torch.cat([one.vectors for one in alone], 1))
    torch.testing.assert_close(out.commitment, sum(one.commitment for one in alone))
    assert torch.equal(book.search(z), out.indices)
    torch.testing.assert_close(book.lookup(out.indices), out.vectors.detach())
    first = book.lookup(out.indices, 1)
    assert torch.equal(first[:, 2:], torch.zeros(2, 4, 4, 5))
    torch.testing.assert_close(first[:, :2], alone[0].vectors.detach())


@pytest.mark.parametrize("make", [residual, grouped])
def test_the_gradient_passes_straight_through_all_levels_once(make):
    book = make()
    z = drawn(book.embedding_dim).requires_grad_()
    slope = drawn(book.embedding_dim, 1)
    (found,) = torch.autograd.grad(book(z).vectors, z, slope)
    assert torch.equal(found, slope)


def test_the_rotation_is_that_of_the_sum_and_of_each_group():
    for make, parts in ((residual, 1), (grouped, 3)):
        book = make(rotation=True)
        z = drawn(book.embedding_dim).requires_grad_()
        out = book(z)
        (found,) = torch.autograd.grad(out.vectors, z, slope := drawn(book.embedding_dim, 1))
        for own, turned, code, given in zip(*(x.chunk(parts, 1) for x in (z, found, out.vectors, slope)), strict=True):
            scale = code.norm(dim=1) / own.norm(dim=1)
            torch.testing.assert_close(turned.norm(dim=1), scale * given.norm(dim=1), rtol=1e-4, atol=1e-5)
            cosines = [torch.cosine_similarity(*pair, dim=1) for pair in ((turned, own), (given, code))]
            torch.testing.assert_close(*cosines, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("of", [GRADIENT, SimVQ])
def test_codebook_losses_are_those_of_the_stages(of):
    book, z = residual(of=of), drawn(3).requires_grad_()
    out = book(z)
    torch.testing.assert_close(out.codebook_loss, out.commitment)
    assert torch.autograd.grad(out.codebook_loss.sum(), z, retain_graph=True, allow_unused=True) == (None,)
    found = torch.autograd.grad(out.codebook_loss.sum(), list(book.parameters()))
    left = z.detach()
    for stage, gradient in zip(book.books, found, strict=True):  # a stage's loss moves that stage's codes alone
        own = stage(left)
        (expected,) = torch.autograd.grad(own.codebook_loss.sum(), list(stage.parameters()))
        torch.testing.assert_close(gradient, expected)
        left = left - own.vectors.detach()


def test_codes_and_losses_are_those_of_vector_quantize_pytorch():
    import vector_quantize_pytorch as theirs

    other = theirs.ResidualVQ(dim=3, num_quantizers=3, codebook_size=8, commitment_weight=1.0).eval()
    groups = theirs.GroupedResidualVQ(dim=6, groups=3, num_quantizers=1, codebook_size=8).eval()
    book, several = residual(), grouped()
    for own, layer in zip(book.books, other.layers, strict=True):
        layer._codebook.embed.copy_(own.codes[None])
    for own, group in zip(several.books, groups.rvqs, strict=True):
        group.layers[0]._codebook.embed.copy_(own.codes[None])
    z, wide = drawn(3, 2), drawn(6, 2)
    vectors, indices, _ = other(z.movedim(1, -1).flatten(1, 2))
    assert torch.equal(book(z).indices.flatten(2).transpose(1, 2), indices)
    torch.testing.assert_close(book(z).vectors.flatten(2).transpose(1, 2), vectors)
    vectors, indices, _ = groups(wide.movedim(1, -1).flatten(1, 2))
    assert torch.equal(several(wide).indices.flatten(2).movedim(1, 0), indices[..., 0])
    torch.testing.assert_close(several(wide).vectors.flatten(2).transpose(1, 2), vectors)


def test_gradients_are_those_of_vector_quantize_pytorch():
    """Residual codes pass the gradient on once, and theirs once for each stage."""
    import vector_quantize_pytorch as theirs

    other = theirs.ResidualVQ(
        dim=3, num_quantizers=3, codebook_size=8, commitment_weight=1.0, rotation_trick=False, threshold_ema_dead_code=0
    )
    groups = theirs.GroupedResidualVQ(
        dim=6, groups=3, num_quantizers=1, codebook_size=8, rotation_trick=False, threshold_ema_dead_code=0
    )
    book, several = residual().train(), grouped().train()
    layers = [*other.layers, *(group.layers[0] for group in groups.rvqs)]
    for own, layer in zip([*book.books, *several.books], layers, strict=True):
        layer._codebook.embed.copy_(own.codes[None])
        layer._codebook.initted.fill_(True)
    for ours, oracle, passes, parts in ((book, other, 3, 1), (several, groups, 1, 3)):
        z = drawn(ours.embedding_dim, 2)
        mine, yours = (z.clone().requires_grad_() for _ in range(2))
        slope = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
        out, (vectors, _, losses) = ours(mine), oracle(yours.movedim(1, -1).flatten(1, 2), freeze_codebook=True)
        (got,) = torch.autograd.grad(out.vectors, mine, slope, retain_graph=True)
        (expected,) = torch.autograd.grad(vectors, yours, slope.movedim(1, -1).flatten(1, 2), retain_graph=True)
        torch.testing.assert_close(passes * got, expected)
        commitment = out.commitment.sum() * parts / z.numel()  # theirs are means, over the channels of a group
        torch.testing.assert_close(commitment, losses.sum())
        torch.testing.assert_close(
            torch.autograd.grad(commitment, mine), torch.autograd.grad(losses.sum(), yours), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("make", [residual, grouped])
def test_another_code_is_farther_by_the_difference_of_its_distance(make):
    book = make()
    z = drawn(book.embedding_dim)
    out = book(z)
    assert not book.excess(z, out.indices).any()
    last = out.indices.clone()
    last[:, -1] = (last[:, -1] + 1) % 8
    found = book.excess(z, last)
    assert not found[:, :-1].any()
    far = [(book.lookup(indices) - z).square().sum(1) for indices in (last, out.indices)]
    torch.testing.assert_close(found[:, -1].float(), far[0] - far[1], rtol=1e-3, atol=1e-4)
    assert (found[:, -1] > 0).all()


# --- how they learn ---------------------------------------------------------------------------


def on_a_normal(count: int):
    """Numbers that are spread as N(0, 1) is, [count]."""
    return torch.special.ndtri((torch.arange(count).double() + 0.5) / count).float()


def test_two_stages_of_two_codes_err_on_a_normal_as_they_must():
    """The first is at -a and a with a = sqrt(2 / pi), the second at the mean size m of what is left: 1 - a² - m²."""
    z = on_a_normal(2**13)
    book = residual(2, 1, depth=2)
    for _ in range(30):
        out = step(book, z[None, None, :, None])
    a = sqrt(2 / pi)
    m = (z.abs() - a).abs().double().mean().item()
    assert book.books[0].codes.abs().flatten().tolist() == pytest.approx([a, a], rel=1e-3)
    assert book.books[1].codes.abs().flatten().tolist() == pytest.approx([m, m], rel=1e-3)
    assert (out.vectors.flatten() - z).square().mean().item() == pytest.approx(1 - 2 / pi - m * m, rel=5e-3)


def test_groups_of_independent_normals_err_as_lloyd_and_max_say():
    """Four codes per channel: 0.1175 each (Max 1960)."""
    z = on_a_normal(2**12)
    noise = torch.Generator().manual_seed(0)
    both = torch.stack([z, z[torch.randperm(len(z), generator=noise)]])
    book = grouped(4, 2, groups=2)
    for _ in range(200):
        out = step(book, both[None, :, :, None])
    assert (out.vectors[0, :, :, 0] - both).square().mean(1).tolist() == pytest.approx([0.1175, 0.1175], rel=0.01)


def test_stages_start_on_what_is_left():
    book, z = residual(16), drawn(3, size=(4, 8, 8))
    book.place(z, None)
    left = z.movedim(1, -1).flatten(0, -2)
    for stage in book.books:
        assert (stage.codes[:, None] - left).norm(dim=2).min(1).values.max() < 1e-5
        left = left - stage.codes[nearest(left, stage.codes)]


@pytest.mark.parametrize("make", [residual, grouped])
def test_a_shared_codebook_learns_from_all_levels(make):
    of = partial(EMACodebook, restart_after=None, decay=0.5, epsilon=1e-5)
    book = make(of=of, shared=True)
    z = drawn(book.embedding_dim)
    book.place(z, None)
    alone = of(num_embeddings=8, embedding_dim=book.books[0].embedding_dim)
    alone.load_state_dict(book.books[0].state_dict())
    out = step(book, z)
    alone.learn([Chosen(out.rows, out.chosen, None)])
    torch.testing.assert_close(book.books[0].codes, alone.codes)
    assert not torch.equal(out.rows, out.rows.roll(40, 0))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_codebook_is_in_use_as_far_as_any_level_chooses_from_it(shared):
    words = ["codebook=residual", "codebook.depth=3", f"codebook.shared={str(shared).lower()}"]
    sizes = ["model.num_embeddings=4", "model.embedding_dim=2", "network.hidden_dims=[8]"]
    model = build(composed("model=vqvae", *words, *sizes)["model"], shape=(1, 8, 8), num_classes=None)
    counts = torch.tensor([[8.0, 0, 0, 0], [4, 4, 0, 0], [4, 4, 0, 0]])
    levels = [level.name for level in model.layout.levels]
    found = model.derived({}, {f"code_counts_{name}": own for name, own in zip(levels, counts, strict=True)})
    use = codebook_use(counts, model.books)
    assert found["codebook_usage"] == pytest.approx(2 / 4 if shared else 5 / 12)
    assert use.usage == pytest.approx(2 / 4 if shared else 5 / 12)
    assert (use.codes, use.dead) == ((4, 2) if shared else (12, 7))
    assert found["perplexity"] == pytest.approx(2 ** (2 / 3))
    assert use.perplexity == pytest.approx(2 ** (2 / 3))
    assert found["codebook_usage_stage1"] == 1 / 4


@pytest.mark.parametrize("make", [residual, grouped])
def test_shared_rows_are_counted_image_by_image(make):
    """Restarts of several processes count rows through the global batch: those of an image must lie together."""
    book = make(shared=True)
    z = drawn(book.embedding_dim)
    out = book(z)
    found = book._by_image(Chosen(out.rows, out.chosen, None, 2))
    each = [book(image[None]) for image in z]
    assert torch.equal(found.rows, torch.cat([one.rows for one in each]))
    assert torch.equal(found.indices, torch.cat([one.chosen for one in each]))


# --- quantizer dropout ------------------------------------------------------------------------


def test_dropout_decodes_the_first_stages_alone():
    book = residual(dropout=0.5).train()
    z = drawn(3, size=(4, 4, 5))
    out = book(z, None, torch.tensor([0.01, 0.2, 0.4, 0.7]))  # 1, 2 and all 3 stages by dropout; all without
    for image, levels in enumerate((1, 2, 3, 3)):
        torch.testing.assert_close(out.vectors[image], book.lookup(out.indices, levels)[image])
    assert torch.equal(out.indices, book(z).indices)
    assert torch.equal(out.commitment, book(z).commitment)


def test_dropout_takes_every_number_of_stages_alike_and_only_in_training():
    book = residual(dropout=1.0)
    torch.manual_seed(1)
    noise = book.noise(30_000)
    found = book._kept(noise).sum(0).long().bincount(minlength=4)[1:]
    assert (found / 30_000).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert book.eval().noise(3) is None
    assert residual().train().noise(3) is None


# --- what is refused --------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    cosine = partial(CosineCodebook, restart_after=None, decay=0.9)
    for wrong, words in (
        (
            lambda: residual(of=cosine),
            "codebook.of: CosineCodebook moves a vector before it chooses, so nothing is left for another: take ema",
        ),
        (
            lambda: grouped(of=partial(FSQ, levels=[4, 4])),
            r"^model.num_embeddings=8: codebook.of.levels=\[4, 4\] makes 16 codes of 2 numbers",
        ),
        (lambda: grouped(dim=7), "model.embedding_dim=7: must be a multiple of codebook.groups=3"),
        (lambda: residual(of=partial(ResidualVQ, of=EMA, depth=2, shared=False, dropout=0.0)), "cannot be nested"),
        (lambda: residual(of=partial(EMA, rotation=True)), "codebook.of.rotation=true"),
    ):
        with pytest.raises(UserError, match=words):
            wrong()


def test_remedies_name_the_keys_where_they_are():
    assert "codebook.of.restart_after=100" in residual().remedy.livelier
