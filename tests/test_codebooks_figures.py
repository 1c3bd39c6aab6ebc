"""Figures of a codebook: the use of each code over time, where the codes lie, what each decodes to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaelab.figures import codebooks, latents, style


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
    assert shown == pytest.approx(alike.where(counts > 0, codebooks.RARE / 2).T[[4, 2, 1, 0, 3]].numpy())
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


def test_a_code_that_is_chosen_once_has_a_colour():
    shown, _ = cells(codebooks.usage(torch.arange(2), torch.tensor([[1e6, 1.0, 0.0]] * 2)))
    assert shown[1:, 0].tolist() == [codebooks.RARE, codebooks.RARE / 2]


@pytest.mark.parametrize(("epochs", "size"), [(1, 1), (2, 4096), (300, 2)])
def test_any_number_of_codes_and_epochs(epochs, size):
    counts = torch.rand(epochs, size, generator=torch.Generator().manual_seed(0)).round()
    assert (style.rendered(codebooks.usage(torch.arange(epochs), counts)) < 255).any()


def test_code_vectors_lie_by_their_principal_components_and_unused_ones_are_hollow():
    codes, counts = torch.tensor([[0.0, 0, 9], [2, 0, 9], [5, 1, 9], [1, -1, 9]]), torch.tensor([6, 0, 2, 0])
    figure = codebooks.vectors(codes, counts, "3 images")
    hollow, full = figure.axes[0].collections
    points, explained = latents.principal_components(codes)
    assert hollow.get_offsets().data == pytest.approx(points[[1, 3]].numpy())
    assert len(hollow.get_facecolors()) == 0
    assert full.get_offsets().data == pytest.approx(points[[0, 2]].numpy())
    assert full.get_array().data == pytest.approx([6 / 2, 2 / 2])
    assert title(figure) == "4 code vectors: 2 chosen by 3 images, the hollow ones by none"
    assert f"{float(explained[0]):.0%}" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(("size", "dimensions", "count"), [(1, 1, 1), (3, 1, 0), (4096, 12, 1)])
def test_any_codebook_has_a_map(size, dimensions, count):
    codes = torch.randn(size, dimensions, generator=torch.Generator().manual_seed(0), requires_grad=True)
    figure = codebooks.vectors(codes, torch.full((size,), count), "images")
    assert (style.rendered(figure) < 255).any()
