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
    figure = codebooks.usage(torch.arange(3), {"codes": counts})
    shown, extent = cells(figure)
    alike = 5 * counts / counts.sum(1, keepdim=True)
    assert shown == pytest.approx(alike.where(counts > 0, codebooks.RARE / 2).T[[4, 2, 1, 0, 3]].numpy())
    assert extent == [0.5, 3.5, 4.5, -0.5]
    assert title(figure) == "Codes chosen in training: 2 of 5 in the last epoch; 2 more before"


def test_white_is_a_code_that_was_not_chosen_and_grey_a_lost_epoch():
    figure = codebooks.usage(torch.tensor([0, 3]), {"codes": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})
    shown, _ = cells(figure)
    assert np.isnan(shown).tolist() == [[False, True, True, False]] * 2
    (picture,) = figure.axes[0].images
    never, lost = picture.to_rgba(shown[1, :2])
    assert never.tolist() == [1, 1, 1, 1]
    assert lost[3] == 0  # the grey behind it is seen
    assert title(figure) == "Codes chosen in training: 2 of 2 in the last epoch"


def test_a_code_that_is_chosen_once_has_a_colour():
    shown, _ = cells(codebooks.usage(torch.arange(2), {"codes": torch.tensor([[1e6, 1.0, 0.0]] * 2)}))
    assert shown[1:, 0].tolist() == [codebooks.RARE, codebooks.RARE / 2]


@pytest.mark.parametrize(("epochs", "size"), [(1, 1), (2, 4096), (300, 2)])
def test_any_number_of_codes_and_epochs(epochs, size):
    counts = torch.rand(epochs, size, generator=torch.Generator().manual_seed(0)).round()
    assert (style.rendered(codebooks.usage(torch.arange(epochs), {"codes": counts})) < 255).any()


def test_code_vectors_lie_by_their_principal_components_and_unused_ones_are_hollow():
    codes, counts = torch.tensor([[0.0, 0, 9], [2, 0, 9], [5, 1, 9], [1, -1, 9]]), torch.tensor([[6, 0, 2, 0]])
    figure = codebooks.vectors({"codes": codes}, counts, "3 images")
    hollow, full = figure.axes[0].collections
    points, explained = latents.principal_components(codes)
    assert hollow.get_offsets().data == pytest.approx(points[[1, 3]].numpy())
    assert len(hollow.get_facecolors()) == 0
    assert full.get_offsets().data == pytest.approx(points[[0, 2]].numpy())
    assert full.get_array().data == pytest.approx([6 / 2, 2 / 2])
    assert title(figure) == "4 code vectors: 2 chosen by 3 images\nhollow: chosen by none"
    assert f"{float(explained[0]):.0%}" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(("size", "dimensions", "count"), [(1, 1, 1), (3, 1, 0), (4096, 12, 1)])
def test_any_codebook_has_a_map(size, dimensions, count):
    codes = torch.randn(size, dimensions, generator=torch.Generator().manual_seed(0), requires_grad=True)
    figure = codebooks.vectors({"codes": codes}, torch.full((1, size), count), "images")
    assert (style.rendered(figure) < 255).any()


@pytest.mark.parametrize(("size", "shape"), [((8, 8), (4, 4)), ((9, 6), (4, 3)), ((5, 5), (1, 1))])
def test_a_patch_is_the_mean_around_all_places_that_have_the_code(size, shape):
    generator = torch.Generator().manual_seed(0)
    images, codes = torch.rand(6, 3, *size, generator=generator), torch.tensor([4, 0, 2])
    maps = torch.randint(5, (6, *shape), generator=generator)
    found = codebooks.mean_patches(images, maps, codes)
    tall, wide = -(-size[0] // shape[0]), -(-size[1] // shape[1])
    assert found.shape == (3, 3, 3 * tall, 3 * wide)
    for patch, code in zip(found, codes, strict=True):
        for y in range(3 * tall):
            for x in range(3 * wide):
                seen = []
                for image, row, column in (maps == code).nonzero().tolist():
                    i = row * size[0] // shape[0] - tall + y
                    j = column * size[1] // shape[1] - wide + x
                    if 0 <= i < size[0] and 0 <= j < size[1]:
                        seen.append(images[image, :, i, j])
                expected = torch.stack(seen).mean(0) if seen else torch.ones(3)
                assert torch.allclose(patch[:, y, x], expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 17, 64])
def test_each_patch_has_the_number_of_its_code(count):
    codes = torch.arange(100, 100 + count)
    figure = codebooks.patches({"codes": torch.rand(count, 1, 12, 12)}, {"codes": codes}, "patches")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == [*map(str, codes.tolist()), "patches"]
    assert (style.rendered(figure) < 255).any()


def test_each_level_has_a_calendar_of_its_own():
    counts = {"top": torch.tensor([[3.0, 1], [0, 2]]), "bottom": torch.tensor([[3.0, 1, 0, 1], [1, 1, 1, 1]])}
    figure = codebooks.usage(torch.arange(2), counts)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "top: 1 of 2 in the last epoch; 1 more before",
        "bottom: 4 of 4 in the last epoch",
    ]
    for axes, (_, level) in zip(panels, counts.items(), strict=True):
        (alone,) = codebooks.usage(torch.arange(2), {"codes": level}).axes[0].images
        assert (axes.images[0].get_array() == alone.get_array()).all()


def test_each_level_has_a_map_of_its_own_codes():
    generator = torch.Generator().manual_seed(0)
    codes = {name: torch.randn(5, 3, generator=generator) for name in ("stage1", "stage2", "stage3")}
    counts = torch.tensor([[1, 1, 1, 1, 1], [0, 2, 0, 0, 1], [3, 0, 0, 0, 0]])
    figure = codebooks.vectors(codes, counts, "7 images")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").partition(" chosen")[0] for axes in panels] == [
        "stage1: 5 of 5",
        "stage2: 2 of 5",
        "stage3: 1 of 5",
    ]
    for axes, own, uses in zip(panels, codes.values(), counts, strict=True):
        points, _ = latents.principal_components(own)
        assert axes.collections[1].get_offsets().data == pytest.approx(points[uses > 0].numpy())
    assert "7 images" in figure.get_suptitle()


def test_patches_of_a_level_stand_below_those_of_the_level_above():
    codes = {"top": torch.arange(20), "bottom": torch.arange(50, 53)}
    pictures = {"top": torch.rand(20, 1, 24, 24), "bottom": torch.rand(3, 1, 12, 12)}
    figure = codebooks.patches(pictures, codes, "patches")
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["0"] == heights["15"] < heights["16"] == heights["19"] < heights["50"] == heights["52"]
    assert heights["0"] < heights["top"] < heights["16"] < heights["50"] < heights["bottom"]


def test_levels_have_a_panel_each_with_their_own_perplexity():
    counts = torch.tensor([[4.0, 0, 0, 0], [1.0, 1, 1, 1]])
    figure = codebooks.levels(counts, ["top", "bottom"], "12 images")
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "top: 1 of 4,\nperplexity 1.0",
        "bottom: 4 of 4,\nperplexity 4.0",
    ]


@pytest.mark.parametrize(("shape", "image"), [((2, 3), (1, 8, 12)), ((32, 32), (3, 64, 64)), ((1, 1), (1, 8, 8))])
def test_losses_stand_where_the_positions_are(shape, image):
    nats = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    figure = codebooks.position_losses(torch.rand(image), {"codes": nats}, "a prior")
    left, right = figure.axes[:2]
    assert right.images[0].get_array().data == pytest.approx(nats.double().numpy())
    assert left.images[0].get_extent() == right.images[0].get_extent() == [-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5]
    written = {text.get_position(): text.get_text() for text in right.texts}
    few = nats.numel() <= codebooks.WRITTEN
    assert written == ({(c, r): f"{nats[r, c]:.2f}" for r in range(shape[0]) for c in range(shape[1])} if few else {})
    assert (style.rendered(figure) < 255).any()


def test_losses_of_several_levels_have_a_panel_each():
    nats = {"top": torch.full((2, 2), 2.0), "bottom": torch.full((4, 4), 0.5)}
    figure = codebooks.position_losses(torch.rand(1, 8, 8), nats, "a prior")
    left, top, bottom = figure.axes[:3]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in (left, top, bottom)] == [
        "mean image",
        "top: 8.00 nats",
        "bottom: 8.00 nats",
    ]
    assert top.images[0].get_clim() == bottom.images[0].get_clim() == (0, 2)
