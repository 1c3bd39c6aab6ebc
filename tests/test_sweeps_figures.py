import itertools
import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text

from vaelab.figures import style, sweeps, trends
from vaelab.figures.sweeps import MISSING

POINTS = [("beta=4", 3.0, 95.0, False), ("beta=1", 20.0, 80.0, False), ("beta=2", 21.0, 90.0, True)]


# --- rate and distortion ----------------------------------------------------------------------


def curve_lines(figure, colour):
    return [line for line in figure.axes[0].get_lines() if to_hex(line.get_color()) == colour.lower()]


def test_models_lie_at_their_rate_and_distortion_dominated_ones_hollow_off_the_line():
    figure = sweeps.rate_distortion([POINTS[::-1]])
    front, beaten = curve_lines(figure, style.CYCLE[0])
    assert np.asarray(front.get_xydata()).tolist() == [[3, 95], [20, 80]]
    assert front.get_linestyle() == "-"
    assert np.asarray(beaten.get_xydata()).tolist() == [[21, 90]]
    assert beaten.get_linestyle() == "None"
    assert beaten.get_markerfacecolor() == "white"
    axes = figure.axes[0]
    assert axes.get_xlabel() == "rate: KL, nats per image"
    assert axes.get_ylabel() == "distortion: −log p(x|z), nats per image"


def test_each_point_has_its_label():
    texts = sweeps.rate_distortion([POINTS]).axes[0].texts
    assert {text.get_text(): text.xy for text in texts} == {label: (r, d) for label, r, d, _ in POINTS}


def test_sets_that_cannot_be_compared_have_lines_and_labels_of_their_own_colour():
    other = [("C=1", 1.0, 70.0, False), ("C=5", 5.0, 60.0, False)]
    figure = sweeps.rate_distortion([POINTS, other])
    line = curve_lines(figure, style.CYCLE[1])[0]
    assert np.asarray(line.get_xydata()).tolist() == [[1, 70], [5, 60]]
    colours = {text.get_text(): to_hex(text.get_color()) for text in figure.axes[0].texts}
    assert colours["C=5"] == style.CYCLE[1].lower()
    assert colours["beta=1"] == style.CYCLE[0].lower()


def test_the_dotted_line_has_the_least_rate_plus_distortion():
    axes = sweeps.rate_distortion([POINTS]).axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert np.asarray(line.get_xydata()).sum(1) == pytest.approx(98)  # of beta=4
    assert "98.0" in axes.get_legend().get_texts()[0].get_text()


def test_labels_do_not_cover_one_another():
    close = [(f"model.beta={i}", 10.0 + 0.4 * i, 90.0 - 0.4 * i, False) for i in range(8)]
    far = [("low", 0.0, 100.0, False), ("high", 30.0, 60.0, False)]
    figure = sweeps.rate_distortion([close, far])
    style.rendered(figure)
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_labels_lie_on_no_line():
    points = [(f"model.beta={b}", r, d, False) for b, r, d in ((8, 1.0, 95.0), (4, 4.0, 88.0), (1, 20.0, 80.0))]
    figure = sweeps.rate_distortion([points])
    style.rendered(figure)
    axes = figure.axes[0]
    for line in axes.get_lines():
        ends = axes.transData.transform(np.asarray(line.get_xydata()))
        for a, b in itertools.pairwise(ends):
            along = a + np.linspace(0, 1, 2000)[:, None] * (b - a)
            for text in axes.texts:
                box = Text.get_window_extent(text)
                assert not box.count_contains(along), text.get_text()


@pytest.mark.parametrize("count", [13, 30])
def test_many_points_have_numbers_and_a_key_that_fits(count):
    points = [(f"model.beta={i}", 1.0 + i, 100.0 - 2 * i, False) for i in range(count)]
    figure = sweeps.rate_distortion([points])
    assert {text.get_text(): text.xy[0] for text in figure.axes[0].texts} == {str(i + 1): 1.0 + i for i in range(count)}
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == [f"{i + 1}  model.beta={i}" for i in range(count)]
    style.rendered(figure)
    box = key.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.height


@pytest.mark.parametrize("curves", [[], [[]], [[("a", math.nan, 1.0, False)]], [POINTS[:1]]])
def test_few_or_no_points_can_be_drawn(curves):
    figure = sweeps.rate_distortion(curves)
    assert len(figure.axes[0].texts) == sum(math.isfinite(r) for curve in curves for _, r, _, _ in curve)
    style.rendered(figure)


# --- parallel coordinates ---------------------------------------------------------------------


def run_lines(figure):
    """Height of each run on each axis, and its colour."""
    (group,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return [segment[:, 1].tolist() for segment in group.get_segments()], [to_hex(c[:3]) for c in group.get_colors()]


def ticks(figure, place):
    """Heights and texts of an axis' values."""
    found = {}
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        if text.get_ha() == "right" and round(x) == place:
            found[text.get_text()] = y
    return found


def test_values_map_linearly_between_the_least_and_the_greatest():
    figure = sweeps.parallel(["a", "b"], [[1, -10.0], [2, -30.0], [5, -20.0]], 1)
    lines, _ = run_lines(figure)
    assert lines == [[0, 1], [0.25, 0], [1, 0.5]]
    assert ticks(figure, 0) == {"1": 0, "2": 0.25, "5": 1}
    assert ticks(figure, 1) == {"-30": 0, "-20": 0.5, "-10": 1}


def test_positive_numbers_over_many_magnitudes_map_by_their_logarithm():
    figure = sweeps.parallel(["lr", "x"], [[1e-5, 0.0], [1e-3, 1.0], [1e-1, 2.0]], 0)
    assert [line[0] for line in run_lines(figure)[0]] == pytest.approx([0, 0.5, 1])
    assert ticks(figure, 0) == pytest.approx({"1e-05": 0, "0.001": 0.5, "0.1": 1})
    assert any("(log)" in text.get_text() for text in figure.axes[0].texts)
    figure = sweeps.parallel(["x"], [[0.0], [1e-3], [1.0]], 0)  # zero has no logarithm
    assert [line[0] for line in run_lines(figure)[0]] == pytest.approx([0, 1e-3, 1])


def test_categories_stand_one_above_the_other():
    figure = sweeps.parallel(["model", "x"], [["vae", 1.0], ["beta", 2.0], ["vae", 3.0], ["ae", 4.0]], 1)
    assert [line[0] for line in run_lines(figure)[0]] == [0, 0.5, 0, 1]
    assert ticks(figure, 0) == {"vae": 0, "beta": 0.5, "ae": 1}


def test_lines_do_not_run_through_the_words_of_an_axis():
    figure = sweeps.parallel(["model", "x"], [["vae", 1.0], ["beta", 2.0]], 1)
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    words = [text for text in figure.axes[0].texts if text.get_ha() == "right"]
    assert words
    for text in words:
        box = text.get_bbox_patch()
        assert box.get_facecolor() == (1, 1, 1, 1)
        assert text.get_zorder() > lines.get_zorder()


def test_truth_values_and_mixed_cells_are_categories():
    figure = sweeps.parallel(["flag", "mixed"], [[True, 1], [False, "auto"]], 0)
    assert ticks(figure, 0) == {"True": 0, "False": 1}
    assert ticks(figure, 1) == {"1": 0, "auto": 1}


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_line_passes_below_an_axis_without_a_value(missing):
    figure = sweeps.parallel(["a", "b", "c"], [[1.0, missing, 3.0], [2.0, 5.0, 4.0], [3.0, 6.0, 5.0]], 0)
    assert run_lines(figure)[0][0] == [0, MISSING, 0]
    assert ticks(figure, 1) == {"5": 0, "6": 1, "none": MISSING}
    assert "none" not in ticks(figure, 0)


def test_a_column_without_any_value_can_be_drawn():
    figure = sweeps.parallel(["a", "b"], [[None, 1.0], [None, 2.0]], 0)
    lines, colours = run_lines(figure)
    assert [line[0] for line in lines] == [MISSING, MISSING]
    assert set(colours) == {style.GREY.lower()}


def test_a_constant_lies_in_the_middle():
    figure = sweeps.parallel(["a", "b"], [[7.0, "x"], [7.0, "x"]], 0)
    assert run_lines(figure)[0] == [[0.5, 0.5], [0.5, 0.5]]
    assert ticks(figure, 0) == {"7": 0.5}


def test_colours_follow_the_chosen_column():
    rows = [["vae", 1.0, 3.0], ["beta", 1.0, 1.0], ["vae", 2.0, None]]
    by_model = run_lines(sweeps.parallel(["model", "x", "elbo"], rows, 0))[1]
    assert by_model == [style.CYCLE[0].lower(), style.CYCLE[1].lower(), style.CYCLE[0].lower()]
    by_x = run_lines(sweeps.parallel(["model", "x", "elbo"], rows, 1))[1]
    assert by_x[0] == by_x[1] != by_x[2]
    figure = sweeps.parallel(["model", "x", "elbo"], rows, 2)
    assert run_lines(figure)[1][2] == style.GREY.lower()
    assert figure.axes[0].get_title(loc="left") == "3 runs, coloured by elbo"


def test_long_names_are_broken_where_their_parts_end():
    figure = sweeps.parallel(["schedule.beta.end_value", "x"], [[1.0, 2.0]], 0)
    text = figure.axes[0].texts[0].get_text()
    assert text.replace("\n", "") == "schedule.beta.end_value"
    assert max(map(len, text.split("\n"))) <= sweeps.WRAP


@pytest.mark.parametrize("runs", [1, 2, 30])
@pytest.mark.parametrize("columns", [1, 3, 14])
def test_any_number_of_runs_and_columns(runs, columns):
    rows = [[math.sin(5 * i + j) for j in range(columns)] for i in range(runs)]
    figure = sweeps.parallel([f"section/figure_{j}" for j in range(columns)], rows, columns - 1)
    lines, _ = run_lines(figure)
    assert np.shape(lines) == (runs, columns)
    assert np.min(lines) >= 0
    assert np.max(lines) <= 1
    for j in range(columns):
        heights = sorted(ticks(figure, j).values())
        assert len(heights) <= 10
        assert all(b - a > 0.04 for a, b in itertools.pairwise(heights))
        ends = {f"{min(row[j] for row in rows):.4g}", f"{max(row[j] for row in rows):.4g}"}
        assert ends <= ticks(figure, j).keys() or runs == 2


def test_bars_reach_to_the_ends_of_the_interval_and_lines_go_by_the_setting():
    """Points come in any order; one seed has no bar; words stand in their order."""
    lines = {"a": [(4, 2.0, 1.5, 2.5), (1, 1.0, 0.75, 1.5)], "b": [(1, 3.0, None, None), (2, 5.0, 4.0, 7.0)]}
    figure = trends.against("beta", {"likelihood/elbo": lines, "likelihood/kl": lines}, "Title")
    first = figure.axes[0]
    a, b = first.containers
    assert a.lines[0].get_xydata().tolist() == [[0, 1], [1, 2]]
    assert b.lines[0].get_xydata().tolist() == [pytest.approx([0, 3]), pytest.approx([1 / 3, 5])]
    assert [[y for _, y in bar] for bar in a.lines[2][0].get_segments()] == [[0.75, 1.5], [1.5, 2.5]]
    assert [[y for _, y in bar] for bar in b.lines[2][0].get_segments()] == [[3, 3], [4, 7]]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["1", "2", "4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    words = trends.against("model", {"kl": {"": [("vae", 1.0, None, None), ("ae", 2.0, None, None)]}}, "Title")
    assert [tick.get_text() for tick in words.axes[0].get_xticklabels()] == ["vae", "ae"]
    assert not words.legends


def test_curves_of_one_configuration_have_one_colour():
    t = np.arange(3.0)
    figure = trends.overlaid({"val/kl": [("a", t, t), ("a", t, t + 1), ("b", t, t + 2)]}, "3 runs")
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[0] == colours[1] != colours[2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
