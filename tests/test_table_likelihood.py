"""likelihood=table: columns of several kinds, each with a distribution that sums or integrates to one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vaelab.core.errors import UserError
from vaelab.nn.likelihoods import Table
from vaelab.nn.likelihoods.columns import KINDS, Column, columns_of, decode, encode, plain

COLUMNS = {
    "gaussian": Column("g", "gaussian", 5.0, 2.0),
    "bernoulli": Column("b", "bernoulli", values=("no", "yes")),
    "categorical": Column("c", "categorical", values=("red", "green", "blue")),
    "poisson": Column("p", "poisson", 4.0, 2.5),
    "negative_binomial": Column("n", "negative_binomial", 3.0, 4.0),
}
WIDTHS = {kind: column.width for kind, column in COLUMNS.items()}
every = pytest.mark.parametrize("kind", KINDS)


def made(*kinds: str) -> Table:
    """The likelihood of columns of these kinds, its parameters moved from where they start."""
    likelihood = Table(plain([COLUMNS[kind] for kind in kinds]))
    for parameter in likelihood.parameters():
        parameter.data.fill_(-0.03)
    return likelihood


def support(kind: str) -> tuple[torch.Tensor, float]:
    """All that a column can hold, as a model sees it, [n, 1, 1, width], and the weight of each in an integral."""
    column = COLUMNS[kind]
    if kind == "gaussian":
        return torch.linspace(-12, 12, 20_001)[:, None, None, None], 24 / 20_000
    cells = np.arange(3000 if column.numeric else len(column.values), dtype=np.float64)
    return torch.from_numpy(column.encode(cells)).float()[:, None, None], 1.0


def raws(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(1, 1, 1, WIDTHS[kind], generator=generator) for scale in (0.0, 1.0, 1.0, 2.0)]


@every
def test_all_probabilities_sum_to_one_and_their_mean_is_the_mean(kind):
    likelihood, (x, weight) = made(kind), support(kind)
    for raw in raws(kind):
        p = likelihood.log_prob(raw.expand(len(x), -1, -1, -1), x).double().exp() * weight
        assert p.sum().item() == pytest.approx(1, abs=2e-4)
        torch.testing.assert_close(torch.einsum("n,n...->...", p, x.double()).float(), likelihood.mean(raw)[0])


@every
def test_samples_are_distributed_as_the_probabilities_say(kind):
    torch.manual_seed(0)
    likelihood, (x, weight), raw = made(kind), support(kind), raws(kind)[1]
    drawn = likelihood.sample(raw.expand(40_000, -1, -1, -1)).double()
    p = (likelihood.log_prob(raw.expand(len(x), -1, -1, -1), x).double().exp() * weight)[:, None, None, None]
    mean = (p * x).sum(0)
    spread = (p * (x - mean).square()).sum(0).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 4 * spread / 200 + 1e-6).all()
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.04, atol=1e-3)


def test_columns_stand_where_they_stood_and_are_independent():
    """Whatever their order: the density of a row is the product of those of its columns, each at its own place."""
    order = ("categorical", "gaussian", "poisson", "bernoulli", "categorical", "negative_binomial", "gaussian")
    likelihood, generator = made(*order), torch.Generator().manual_seed(0)
    widths = [WIDTHS[kind] for kind in order]
    raw = torch.randn(6, 1, 1, sum(widths), generator=generator)
    x = torch.cat([support(kind)[0][:2].repeat(3, 1, 1, 1) for kind in order], -1)
    density, mean = likelihood.log_density(raw, x), likelihood.mean(raw)
    parts = zip(order, raw.split(widths, -1), x.split(widths, -1), strict=True)
    alone = [(made(kind).log_density(r, at), made(kind).mean(r)) for kind, r, at in parts]
    torch.testing.assert_close(density, torch.cat([d for d, _ in alone], -1))
    torch.testing.assert_close(mean, torch.cat([m for _, m in alone], -1))
    assert likelihood.sample(raw).shape == x.shape


@every
def test_raw_from_mean_inverts_the_mean_and_is_finite_at_the_ends(kind):
    likelihood, (x, _) = made(kind), support(kind)
    for raw in raws(kind):
        mean = likelihood.mean(raw)
        torch.testing.assert_close(likelihood.mean(likelihood.raw_from_mean(mean)), mean, rtol=1e-3, atol=2e-3)
    assert likelihood.raw_from_mean(x).isfinite().all()


@every
@pytest.mark.parametrize("raw", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_values_and_gradients_are_finite_at_extremes(kind, raw):
    likelihood, (x, _) = made(kind), support(kind)
    at = torch.full_like(x[:3], raw).requires_grad_()
    log_prob = likelihood.log_prob(at, x[:3])
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert at.grad.isfinite().all()
    assert likelihood.sample(at.detach()).isfinite().all()


def test_a_missing_column_of_any_kind_counts_nothing():
    likelihood, generator = made(*KINDS), torch.Generator().manual_seed(0)
    likelihood.missing = True
    raw = torch.randn(1, 1, 1, sum(WIDTHS.values()), generator=generator).requires_grad_()
    x = torch.cat([support(kind)[0][1:2] for kind in KINDS], -1)
    whole, start = likelihood.log_density(raw, x).detach(), 0
    for kind in KINDS:
        span = slice(start, start := start + WIDTHS[kind])
        holed = x.clone()
        holed[..., span] = torch.nan
        log_prob = likelihood.log_prob(raw, holed)
        torch.testing.assert_close(log_prob, (whole.sum() - whole[..., span].sum())[None])
        gradient = torch.autograd.grad(log_prob.sum(), raw)[0]
        assert gradient.isfinite().all()
        assert (gradient[..., span] == 0).all()


def test_cells_come_back_from_what_a_model_sees():
    cells = [
        np.array([1.5, -3.0]),
        np.array([1.0, 0.0]),
        np.array([2.0, 0.0]),
        np.array([0.0, 40.0]),
        np.array([7.0, 0]),
    ]
    columns = [COLUMNS[kind] for kind in KINDS]
    back = decode(columns, encode(columns, cells))
    np.testing.assert_allclose(back[0], cells[0], rtol=1e-6)
    assert [*map(str, back[1])] == ["yes", "no"]
    assert [*map(str, back[2])] == ["blue", "red"]
    assert back[3].tolist() == [0, 40]
    assert back[4].tolist() == [7, 0]
    holed = encode(columns, [np.full(1, np.nan)] * 5)
    assert np.isnan(holed).all()


def test_a_schema_is_written_and_read_and_a_wrong_one_is_named():
    columns = tuple(COLUMNS.values())
    assert columns_of(plain(columns)) == columns
    for wrong in (
        [{"name": "a", "kind": "cauchy"}],
        [{"kind": "gaussian"}],
        "a",
        [{"name": "a", "kind": "gaussian", "x": 1}],
    ):
        with pytest.raises(UserError, match="schema"):
            columns_of(wrong)


def test_it_is_refused_for_data_without_columns():
    with pytest.raises(UserError, match="dataset=table"):
        Table(None).raw_shape((1, 8, 8))
    with pytest.raises(UserError, match="numbers"):
        made("categorical").raw_shape((1, 1, 4))
    assert made("categorical").raw_shape((1, 1, 3)) == (1, 1, 3)


def test_the_noise_of_a_column_is_learned_and_stays_above_its_floor():
    """The standard deviation of greatest likelihood is the error's, and a column that repeats has a finite density."""
    torch.manual_seed(0)
    likelihood = Table(plain([Column("a", "gaussian"), Column("b", "gaussian")]))
    x = torch.randn(500, 1, 1, 2) * torch.tensor([0.3, 0.0])
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-likelihood.log_prob(torch.zeros_like(x), x).mean()).backward()
        optimizer.step()
    rms = x[..., 0].square().mean().sqrt().item()
    assert likelihood.sigma[0].item() == pytest.approx(rms, rel=0.01)
    assert Table.FLOOR < likelihood.sigma[1].item() < 1.2 * Table.FLOOR
    assert math.isfinite(likelihood.log_prob(torch.zeros_like(x), x).mean().item())
