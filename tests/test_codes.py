import math

import pytest
import torch

from vaelab.evaluation.metrics.codes import code_histogram, codebook_use, rate_bits


def test_uniform_codes_have_perplexity_k_and_cost_what_the_uniform_prior_says():
    indices = torch.randperm(512 * 12, generator=torch.Generator().manual_seed(0)).remainder(512).view(-1, 4, 3)
    use, rate = codebook_use(code_histogram(indices, 512)), rate_bits(indices, 512)
    assert use.perplexity == pytest.approx(512, abs=1e-9)
    assert (use.codes, use.dead, use.usage) == (512, 0, 1)
    assert rate.uniform == 12 * 9
    assert rate.empirical == pytest.approx(12 * 9, abs=1e-9)


def test_a_constant_code_has_perplexity_one_and_costs_nothing():
    indices = torch.full((5, 2, 2), 3)
    use, rate = codebook_use(code_histogram(indices, 8)), rate_bits(indices, 8)
    assert use.perplexity == 1
    assert (use.dead, use.usage) == (7, 1 / 8)
    assert rate == (4 * 3, 0, 0)


def test_the_histogram_counts():
    indices = torch.tensor([[[0, 2], [2, 2]], [[5, 0], [2, 5]]])
    assert code_histogram(indices, 7).tolist() == [2, 0, 4, 0, 0, 2, 0]
    assert code_histogram(indices, 7).dtype == torch.int64


def test_rates_of_codes_that_depend_on_their_position():
    # frequencies 1/2, 1/4, 1/4 over all; at each position a fair coin between two codes
    indices = torch.tensor([[[0, 1]], [[0, 1]], [[1, 2]], [[1, 2]]])
    rate = rate_bits(indices, 4)
    assert rate.uniform == 4
    assert rate.empirical == pytest.approx(2 * (0.25 * 2 + 0.5 * 1 + 0.25 * 2))
    assert rate.positional == pytest.approx(2 * 1)


def test_rates_are_ordered_and_cost_what_the_perplexity_says():
    indices = torch.randint(0, 9, (200, 3, 5), generator=torch.Generator().manual_seed(0)).square().remainder(11)
    rate = rate_bits(indices, 11)
    assert rate.positional < rate.empirical < rate.uniform
    perplexity = codebook_use(code_histogram(indices, 11)).perplexity
    assert rate.empirical == pytest.approx(15 * math.log2(perplexity))


def test_rectangular_maps_keep_their_positions():
    # a code per position: knowing the position, nothing is left to say
    indices = torch.arange(6).view(1, 2, 3).expand(10, -1, -1)
    assert rate_bits(indices, 6) == pytest.approx((6 * math.log2(6), 6 * math.log2(6), 0))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(4, 4).long(),
        torch.zeros(0, 2, 2).long(),
        torch.zeros(3, 2, 2),
        torch.full((3, 2, 2), 8),
        torch.full((3, 2, 2), -1),
        torch.zeros(3, 2, 2).bool(),
    ],
)
def test_what_is_no_map_of_codes_is_refused(bad):
    for function in code_histogram, rate_bits:
        with pytest.raises(ValueError, match="indices"):
            function(bad, 8)


@pytest.mark.parametrize("bad", [torch.zeros(5), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2, 5)])
def test_an_empty_histogram_has_no_perplexity(bad):
    with pytest.raises(ValueError, match="histogram"):
        codebook_use(bad)
