"""Figures of a codebook: the use of each code over time, where the codes lie, what each decodes to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaelab.figures import codebooks, style


def cells(figure):
    """The heat map, and its extent."""
    (picture,) = figure.axes[0].images
    return np.ma.filled(picture.get_array().astype(float), np.nan), picture.get_extent()


def title(figure):
    return figure.axes[0].get_title(loc="left")


def test_codes_stand_by_their_use_in_the_last_epoch_then_by_when_they_were_used_last():
    counts = torch.tensor([[3.0, 1, 0, 0, 0], [0, 2, 1, 0, 1], [0, 0, 1, 0, 3]])
    figure = codebooks.usage(torch.arange(3), counts)
    shown, extent = cells(figure)
    alike = 5 * counts / counts.sum(1, keepdim=True)
    assert shown == pytest.approx(alike.T[[4, 2, 1, 0, 3]].clamp_min(codebooks.RARE / 10).numpy())
    assert extent == [0.5, 3.5, 4.5, -0.5]
    assert title(figure) == "Codes chosen in training: 2 of 5 in the last epoch; 2 others were before"


def test_white_is_a_code_that_was_not_chosen_and_grey_a_lost_epoch():
    figure = codebooks.usage(torch.tensor([0, 3]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    shown, _ = cells(figure)
    assert np.isnan(shown).tolist() == [[False, True, True, False]] * 2
    (picture,) = figure.axes[0].images
    never, lost = picture.to_rgba(shown[1, :2])
    assert never.tolist() == [1, 1, 1, 1]
    assert lost[3] == 0  # the grey behind it is seen
    assert title(figure) == "Codes chosen in training: 2 of 2 in the last epoch"


@pytest.mark.parametrize(("epochs", "size"), [(1, 1), (2, 4096), (300, 2)])
def test_any_number_of_codes_and_epochs(epochs, size):
    counts = torch.rand(epochs, size, generator=torch.Generator().manual_seed(0)).round()
    assert (style.rendered(codebooks.usage(torch.arange(epochs), counts)) < 255).any()
