import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba

from vaelab.figures import latents, style
from vaelab.figures.latents import principal_components


def normals(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def marks(figure):
    """Places and colours of all marks."""
    style.rendered(figure)  # colours of a map are known once it is drawn
    places, colours = [], []
    for group in figure.axes[0].collections:
        xy = np.asarray(group.get_offsets())
        faces = group.get_facecolors()
        places += xy.tolist()
        colours += [to_hex(faces[i % len(faces)]) for i in range(len(xy))]
    return places, colours


def legend(figure):
    (found,) = figure.legends
    return {
        text.get_text(): to_hex(line.get_color()) for text, line in zip(found.texts, found.legend_handles, strict=True)
    }


def scatter(points, values, names=None):
    return latents.scatter(points, values, ("z 3", "z 7"), "Means", names)


# --- scatter ----------------------------------------------------------------------------------


def test_points_lie_where_they_are_and_axes_say_what_they_are():
    points = normals(20, 2)
    figure = scatter(points, None)
    assert marks(figure)[0] == points.tolist()
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("z 3", "z 7", "Means")
    assert axes.get_aspect() == 1
    assert not figure.legends


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_each_class_has_its_colour_and_name(kind):
    labels = torch.tensor([2, 0, 2, 1, 0]).to(kind)
    figure = scatter(normals(5, 2), labels, ["cat", "dog", "owl"])
    colours = marks(figure)[1]
    assert [legend(figure)[name] for name in ("owl", "cat", "owl", "dog", "cat")] == colours
    assert list(legend(figure)) == ["cat", "dog", "owl"]
    assert colours[1] == style.CYCLE[0].lower()
    assert len(figure.axes) == 1


def test_twenty_classes_have_twenty_colours_and_twenty_one_a_colour_bar():
    figure = scatter(normals(20, 2), torch.arange(20))
    assert len(set(legend(figure).values())) == 20
    assert list(legend(figure)) == [str(i) for i in range(20)]
    figure = scatter(normals(21, 2), torch.arange(21), ["position"])
    assert not figure.legends
    assert figure.axes[1].get_ylabel() == "position"


def test_a_factor_is_coloured_by_its_value():
    values = torch.tensor([0.5, 0.1, 0.9])
    figure = scatter(normals(3, 2), values, ["orientation"])
    group = figure.axes[0].collections[-1]
    assert np.asarray(group.get_array()) == pytest.approx(values.numpy())
    assert group.get_clim() == pytest.approx((0.1, 0.9))
    assert figure.axes[1].get_ylabel() == "orientation"
    assert len(set(marks(figure)[1])) == 3


def test_a_constant_factor_can_be_drawn():
    assert len(marks(scatter(normals(4, 2), torch.full((4,), 0.5)))[0]) == 4


def test_points_that_are_not_finite_are_left_out_and_unknown_values_are_grey():
    points = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [2.0, math.inf], [3.0, 3.0], [4.0, 4.0]])
    values = torch.tensor([1.0, 1.0, 1.0, math.nan, 0.0])
    places, colours = marks(scatter(points, values))
    found = dict(zip(map(tuple, places), colours, strict=True))
    assert found == {
        (0, 0): style.CYCLE[1].lower(),
        (3, 3): to_hex("0.8"),
        (4, 4): style.CYCLE[0].lower(),
    }


@pytest.mark.parametrize("values", [None, torch.zeros(0), torch.zeros(0).long()])
def test_no_points_make_an_empty_plane(values):
    assert marks(scatter(torch.zeros(0, 2), values))[0] == []


# --- dimensions -------------------------------------------------------------------------------


def bars(axes):
    """Of each collection, label: (left, bottom, right, top) of its bars."""
    found = {}
    for group in axes.collections:
        corners = [path.vertices for path in group.get_paths()]
        found[group.get_label()] = [(*c.min(0), *c.max(0)) for c in corners]
    return found


def heights(boxes):
    return [top - low for _, low, _, top in boxes]


def test_dimensions_stand_in_the_order_of_their_kl_with_their_numbers():
    kl, means, variances = torch.tensor([0.5, 3.0, 0.0, 1.0]), torch.tensor([0.4, 0.9, 0.0, 0.7]), torch.rand(4)
    figure = latents.dimensions(kl, means, variances)
    top, bottom = figure.axes
    order = [1, 3, 0, 2]
    assert heights(bars(top)["mean KL"]) == pytest.approx(kl[order].tolist())
    assert [left for left, *_ in bars(top)["mean KL"]] == pytest.approx([i - 0.4 for i in range(4)])
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["1", "3", "0", "2"]
    assert bottom.get_xticks().tolist() == [0, 1, 2, 3]
    assert heights(bars(bottom)["of the means"]) == pytest.approx(means[order].tolist())
    within = bars(bottom)["within posteriors"]
    assert heights(within) == pytest.approx(variances[order].tolist(), abs=1e-6)
    assert [low for _, low, _, _ in within] == pytest.approx(means[order].tolist())  # they add up
    assert top.get_title(loc="left") == "KL of each latent dimension over the images drawn: 2 of 4 above 1 nat"
    assert to_hex(top.collections[0].get_facecolor()[0]) == style.COLOURS["kl"].lower()
    assert top.get_ylabel() == "nats per image"


@pytest.mark.parametrize("size", [0.01, 5.0])
def test_one_nat_and_the_priors_variance_are_in_sight(size):
    for axes in latents.dimensions(torch.full((3,), size), torch.full((3,), size), torch.zeros(3)).axes:
        assert [list(line.get_ydata()) for line in axes.get_lines()] == [[1, 1]]
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > max(1, size)


@pytest.mark.parametrize("count", [1, 2, 25, 26, 128, 200])
def test_any_number_of_dimensions(count):
    kl = torch.rand(count, generator=torch.Generator().manual_seed(0))
    figure = latents.dimensions(kl, kl, 1 - kl)
    assert len(bars(figure.axes[0])["mean KL"]) == count
    shown = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    order = kl.argsort(descending=True).tolist()
    assert shown == [str(order[int(place)]) for place in figure.axes[1].get_xticks()]
    assert len(shown) <= latents.LABELS


def test_a_dimension_without_a_kl_is_last_and_has_no_bar():
    figure = latents.dimensions(torch.tensor([math.nan, 1.0]), torch.ones(2), torch.zeros(2))
    assert len(bars(figure.axes[0])["mean KL"]) == 1
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["1", "0"]


# --- codebook ---------------------------------------------------------------------------------


def steps(axes):
    """Heights of the bars, and marks below dead codes, of a panel."""
    uses, dead = (patch.get_data().values for patch in axes.patches)
    return uses.tolist(), (dead < 0).tolist()


def test_codes_stand_by_frequency_and_by_index():
    figure = latents.codebook(torch.tensor([3, 0, 7, 2]), 2.5, "9 images")
    ranked, indexed = figure.axes
    assert steps(ranked) == ([7, 3, 2, 0], [False, False, False, True])
    assert steps(indexed) == ([3, 0, 7, 2], [False, True, False, False])
    assert ranked.get_title(loc="left") == "3 of 4 codes chosen, perplexity 2.5\nby 9 images"
    alike, perplexity = ranked.get_lines()
    assert list(alike.get_ydata()) == [3, 3]  # 12 choices of 4 codes
    assert list(perplexity.get_xdata()) == [2, 2]  # the right side of code 2.5 of 4, whose bars begin at -0.5
    assert to_hex(perplexity.get_color()) == style.COLOURS["perplexity"].lower()


def test_dead_codes_are_named_in_ranges():
    figure = latents.codebook(torch.tensor([0, 30, 0, 0, 0, 30, 30, 0, 0]), 3.0, "9 images")
    assert figure.get_supxlabel() == "dead: 0, 2–4, 7–8"
    assert figure.axes[1].get_title(loc="left") == "6 codes dead"


def test_few_images_call_no_code_dead():
    """144 images choose 576 codes of 512: many more than are dead are not among them."""
    figure = latents.codebook(torch.tensor([0, 30, 0, 0, 0, 30, 29, 0, 0]), 3.0, "9 images")
    assert figure.get_supxlabel() == "not chosen: 0, 2–4, 7–8"
    title = figure.axes[1].get_title(loc="left")
    assert title == "6 codes not chosen:\ntoo few images to call any dead (89 codes drawn)"


def test_a_long_list_of_dead_codes_is_cut():
    text = latents.codebook(torch.arange(512) % 2, 256.0, "9 images").get_supxlabel()
    assert text == f"not chosen: {', '.join(str(2 * i) for i in range(12))}, …"
    assert not latents.codebook(torch.arange(24) % 2, 12.0, "9 images").get_supxlabel().endswith("…")


@pytest.mark.parametrize("perplexity", [20.0, 250.0, 440.0, 511.0])
def test_the_perplexity_does_not_run_through_the_legend(perplexity):
    figure = latents.codebook(torch.arange(512), perplexity, "9 images")
    style.rendered(figure)
    ranked = figure.axes[0]
    line = ranked.get_lines()[1]
    assert line.get_window_extent().y1 < ranked.get_legend().get_window_extent().y0


def test_no_dead_codes_are_not_named():
    figure = latents.codebook(torch.tensor([1, 2]), 1.9, "9 images")
    assert figure.get_supxlabel() == ""
    assert figure.axes[1].get_title(loc="left") == "No codes not chosen"


@pytest.mark.parametrize("counts", [torch.zeros(4), torch.tensor([9]), torch.ones(2048)])
def test_extreme_codebooks_fit_their_panels(counts):
    figure = latents.codebook(counts, float("nan") if not counts.any() else float(len(counts)), "9 images")
    style.rendered(figure)
    for axes in figure.axes:
        assert axes.get_ylim()[1] > counts.max()
        box = axes.get_position()
        assert box.width > 0.3  # the layout holds


# --- principal components ---------------------------------------------------------------------


def test_components_are_those_of_the_covariance():
    codes = normals(400, 5) @ torch.diag(torch.tensor([1.0, 5.0, 0.3, 2.0, 0.1]).double()) + 7
    scores, explained = principal_components(codes)
    variances = torch.linalg.eigvalsh(codes.T.cov()).flip(0)
    assert torch.allclose(explained, (variances / variances.sum())[:2])
    assert torch.allclose(scores.T.cov(), torch.diag(variances[:2]), atol=1e-9)
    assert torch.allclose(scores.mean(0), torch.zeros(2).double(), atol=1e-9)
    assert torch.corrcoef(torch.stack([scores[:, 0], codes[:, 1]]))[0, 1] > 0.99  # the axis points up


def test_the_sign_does_not_depend_on_the_order_of_images():
    codes = normals(50, 4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(principal_components(codes)[0][order], principal_components(codes[order])[0], atol=1e-8)


def test_one_dimension_has_no_second_component():
    scores, explained = principal_components(torch.tensor([[1.0], [3.0]]))
    assert scores.tolist() == [[-1, 0], [1, 0]]
    assert explained.tolist() == [1, 0]


@pytest.mark.parametrize("codes", [torch.full((5, 3), 2.0), torch.ones(1, 4)])
def test_constant_codes_have_no_variance_to_explain(codes):
    scores, explained = principal_components(codes)
    assert not scores.any()
    assert not explained.any()


def test_codes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 3"):
        principal_components(torch.tensor([[0.0, 1.0], [math.nan, math.inf], [1.0, 0.0]]))


def test_colours_of_classes_differ():
    assert len({to_rgba(colour) for colour in latents.PALETTE}) == latents.MOST_CLASSES
