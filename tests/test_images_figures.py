"""Figures of images: what is really drawn, pixel by pixel and word by word."""

import itertools
import math

import pytest
import torch
from matplotlib.colors import to_rgb

from vaelab.figures import images as pictures
from vaelab.figures import style, walks
from vaelab.figures.sheets import SMALLEST, Sheet, fitted

RED = torch.tensor([round(255 * c) for c in to_rgb(style.VERMILION)])
BLUE = torch.tensor([round(255 * c) for c in to_rgb(style.BLUE)])
SIZES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128), (1, 16, 40), (3, 90, 30)]


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def flat(*levels, size=8):
    """Images of one level each, [..., 1, size, size]."""
    return torch.tensor(levels)[..., None, None, None].expand(*torch.tensor(levels).shape, 1, size, size)


def drawn(figure):
    """The pixels of the sheet of a figure, without words, [H, W, 3]."""
    shown = [text for text in figure.axes[0].texts if text.get_visible()]
    for text in shown:
        text.set_visible(False)
    box, picture = figure.axes[0].bbox, style.rendered(figure).long()
    for text in shown:
        text.set_visible(True)
    left, top = round(box.x0), len(picture) - round(box.y1)
    return picture[top : top + round(box.height), left : left + round(box.width)]


def tiles(figure, height, width):
    """The pictures of a sheet with gaps of white, row by row: found by what is not white. [R][S] of [h, w, 3]."""
    sheet = drawn(figure)
    filled = (sheet != 255).any(2)
    tops = starts(filled.any(1), height)
    return [[sheet[y : y + height, x : x + width] for x in starts(filled[y : y + height].any(0), width)] for y in tops]


def starts(filled, size):
    found, at = [], 0
    while at < len(filled):
        if filled[at]:
            found.append(at)
            at += size
        else:
            at += 1
    return found


def levels(figure, size=128):
    """Of sheets of flat grey images: their levels."""
    return [[round(tile[size // 2, size // 2, 0].item() / 255, 2) for tile in row] for row in tiles(figure, size, size)]


def words(figure):
    """Every visible text of the sheet: (text, x, y), in its pixels."""
    return [(t.get_text(), *t.get_position()) for t in figure.axes[0].texts if t.get_visible()]


def said(figure, **where):
    """Texts in the order in which they are read, of those with the alignment given."""
    texts = [t for t in figure.axes[0].texts if t.get_visible()]
    for name, value in where.items():
        texts = [t for t in texts if getattr(t, f"get_{name}")() == value]
    return [t.get_text() for t in sorted(texts, key=lambda t: (t.get_position()[1], t.get_position()[0]))]


# --- sizes and places -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "factor"), [((1, 8, 8), 16), ((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 8, 32), 8)])
def test_small_images_are_enlarged_by_whole_factors(shape, factor):
    x = noise(5, *shape)
    big = fitted(x, 5)
    assert big.shape == (5, 3, factor * shape[1], factor * shape[2])
    for i, j in itertools.product((0, factor - 1), repeat=2):
        assert torch.equal(big[:, :, i::factor, j::factor], (x * 255).round().byte().expand(5, 3, -1, -1))


def test_large_images_are_reduced_to_means_of_areas():
    x = noise(2, 3, 256, 256)
    means = x.unflatten(3, (128, 2)).mean(4).unflatten(2, (128, 2)).mean(3)
    assert (fitted(x, 2).float() - means * 255).abs().max() < 0.51


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("rows", [1, 20, 64])
@pytest.mark.parametrize("columns", [1, 20])
def test_images_can_be_seen_however_many_there_are(shape, rows, columns):
    big = fitted(torch.zeros(()).expand(rows, columns, *shape), columns)
    side = math.sqrt(big.shape[-1] * big.shape[-2])
    assert SMALLEST - 1 <= side <= 129
    assert big.shape[-1] / big.shape[-2] == pytest.approx(shape[2] / shape[1], rel=0.03)


@pytest.mark.parametrize("shape", SIZES)
def test_every_pixel_is_drawn_at_its_place_and_the_rest_is_white(shape):
    x = noise(2, 3, *shape) * 0.9
    big = fitted(x, 3)
    sheet = Sheet(big, above=[7, 11], before=[5, 0, 9])
    sheet.name_rows(["a name of some length", "b"])
    sheet.name_columns(["1", "2", "3"], "axis")
    picture = drawn(sheet.figure("Title"))
    height, width = big.shape[-2:]
    assert sheet.tops == [7, 7 + height + 11]
    assert sheet.lefts == [5, 5 + width, 5 + 2 * width + 9]
    expected = torch.full_like(picture, 255)
    for i, j in itertools.product(range(2), range(3)):
        y, x = sheet.tops[i], sheet.lefts[j]
        expected[y : y + height, x : x + width] = big[i, j].permute(1, 2, 0)
    assert torch.equal(picture, expected)


# --- words ------------------------------------------------------------------------------------

FIGURES = {
    "reconstructions": lambda x: pictures.reconstructions(x[:, 0], x[:, -1] ** 30),
    "uncertainty": lambda x: pictures.uncertainty(x[:, 0], x[:, 0], x[:, -1] / 1e5),
    "levels": lambda x: pictures.levels(x[:, 0], {"top": x[:, 0], "bottom": x[:, 0]}),
    "code_maps": lambda x: pictures.code_maps(x[:, 0], x[:, 0], {"codes": torch.zeros(len(x), 2, 3).long()}, 512),
    "samples": lambda x: pictures.samples(
        x[:, 0], 8, "Drawn from the prior of a model with a long name, a run and more"
    ),
    "real_and_generated": lambda x: pictures.real_and_generated(x[:, 0], x[:, -1]),
    "classes": lambda x: pictures.classes(x, [f"class {i} {'m' * i}" for i in range(len(x))]),
    "data": lambda x: pictures.data(x, torch.ones(len(x), 9) * 1e9, [f"$_class^{i}" for i in range(len(x))]),
    "traversals": lambda x: walks.traversals(x, torch.linspace(-3.14159, 3.14159, x.shape[1]), ["z"] * len(x), "T"),
    "manifold": lambda x: walks.manifold(
        x[: x.shape[1], : len(x)], torch.linspace(-1.834, 1.834, min(x.shape[:2])), ("z0", "z1"), "Plane"
    ),
    "interpolations": lambda x: walks.interpolations(x, [f"a → {i}" for i in range(len(x))]),
    "between_four": lambda x: walks.between_four(x[:5, :1].expand(-1, min(5, len(x)), -1, -1, -1)),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [(1, 2, (1, 8, 8)), (2, 20, (1, 8, 8)), (10, 11, (3, 32, 32)), (20, 11, (1, 28, 28)), (64, 20, (1, 8, 8)),
     (3, 20, (3, 128, 128)), (3, 12, (1, 64, 8)), (3, 4, (1, 8, 64))],
)  # fmt: skip
def test_no_word_is_cut_and_none_lies_on_another(name, rows, columns, shape):
    figure = FIGURES[name](noise(rows, columns, *shape))
    picture = style.rendered(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].texts if t.get_visible()]
    height, width = picture.shape[:2]
    assert all(b.x0 > 0 and b.y0 > 0 and b.x1 < width and b.y1 < height for b in boxes)
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    edge = torch.cat([picture[:4].flatten(0, 1), picture[-4:].flatten(0, 1)])
    assert (edge == 255).all()
    assert (picture[:, [0, 1, 2, 3, -4, -3, -2, -1]] == 255).all()
    white = (picture == 255).all(2)
    assert (~white).any(1).nonzero().max() > height - 24
    assert (~white).any(0).nonzero().max() > width - 24


def test_names_are_as_written_and_cut_when_long():
    assert said(pictures.classes(noise(2, 3, 1, 8, 8), ["$x_1$", "n" * 99]), ha="right") == ["$x_1$", "n" * 39 + "…"]


def test_narrow_columns_keep_some_of_their_values():
    figure = walks.traversals(noise(1, 20, 1, 64, 8), [i / 8 for i in range(20)], ["z0"])
    ticks = [w for w in said(figure, va="top") if w != "value of the dimension"]
    assert ticks[0] == "0"
    assert 3 < len(ticks) < 20


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_figures_of_images_are_saved_in_every_format(suffix, tmp_path):
    style.save(pictures.reconstructions(noise(3, 3, 8, 8), noise(3, 3, 8, 8)), tmp_path / f"figure{suffix}")
    assert (tmp_path / f"figure{suffix}").stat().st_size > 3000


# --- reconstructions and uncertainty ----------------------------------------------------------


def values_of(colours):
    """The values in [0, 1] of colours of the scale, [..., 3] -> [...]."""
    ramp = (pictures._ramp() * 255).round()
    distances = (colours.float()[..., None, :] - ramp).abs().sum(-1)
    assert distances.min(-1).values.max() == 0
    return distances.argmin(-1) / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_stand_in_rows_with_their_true_errors(channels):
    x, y = noise(10, channels, 8, 8) * 0.9, noise(10, channels, 8, 8, seed=1) * 0.9
    figure = pictures.reconstructions(x, y, columns=4)
    rows = tiles(figure, 128, 128)
    assert [len(row) for row in rows] == [4, 4, 4, 4, 4, 4, 2, 2, 2]
    assert said(figure, ha="right") == ["image", "reconstruction", "|difference|"] * 3
    top = float(said(figure, ha="left", va="top")[0])
    difference = (x - y).abs().mean(1)
    assert difference.max() <= top <= 1.1 * difference.max()
    for i in range(10):
        block, column = 3 * (i // 4), i % 4
        small = [rows[block + k][column][8::16, 8::16] for k in range(3)]
        for image, shown in ((x, small[0]), (y, small[1])):
            assert torch.equal(shown, (image[i] * 255).round().long().expand(3, -1, -1).permute(1, 2, 0))
        assert (values_of(small[2]) * top - difference[i]).abs().max() <= 0.51 / 255 * top
    captions = said(figure, ha="center", va="bottom")
    assert captions == [f"{(a - b).square().mean():#.3g}" for a, b in zip(x, y, strict=True)]
    centres = {x for text, x, _ in words(figure) if text in captions}
    assert centres == {64, 64 + 132, 64 + 264, 64 + 396}


def test_the_scale_is_drawn_from_nothing_to_the_most():
    figure = pictures.reconstructions(flat(0.0, 0.0), flat(0.2, 0.4))
    assert said(figure, ha="left", va="top") == ["0.4"]
    bar = figure.axes[0].images[-1]
    ramp = (pictures._ramp() * 255).round().byte()
    assert torch.equal(torch.tensor(bar.get_array()[:, 0]), ramp.flip(0))
    rows = tiles(figure, 128, 128)
    assert rows[2][1][0, 0].tolist() == ramp[-1].tolist()
    assert rows[2][0][0, 0].tolist() == ramp[128].tolist()
    left, right, low, high = bar.get_extent()
    assert right > left > drawn(figure).shape[1]
    assert (low - high) == 128


def test_perfect_reconstructions_have_errors_of_zero():
    figure = pictures.reconstructions(flat(0.5, 0.2), flat(0.5, 0.2))
    assert said(figure, ha="center") == ["0.00", "0.00"]
    assert (values_of(tiles(figure, 128, 128)[2][0]) == 0).all()


@pytest.mark.parametrize(("value", "top"), [(0.314, 0.32), (0.3, 0.3), (1.0, 1.0), (0.00123, 0.0013), (0.999, 1.0)])
def test_scales_end_at_numbers_of_two_digits(value, top):
    assert pictures._rounded_up(value) == top


def test_uncertainty_shows_deviations_on_a_stated_scale():
    deviations = noise(3, 3, 8, 8) / 7
    figure = pictures.uncertainty(flat(0.1, 0.2, 0.3), flat(0.4, 0.5, 0.6), deviations)
    assert said(figure, ha="right") == ["image", "mean", "standard deviation"]
    rows = tiles(figure, 128, 128)
    assert [[round(t[0, 0, 0].item() / 255, 2) for t in row] for row in rows[:2]] == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    top = float(said(figure, ha="left", va="top")[0])
    for tile, expected in zip(rows[2], deviations.mean(1), strict=True):
        assert (values_of(tile[8::16, 8::16]) * top - expected).abs().max() <= 0.51 / 255 * top


@pytest.mark.parametrize("count", [1, 30, 5000])
def test_errors_are_counted_with_mean_and_median(count):
    mse = torch.cat([noise(count) ** 4, torch.tensor([math.inf, math.nan])])
    axes = pictures.errors(mse).axes[0]
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    mean, median = mse[:count].double().mean().item(), mse[:count].double().quantile(0.5).item()
    assert lines == {f"mean {mean:#.3g}": pytest.approx(mean), f"median {median:#.3g}": pytest.approx(median)}
    assert sum(bar.get_height() for bar in axes.patches) == count
    low, high = axes.get_xlim()
    assert low < mean < high
    assert [t.get_text() for t in axes.get_legend().get_texts()] == list(lines)


def test_bars_hold_the_images_between_their_edges():
    mse = noise(400) ** 3
    for bar in pictures.errors(mse).axes[0].patches:
        inside = (mse >= bar.get_x() - 1e-7) & (mse <= bar.get_x() + bar.get_width() + 1e-7)
        assert abs(inside.sum() - bar.get_height()) <= 1


def test_errors_without_a_finite_one_still_make_a_figure():
    axes = pictures.errors(torch.tensor([math.nan])).axes[0]
    assert not axes.lines
    assert "0 images" in axes.get_title(loc="left")


# --- sets of images ---------------------------------------------------------------------------


def test_samples_stand_row_by_row():
    figure = pictures.samples(flat(0.1, 0.2, 0.3, 0.4, 0.5), columns=2, title="From the prior")
    assert levels(figure) == [[0.1, 0.2], [0.3, 0.4], [0.5]]
    assert said(figure) == ["From the prior"]


def test_fewer_images_than_columns_leave_no_white():
    figure = pictures.samples(flat(0.1, 0.2), columns=8)
    assert drawn(figure).shape == (128, 260, 3)
    assert words(figure) == []


@pytest.mark.parametrize(("real", "generated"), [(4, 4), (1, 1), (5, 2), (2, 5)])
def test_real_images_stand_on_the_left_of_generated_ones(real, generated):
    a, b = [0.1 + i / 50 for i in range(real)], [0.6 + i / 50 for i in range(generated)]
    figure = pictures.real_and_generated(flat(*a), flat(*b))
    flat_levels = [level for row in levels(figure) for level in row]
    assert [v for v in flat_levels if v < 0.5] == pytest.approx(a)
    assert [v for v in flat_levels if v > 0.5] == pytest.approx(b)
    columns = math.ceil(math.sqrt(max(real, generated)))
    middle = drawn(figure)[:, : columns * 132 - 4, 0]
    assert (middle[middle != 255] < 128).all()
    assert [(w, x) for w, x, _ in words(figure)] == [("real", 0), ("generated", columns * 132 - 4 + 24)]


@pytest.mark.parametrize(("count", "columns"), [(32, 8), (30, 6), (16, 4), (7, 4)])
def test_rows_of_real_and_generated_are_full_where_they_can_be(count, columns):
    figure = pictures.real_and_generated(noise(count, 1, 28, 28), noise(count, 1, 28, 28))
    (_, left, _), (_, right, _) = words(figure)
    tile = (right - left - 24 + 4) / columns - 4
    assert tile == int(tile)
    assert tile % 28 == 0


def test_classes_have_a_row_and_a_name_each():
    figure = pictures.classes(flat([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ["cat", "dog"])
    assert levels(figure) == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    assert words(figure) == [("cat", -8, 64), ("dog", -8, 132 + 64)]


def test_levels_are_rows_of_what_is_decoded_with_their_errors():
    figure = pictures.levels(flat(0.1, 0.2), {"top": flat(0.3, 0.4), "bottom": flat(0.1, 0.3)})
    assert said(figure, ha="right") == ["image", "top\nerror 0.040", "and bottom\nerror 0.0050"]
    rows = tiles(figure, 128, 128)
    assert [[round(t[0, 0, 0].item() / 255, 2) for t in row] for row in rows] == [[0.1, 0.2], [0.3, 0.4], [0.1, 0.3]]


def test_code_maps_of_several_levels_have_a_row_each():
    maps = {"top": torch.tensor([[[1]], [[2]]]), "bottom": torch.tensor([[[1, 2], [3, 4]]] * 2)}
    figure = pictures.code_maps(flat(0.1, 0.2), flat(0.3, 0.4), maps, 8)
    assert said(figure, ha="right") == ["image", "reconstruction", "top", "bottom"]
    assert said(figure, ha="left")[0].replace("\n", " ").endswith("6 of 16 codes in these images")


def test_code_maps_show_each_code_in_its_colour_at_its_place():
    maps = torch.tensor([[[0, 1], [2, 511]], [[511, 2], [1, 0]]])
    figure = pictures.code_maps(flat(0.1, 0.2), flat(0.3, 0.4), {"codes": maps}, 512)
    assert said(figure, ha="right") == ["image", "reconstruction", "codes"]
    rows = tiles(figure, 128, 128)
    assert [[round(t[0, 0, 0].item() / 255, 2) for t in row] for row in rows[:2]] == [[0.1, 0.2], [0.3, 0.4]]
    a, b = rows[2]
    assert torch.equal(a.flip(0, 1), b)
    assert len(a.flatten(0, 1).unique(dim=0)) == 4
    colours = (pictures._code_colours(512) * 255).round().long()
    assert torch.equal(a[::64, ::64], colours[maps[0]])
    assert torch.equal(a[63::64, 63::64], colours[maps[0]])
    assert said(figure, ha="left")[0].replace("\n", " ").endswith("4 of 512 codes in these images")


@pytest.mark.parametrize("count", [2, 16, 512])
def test_no_two_codes_have_one_colour(count):
    colours = (pictures._code_colours(count) * 255).round()
    assert len(colours.unique(dim=0)) == count
    assert (colours[1:] - colours[:-1]).abs().sum(1).min() > 100


def test_data_has_images_and_the_histogram_of_their_pixels():
    counts = torch.tensor([[0, 9, 99, 999], [999, 0, 0, 9]])
    figure = pictures.data(flat([0.1, 0.2], [0.3, 0.4]), counts, ["cat", "dog"])
    assert levels(figure) == [[0.1, 0.2], [0.3, 0.4]]
    assert said(figure, ha="right") == ["cat", "dog"]
    assert {"999", "0", "0.5", "1"} <= set(said(figure))
    box, picture = figure.axes[0].bbox, style.rendered(figure).long()
    blue = (picture == BLUE).all(2)
    left, top = round(box.x0) + 260 + 28, len(picture) - round(box.y1)
    for row in range(2):
        for i, count in enumerate(counts[row].tolist()):
            x = left + round((i + 0.5) / 4 * 256)
            height = blue[top + 132 * row : top + 132 * row + 128, x].sum().item()
            assert height == pytest.approx(128 * math.log(1 + count) / math.log(1000), abs=1.5)


# --- walks ------------------------------------------------------------------------------------


def arrows(figure):
    """Where red arrows above rows point, in the rendered sheet: [(x of the tip, y of the tip)]."""
    picture = drawn(figure)
    red = (picture - RED).abs().sum(2) < 30
    tips = [
        (y, x) for y, x in red.nonzero().tolist() if y + 1 == len(red) or not red[y + 1, max(0, x - 1) : x + 2].any()
    ]
    rows = {}
    for y, x in tips:
        rows.setdefault(y, []).append(x)
    return [(sum(xs) / len(xs), y) for y, xs in rows.items()]


def test_traversals_have_a_row_per_dimension_and_a_column_per_value():
    figure = walks.traversals(flat([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), [-1.5, 0.25, 2], ["z7", "z1"], "Walk")
    colourless = drawn(figure)
    assert [[round(colourless[y, x, 0].item() / 255, 2) for x in (64, 196, 328)] for y in (70, 210)] == [
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
    ]
    assert said(figure, ha="right") == ["z7", "z1"]
    assert said(figure, va="top") == ["−1.5", "0.25", "2", "value of the dimension"]
    assert [x for w, x, _ in words(figure) if w in ("−1.5", "0.25", "2")] == [64, 196, 328]
    assert said(figure)[0] == "Walk"


def test_the_plane_of_codes_has_its_first_axis_to_the_right_and_its_second_upwards():
    figure = walks.manifold(flat([0.1, 0.2], [0.3, 0.4]), [-0.67, 0.67], ("z0", "z1"), "Plane")
    colourless = drawn(figure)
    assert [[round(colourless[y, x, 0].item() / 255, 2) for x in (64, 196)] for y in (64, 196)] == [
        [0.3, 0.4],
        [0.1, 0.2],
    ]
    assert said(figure, ha="right") == ["0.67", "z1  −0.67"]
    assert said(figure, va="top") == ["−0.67", "0.67", "z0"]


@pytest.mark.parametrize("reach", [3.0, 0.01, 1e-4])
def test_the_values_of_a_traversal_can_be_told_apart(reach):
    values = torch.linspace(-reach, reach, 5)
    shown = said(walks.traversals(noise(1, 5, 1, 64, 64) / 4, values, ["z0"], unit="deviations"), va="top")
    assert shown[-1] == "deviations"
    assert [float(word.replace("−", "-")) for word in shown[:-1]] == pytest.approx(values.tolist(), rel=1e-4)


def test_arrows_point_to_the_codes_own_values():
    """At a column, between two, a quarter of the way, and beyond the last."""
    values = [-2.0, 0.0, 2.0]
    figure = walks.traversals(noise(4, 3, 1, 8, 8) / 4, values, list("abcd"), start=[2.0, -1.0, 0.5, 2.1])
    points = arrows(figure)
    assert [x for x, _ in points] == pytest.approx([64 + 264, 64 + 66, 64 + 132 + 33], abs=1.5)
    assert [y for _, y in points] == pytest.approx([11, 11 + 145, 11 + 290], abs=2)
    assert "the code's own value" in said(figure)


def test_the_start_is_the_priors_mean_if_none_is_given():
    figure = walks.traversals(noise(2, 3, 1, 8, 8) / 4, torch.tensor([-2.0, 0.0, 2.0]), ["z0", "z1"])
    assert [x for x, _ in arrows(figure)] == pytest.approx([196, 196], abs=1)


def test_without_a_start_within_the_values_nothing_is_marked():
    figure = walks.traversals(noise(2, 3, 1, 8, 8) / 4, [1, 2, 3], ["z0", "z1"])
    assert arrows(figure) == []
    assert "the code's own value" not in said(figure)


def test_images_stand_apart_from_what_lies_between_them():
    figure = walks.interpolations(flat([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9]), ["a → b", "c → d"])
    assert levels(figure) == [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9]]
    assert said(figure, va="top")[:5] == ["image", "0", "0.5", "1", "image"]
    assert said(figure, ha="right") == ["a → b", "c → d"]
    white = (drawn(figure)[64] == 255).all(1)
    assert white.sum() == 2 * walks.APART + 2 * 4
    assert white[128 : 128 + walks.APART].all()
    assert white[-128 - walks.APART : -128].all()


def test_ways_without_the_images_have_even_gaps():
    figure = walks.interpolations(flat([0.1, 0.2, 0.3]), ["a → b"], ends=False)
    assert levels(figure) == [[0.1, 0.2, 0.3]]
    assert said(figure, va="top")[:3] == ["0", "0.5", "1"]
    assert drawn(figure).shape[1] == 3 * 128 + 2 * 4


def test_the_way_is_said_exactly_or_not_at_all():
    for steps, said in (
        (9, ["0", "0.125", "0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1"]),
        (7, ["0", "0.5", "1"]),
    ):
        figure = walks.interpolations(noise(1, steps, 1, 64, 64), ["linear"], ends=False)
        assert [w for w, *_ in words(figure) if w[:1] in ("0", "1")] == said


@pytest.mark.parametrize(
    ("steps", "kept", "size"), [(21, 21, 56), (61, 21, 56), (41, 21, 56), (48, 21, 56), (101, 21, 56)]
)
def test_long_rows_are_thinned_to_what_can_be_seen(steps, kept, size):
    images = torch.linspace(0.1, 0.9, steps).view(1, steps, 1, 1, 1).expand(2, steps, 1, 28, 28)
    values = torch.linspace(-3, 3, steps)
    for figure in (walks.interpolations(images, ["a", "b"], ends=False), walks.traversals(images, values, ["a", "b"])):
        row = levels(figure, size)[0]
        assert len(row) == kept
        assert (row[0], row[-1]) == pytest.approx((0.1, 0.9), abs=0.01)
        assert figure.get_figwidth() * figure.dpi < 1600
        note = f"({kept} of {steps} steps are shown)"
        assert any(note in word for word, *_ in words(figure)) == (kept < steps)
    with_ends = torch.cat([images[:, :1], images, images[:, -1:]], 1)
    ticks = [x for _, x, y in words(walks.interpolations(with_ends, ["a", "b"])) if y > 2 * 56]
    assert len(ticks) <= kept + 3


def test_two_images_alone_are_a_way_too():
    assert said(walks.interpolations(flat([0.1, 0.3]), ["a → b"]), va="top")[:2] == ["image", "image"]


def test_the_four_are_framed_in_the_corners():
    levels_ = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
    figure = walks.between_four(flat(*levels_))
    picture = drawn(figure)
    for i, j in itertools.product(range(3), repeat=2):
        tile = picture[132 * i : 132 * i + 128, 132 * j : 132 * j + 128]
        assert ((tile.float() / 255 - levels_[i][j]).abs() < 0.003).all()
        beside = picture[132 * i + 64, 132 * j + (128 if j < 2 else -1)]
        assert ((beside - RED).abs().sum() < 30) == (i != 1 and j != 1), (i, j)


def test_one_code_alone_is_framed_once():
    figure = walks.between_four(flat([0.1]))
    assert len(figure.axes[0].patches) == 1


def test_steps_are_left_out_evenly_where_it_can_be():
    assert walks._thinned(40) == list(range(0, 40, 3))
    assert len(walks._thinned(48)) == walks.MOST  # 47 has no divisor
    assert walks._thinned(48)[-1] == 47
