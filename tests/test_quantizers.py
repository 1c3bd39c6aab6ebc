import io

import pytest
import torch

from vaelab.nn.quantizers import Chosen, EMACodebook, GradientCodebook, code_counts, nearest_code, perplexity, search


def gradient(num=8, dim=3, restart_after=None):
    return GradientCodebook(num, dim, restart_after)


def ema(num=8, dim=3, restart_after=None, decay=0.9, epsilon=1e-5):
    return EMACodebook(num, dim, restart_after, decay, epsilon)


both = pytest.mark.parametrize("make", [gradient, ema])


def rows(z):
    """[B, D, h, w] -> [B*h*w, D]."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def squares(z, codes):
    """Squared distances, [N, K]."""
    return (z[:, None] - codes.detach()[None]).square().sum(2)


def brute_force(z, codes):
    return squares(z, codes).argmin(1)


def started(make, codes, **options):
    """A codebook in training whose codes are `codes`, already initialised."""
    book = make(len(codes), codes.shape[1], **options)
    book.codes.data.copy_(codes)
    if hasattr(book, "cluster_sum"):
        book.cluster_sum.copy_(codes)
    book.initialised = True
    return book.train()


def step(book, z):
    """What training does with a batch."""
    if book.unplaced:
        book.place(z.detach(), None)
    out = book(z)
    book.learn([Chosen(out.rows, out.chosen, None)])
    return out


def snapshot(book):
    return {name: value.clone() for name, value in book.state_dict().items() if torch.is_tensor(value)}


def oracle(book, **options):
    """The same codebook of vector-quantize-pytorch."""
    import vector_quantize_pytorch

    num, dim = book.codes.shape
    theirs = vector_quantize_pytorch.VectorQuantize(
        dim, num, accept_image_fmap=True, threshold_ema_dead_code=0, rotation_trick=False, **options
    )
    theirs._codebook.embed.data.copy_(book.codes[None])
    theirs._codebook.embed_avg.data.copy_(book.codes[None])
    theirs._codebook.cluster_size.data.fill_(1.0)
    theirs._codebook.initted.fill_(True)
    return theirs


def far_apart(num, dim):
    """Codes at distances of 10 from each other."""
    return 10 * torch.arange(num, dtype=torch.float32)[:, None].expand(-1, dim).contiguous()


# --- search -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "num", "dim"), [(1, 1, 1), (100, 7, 3), (1000, 64, 16), (37, 512, 64), (9, 300, 8), (50, 2048, 8)]
)
def test_the_nearest_code_is_that_of_brute_force(count, num, dim):
    torch.manual_seed(0)
    z, codes = torch.randn(count, dim), torch.randn(num, dim)
    assert torch.equal(nearest_code(z, codes), brute_force(z, codes))


@pytest.mark.parametrize("num", [8, 512])
def test_of_codes_at_the_same_distance_the_first_is_taken(num):
    codes = torch.ones(num, 4)
    codes[[3, num // 2 + 1, num - 1]] = 0.0
    assert nearest_code(torch.zeros(5, 4), codes).tolist() == [3] * 5


@pytest.mark.parametrize("elements", [1, 20, 64, 130, 10**6])
def test_chunks_of_any_size_give_the_same_codes_in_bounded_memory(monkeypatch, elements):
    torch.manual_seed(0)
    z, codes = torch.randn(101, 4), torch.randn(20, 4)
    sizes, addmm = [], torch.addmm

    def recorded(*args, **options):
        result = addmm(*args, **options)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(search, "SEARCH_ELEMENTS", elements)
    monkeypatch.setattr(torch, "addmm", recorded)
    assert torch.equal(nearest_code(z, codes), brute_force(z, codes))
    assert sum(sizes) == 101 * 20
    assert max(sizes) <= max(elements, 20)
    assert len(sizes) <= -(-101 // max(1, elements // 20))


def test_search_memory_does_not_grow_with_the_number_of_vectors():
    assert search.SEARCH_ELEMENTS <= 2**22


# --- counting ---------------------------------------------------------------------------------


def test_counts_are_those_of_the_indices():
    indices = torch.randint(0, 6, (5, 4, 3))
    assert torch.equal(code_counts(indices, 9), torch.bincount(indices.flatten(), minlength=9).float())


@pytest.mark.parametrize("num", [1, 2, 37, 512])
def test_perplexity_is_k_for_uniform_use_and_one_for_a_single_code(num):
    assert perplexity(torch.full((num,), 3.0)).item() == pytest.approx(num, rel=1e-5)
    assert perplexity(5 * torch.eye(num)[0]).item() == pytest.approx(1)


def test_perplexity_is_the_exponential_of_the_entropy():
    assert perplexity(torch.tensor([3.0, 1.0, 0.0])).item() == pytest.approx(4 / 27**0.25)


def test_perplexity_of_the_sum_is_not_the_mean_of_the_batches():
    batches = torch.eye(4)
    assert perplexity(batches.sum(0)).item() == pytest.approx(4)
    assert sum(perplexity(batch).item() for batch in batches) / 4 == pytest.approx(1)


# --- quantising -------------------------------------------------------------------------------


@both
def test_every_vector_becomes_its_nearest_code(make):
    torch.manual_seed(0)
    codes, z = torch.randn(8, 3), torch.randn(2, 3, 4, 5)
    book = started(make, codes).eval()
    out = book(z)
    expected = brute_force(rows(z), codes).view(2, 4, 5)
    assert out.indices.dtype == torch.int64
    assert torch.equal(out.indices, expected)
    assert torch.equal(book.search(z), expected)
    torch.testing.assert_close(out.vectors, codes[expected].permute(0, 3, 1, 2))
    torch.testing.assert_close(book.lookup(expected), codes[expected].permute(0, 3, 1, 2))


@both
def test_commitment_is_the_squared_distance_summed_over_dimensions_and_positions(make):
    torch.manual_seed(0)
    codes, z = torch.randn(8, 3), torch.randn(2, 3, 4, 5)
    out = started(make, codes)(z)
    nearest = squares(rows(z), codes).min(1)[0].view(2, -1).sum(1)
    torch.testing.assert_close(out.commitment, nearest)
    torch.testing.assert_close(out.codebook_loss, torch.zeros(2) if make is ema else nearest)


@both
def test_the_gradient_passes_straight_through(make):
    torch.manual_seed(0)
    book = started(make, torch.randn(8, 3))
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = book(z)
    out.vectors.retain_grad()
    (torch.randn(2, 3, 4, 4) * out.vectors.sin()).sum().backward()
    assert torch.equal(z.grad, out.vectors.grad)
    assert z.grad.abs().min() > 0
    assert book.codes.grad is None or not book.codes.grad.any()


def test_the_codebook_loss_moves_only_the_codes():
    torch.manual_seed(0)
    codes = torch.randn(8, 3)
    book = started(gradient, codes)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = book(z)
    out.codebook_loss.sum().backward()
    assert z.grad is None or not z.grad.any()
    flat, index = rows(z.detach()), out.indices.flatten()
    expected = torch.zeros(8, 3).index_add_(0, index, 2 * (codes[index] - flat))
    torch.testing.assert_close(book.codes.grad, expected)


@both
def test_the_commitment_moves_only_the_encoder(make):
    torch.manual_seed(0)
    codes = torch.randn(8, 3)
    book = started(make, codes)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = book(z)
    out.commitment.sum().backward()
    assert book.codes.grad is None or not book.codes.grad.any()
    torch.testing.assert_close(rows(z.grad), 2 * (rows(z.detach()) - codes[out.indices.flatten()]))


def test_only_gradient_codes_are_parameters():
    assert [name for name, _ in gradient().named_parameters()] == ["codes"]
    assert not list(ema().parameters())


def test_a_codebook_that_learns_by_averages_gives_no_gradient_to_its_loss():
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert not started(ema, torch.randn(8, 3))(z).codebook_loss.requires_grad


# --- moving averages --------------------------------------------------------------------------


def test_averages_follow_appendix_a1_over_many_steps():
    torch.manual_seed(0)
    decay, epsilon, num = 0.8, 1e-2, 6
    codes = torch.randn(num, 3)
    book = started(ema, codes, decay=decay, epsilon=epsilon)
    size, total, current = torch.ones(num).double(), codes.double(), codes.double()
    for more in range(6):
        z = torch.randn(2, 3, 3, 3 + more)
        flat = rows(z).double()
        chosen = torch.nn.functional.one_hot(brute_force(flat, current), num).double()  # [N, K]
        out = step(book, z)
        torch.testing.assert_close(code_counts(out.indices, num).double(), chosen.sum(0))
        size = decay * size + (1 - decay) * chosen.sum(0)
        total = decay * total + (1 - decay) * chosen.T @ flat
        smoothed = (size + epsilon) / (size.sum() + num * epsilon) * size.sum()
        current = total / smoothed[:, None]
        torch.testing.assert_close(book.codes.double(), current, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(smoothed.sum(), size.sum())


def test_oracle_vector_quantize_pytorch_averages_to_the_same_codes():
    torch.manual_seed(0)
    book = started(ema, torch.randn(16, 4), decay=0.8, epsilon=1e-3)
    theirs = oracle(book, decay=0.8, eps=1e-3)
    for _ in range(5):
        z = torch.randn(2, 4, 8, 8, requires_grad=True)
        other = z.detach().clone().requires_grad_()
        out, (vectors, indices, loss) = step(book, z), theirs(other)
        assert torch.equal(out.indices, indices)
        torch.testing.assert_close(out.vectors, vectors)
        ours = out.commitment.sum() / z.numel()  # theirs is a mean over all
        torch.testing.assert_close(ours, loss.sum())
        slope = torch.randn(z.shape)
        ((out.vectors * slope).sum() + ours).backward()
        ((vectors * slope).sum() + loss.sum()).backward()
        torch.testing.assert_close(z.grad, other.grad)
        torch.testing.assert_close(book.codes, theirs._codebook.embed[0])


def test_oracle_vector_quantize_pytorch_moves_codes_and_vectors_by_the_same_gradients():
    """Its one loss has the gradients of both of ours, at commitment 1."""
    torch.manual_seed(0)
    book, z = started(gradient, torch.randn(16, 4)), torch.randn(2, 4, 8, 8, requires_grad=True)
    theirs, other = oracle(book, learnable_codebook=True, ema_update=False), z.detach().clone().requires_grad_()
    out, (_, indices, loss) = book(z), theirs(other)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.codebook_loss.sum() / z.numel(), loss.sum())
    ((out.codebook_loss + out.commitment).sum() / z.numel()).backward()
    loss.sum().backward()
    torch.testing.assert_close(book.codes.grad, theirs._codebook.embed.grad[0])
    torch.testing.assert_close(z.grad, other.grad)


def test_without_memory_the_averages_are_a_step_of_k_means():
    torch.manual_seed(0)
    codes, z = torch.randn(4, 2), torch.randn(3, 2, 8, 8)
    book = started(ema, codes, decay=0.0, epsilon=1e-9)
    chosen = brute_force(rows(z), codes)
    step(book, z)
    for code in range(4):
        torch.testing.assert_close(book.codes[code], rows(z)[chosen == code].mean(0), rtol=1e-4, atol=1e-5)


def test_averages_come_to_rest_at_the_centres_of_clusters():
    torch.manual_seed(0)
    centres = far_apart(4, 2)
    book = started(ema, centres + 2, decay=0.5)
    for _ in range(60):
        points = centres[torch.arange(256) % 4] + 0.1 * torch.randn(256, 2)
        step(book, points.T.reshape(1, 2, 16, 16))
    torch.testing.assert_close(book.codes, centres, rtol=0, atol=0.05)


def test_a_code_that_nothing_chooses_keeps_its_place():
    torch.manual_seed(0)
    codes = far_apart(4, 2)
    book = started(ema, codes, epsilon=1e-9)
    for _ in range(10):
        step(book, torch.randn(2, 2, 3, 3))  # all near the first
    torch.testing.assert_close(book.codes[1:], codes[1:], rtol=1e-3, atol=0)


def k_means(book, batches):
    """Steps of k-means through the batches, each [N, D]."""
    for z in batches:
        step(book, z.T[None, :, :, None])
    return book


def on_a_normal(count):
    """Numbers that are spread as N(0, 1) is, [count, 1]."""
    return torch.special.ndtri((torch.arange(count).double() + 0.5) / count).float()[:, None]


@pytest.mark.parametrize(
    ("num", "mse", "bits"), [(2, 0.3634, 1.0), (4, 0.1175, 1.911), (8, 0.03455, 2.825), (16, 0.00950, 3.765)]
)
def test_codes_of_a_normal_come_to_rest_at_those_of_lloyd_and_max(num, mse, bits):
    """Max, "Quantizing for minimum distortion", 1960, table 1."""
    torch.manual_seed(0)
    z = on_a_normal(2**13)
    book = k_means(ema(num, 1, decay=0.0, epsilon=1e-9).train(), [z] * 300)
    out = book(z.T[None, :, :, None])
    assert out.commitment.item() / len(z) == pytest.approx(mse, rel=0.01)
    assert perplexity(code_counts(out.chosen, num)).log2().item() == pytest.approx(bits, rel=0.01)


def test_many_codes_of_a_plane_err_as_a_lattice_of_hexagons_does():
    """K E|z - e|^2 of N(0, I) in two dimensions tends to 4.031: 5 / (36 sqrt 3) of a hexagon times 2 * 8 pi (Zador).

    The best codes lie as N(0, 2 I) does, where they start here.
    """
    torch.manual_seed(0)
    book = ema(512, 2, decay=0.9, epsilon=1e-9).train()
    book.place(2**0.5 * torch.randn(1, 2, 2**12, 1), None)
    k_means(book, torch.randn(250, 2**12, 2))
    fresh = torch.randn(1, 2, 2**16, 1)
    assert 512 * book(fresh).commitment.item() / 2**16 == pytest.approx(4.031, rel=0.05)


# --- start and restart ------------------------------------------------------------------------


@both
def test_codes_start_at_encoder_outputs_of_the_first_training_batch(make):
    torch.manual_seed(0)
    book = make(decay=1.0) if make is ema else make()
    z = 5 + torch.randn(2, 3, 6, 6)
    step(book, z)
    assert squares(book.codes, rows(z)).min(1)[0].max() < 1e-6
    assert len(book.codes.detach().unique(dim=0)) > 4
    before = book.codes.detach().clone()
    step(book, z + 100)
    assert (book.codes.detach() - before).abs().max() < 1e-3  # once only


def test_the_first_batch_is_quantised_with_the_codes_placed_on_it():
    torch.manual_seed(0)
    book = gradient()
    z = 50 + torch.randn(2, 3, 6, 6)
    assert step(book, z).commitment.max() < 36 * 20


@both
def test_more_codes_than_vectors_all_start_on_vectors_and_those_that_start_alike_restart(make):
    torch.manual_seed(0)
    book = make(num=64, restart_after=2).train()
    z = torch.randn(1, 3, 4, 4)
    step(book, z)
    assert squares(book.codes, rows(z)).min(1)[0].max() < 1e-6
    used = [len(step(book, torch.randn(1, 3, 4, 4) + number).chosen.unique()) for number in range(6)]
    assert max(used) > 10
    assert len(book.codes.detach().unique(dim=0)) > 16


@both
@pytest.mark.parametrize("after", [1, 3])
def test_an_idle_code_restarts_after_exactly_that_many_batches(make, after):
    torch.manual_seed(0)
    codes = far_apart(4, 3)
    options = {"decay": 0.999} if make is ema else {}
    book = started(make, codes, restart_after=after, **options)
    for batch in range(1, after + 1):
        z = torch.randn(2, 3, 3, 3)  # all near the first code
        step(book, z)
        moved = (book.codes.detach() - codes).norm(dim=1) > 1
        assert moved.tolist() == [False, *3 * [batch == after]]
    assert squares(book.codes[1:], rows(z)).min(1)[0].max() < 1e-10
    assert not book.idle.any()


@both
def test_a_code_that_is_chosen_now_and_then_never_restarts(make):
    torch.manual_seed(0)
    codes = far_apart(2, 3)
    options = {"decay": 0.999} if make is ema else {}
    book = started(make, codes, restart_after=3, **options)
    for batch in range(12):
        z = 0.1 * torch.randn(2, 3, 3, 3)
        if batch % 3 == 2:
            z[0, :, 0, 0] = 10.0
        step(book, z)
        assert ((book.codes.detach() - codes).norm(dim=1) < 1).all()


@both
def test_without_restart_an_idle_code_stays(make):
    torch.manual_seed(0)
    codes = far_apart(3, 3)
    options = {"epsilon": 1e-9} if make is ema else {}
    book = started(make, codes, restart_after=None, **options)
    for _ in range(20):
        step(book, torch.randn(2, 3, 3, 3))
    torch.testing.assert_close(book.codes.detach()[1:], codes[1:], rtol=1e-2, atol=0)


def test_a_restarted_average_starts_afresh():
    torch.manual_seed(0)
    book = started(ema, far_apart(3, 3), restart_after=2)
    for _ in range(2):
        step(book, torch.randn(2, 3, 3, 3))
    assert book.cluster_size[1:].tolist() == [1, 1]
    assert torch.equal(book.cluster_sum[1:], book.codes[1:])


# --- state ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("initialised", [True, False])
def test_evaluation_changes_nothing(make, initialised):
    torch.manual_seed(0)
    book = make(restart_after=1)
    book.initialised = initialised
    before = snapshot(book.eval())
    for _ in range(3):
        book(torch.randn(2, 3, 4, 4))
        book.search(torch.randn(2, 3, 4, 4))
    assert book.initialised == initialised
    after = snapshot(book)
    assert all(torch.equal(before[name], after[name]) for name in before)


@both
def test_a_saved_codebook_goes_on_where_it_was(make):
    torch.manual_seed(0)
    book = make(restart_after=5).train()
    for _ in range(3):
        step(book, torch.randn(2, 3, 4, 4))
    file = io.BytesIO()
    torch.save(book.state_dict(), file)
    file.seek(0)
    other = make(restart_after=5).train()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.initialised is True
    for batch in range(8):
        z = torch.randn(2, 3, 4, 4) + batch
        torch.manual_seed(batch)
        first = step(book, z)
        torch.manual_seed(batch)
        second = step(other, z)
        assert torch.equal(first.indices, second.indices)
        assert torch.equal(first.vectors, second.vectors)
    assert all(torch.equal(value, snapshot(other)[name]) for name, value in snapshot(book).items())


@both
def test_a_fresh_codebook_is_saved_as_not_initialised(make):
    other = make()
    other.initialised = True
    other.load_state_dict(make().state_dict())
    assert other.initialised is False


# --- precision --------------------------------------------------------------------------------


def close_codes():
    """Codes and vectors whose nearest code bfloat16 cannot tell."""
    torch.manual_seed(0)
    codes = 100 + torch.randn(64, 8)
    return codes, codes[torch.arange(64)].T.reshape(1, 8, 8, 8) + 0.01


@both
def test_quantising_under_autocast_stays_in_float32(make):
    codes, z = close_codes()
    book = started(make, codes).eval()
    with torch.autocast("cpu", torch.bfloat16):
        out = book(z)
    assert torch.equal(out.indices.flatten(), torch.arange(64))
    assert out.vectors.dtype == out.commitment.dtype == torch.float32


@both
def test_searching_under_autocast_stays_in_float32(make):
    codes, z = close_codes()
    book = started(make, codes).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.search(z).flatten(), torch.arange(64))


@both
def test_half_precision_encoder_outputs_are_taken(make):
    z = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()
    book = make().train()
    out = book(z)
    out.vectors.sum().backward()
    assert out.vectors.dtype == torch.float32
    assert z.grad.dtype == torch.bfloat16
    assert torch.equal(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_the_nearest_code_does_not_depend_on_the_origin(offset):
    draw = torch.Generator().manual_seed(0)
    z, codes = torch.randn(301, 64, generator=draw) + offset, torch.randn(512, 64, generator=draw) + offset
    exact = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_code(z, codes), exact)
