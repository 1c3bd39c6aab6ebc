import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from vaelab.figures import curves, latents, style
from vaelab.figures.style import COLOURS, LINES

VAE = ("loss", "reconstruction", "kl")


def rows_of(epochs, names=VAE, steps=10, parts=("train", "val")):
    """Rows as metrics.csv has them: every figure has a value of its own at every epoch."""
    made = []
    for epoch in epochs:
        row = {"step": (epoch + 1.0) * steps, "epoch": float(epoch)}
        for i, name in enumerate(names):
            for j, part in enumerate(parts):
                row[f"{part}/{name}"] = 100.0 * (i + 1) + 10 * j + epoch
        made.append(row)
    return made


def drawn(axes, name, part):
    """x and y of a line, found by colour and style as a reader finds it."""
    for line in axes.get_lines():
        dashed = line.is_dashed()
        if to_hex(line.get_color()) == to_hex(COLOURS[name]) and dashed == (part == "val"):
            return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()
    raise AssertionError(f"no line of {part}/{name}")


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_every_term_is_drawn_for_training_and_validation():
    rows = rows_of(range(4))
    loss, reconstruction, kl, ratio = curves.training(rows).axes
    for axes, name in ((loss, "loss"), (reconstruction, "reconstruction"), (kl, "kl")):
        for part in ("train", "val"):
            assert drawn(axes, name, part) == ([1, 2, 3, 4], [row[f"{part}/{name}"] for row in rows])
        assert axes.get_ylabel() == "nats per image"
    expected = [row["val/kl"] / row["val/reconstruction"] for row in rows]
    assert drawn(ratio, "kl", "val")[1] == expected
    assert ratio.get_ylabel() == "ratio"
    assert kl.get_xlabel() == "epoch"


def test_training_is_solid_validation_is_dashed_and_the_legend_says_so():
    assert LINES["train"] == "-"
    figure = curves.training(rows_of(range(3)))
    assert all([line.is_dashed() for line in axes.get_lines()] == [False, True] for axes in figure.axes)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert [line.is_dashed() for line in legend.get_lines()] == [False, True]


def test_points_of_a_single_epoch_are_told_apart_by_the_legend():
    axes = curves.training(rows_of(range(1))).axes[0]
    assert "D" in [line.get_marker() for line in axes.get_lines()]
    assert "D" in [line.get_marker() for line in axes.get_legend().get_lines()]
    lines = curves.training(rows_of(range(3))).axes[0].get_legend().get_lines()
    assert not any(line.get_marker() for line in lines)


def test_a_run_without_validation_has_no_word_of_it():
    figure = curves.training(rows_of(range(3), parts=("train",)))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training"]


def test_the_elbo_has_a_panel_where_the_loss_is_another():
    rows = [row | {f"{part}/elbo": -row[f"{part}/loss"] for part in ("train", "val") if f"{part}/loss" in row}
            for row in rows_of(range(3))]  # fmt: skip
    assert "ELBO" not in titles(curves.training(rows))
    rows[-1]["val/elbo"] -= 1
    assert titles(curves.training(rows))[:2] == ["Loss", "ELBO"]


def test_a_vq_vae_has_its_own_panels():
    names = ("loss", "reconstruction", "vq", "commitment", "perplexity", "codebook_usage")
    rows = rows_of(range(3), names)
    figure = curves.training(rows)
    assert titles(figure)[:2] == ["Loss", "Reconstruction, −log p(x|z)"]
    vq, perplexity, usage = figure.axes[2:]
    assert drawn(vq, "vq", "train")[1] == [row["train/vq"] for row in rows]
    assert drawn(vq, "commitment", "val")[1] == [row["val/commitment"] for row in rows]
    assert drawn(perplexity, "perplexity", "val")[1] == [row["val/perplexity"] for row in rows]
    assert drawn(usage, "codebook_usage", "train")[1] == [100 * row["train/codebook_usage"] for row in rows]
    assert usage.get_ylabel() == "codes in use, %"
    assert "nats" not in vq.get_ylabel()  # squared distances


def test_an_autoencoder_has_one_panel():
    rows = [
        r | {"train/loss": r["train/reconstruction"]} for r in rows_of(range(3), ("reconstruction",), parts=["train"])
    ]
    assert titles(curves.training(rows)) == ["Loss: reconstruction, −log p(x|z)"]


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_no_ratio_to_a_reconstruction_that_is_not_positive(value):
    rows = rows_of(range(3))
    rows[1]["val/reconstruction"] = value
    assert len(curves.training(rows).axes) == 3


def test_before_the_second_epoch_ends_time_is_steps():
    windows = [{"step": s, "epoch": 0.0} | {f"step/{name}": 9.0 * s for name in VAE} for s in (5.0, 10.0)]
    rows = [windows[0], windows[1] | rows_of([0])[0]]
    axes = curves.training(rows).axes[0]
    assert drawn(axes, "loss", "train") == ([5, 10], [45, 90])
    assert drawn(axes, "loss", "val") == ([10], [110])
    assert curves.training(rows).axes[-1].get_xlabel() == "optimiser step"
    point = axes.get_lines()[1]
    assert (point.get_marker(), point.get_markevery()) == ("D", [0])  # a line of one point would not be seen


def test_a_gap_of_lost_epochs_breaks_the_line_but_rare_validation_does_not():
    rows = rows_of([*range(10), *range(20, 30)])
    for row in rows:
        if row["epoch"] % 5:
            del row["val/loss"]
    axes = curves.training(rows_of(range(0, 50, 5))).axes[0]
    assert all(map(math.isfinite, drawn(axes, "loss", "train")[1]))
    x, y = drawn(curves.training(rows).axes[0], "loss", "train")
    assert [place for place, value in zip(x, y, strict=True) if math.isnan(value)] == [15.5]
    x, y = drawn(curves.training(rows).axes[0], "loss", "val")
    assert [place for place, value in zip(x, y, strict=True) if math.isfinite(value)] == [1, 6, 21, 26]


def test_of_two_rows_of_an_epoch_the_later_counts():
    rows = [*rows_of(range(3)), rows_of([1])[0] | {"train/loss": 7.0}]
    assert drawn(curves.training(rows).axes[0], "loss", "train") == ([1, 2, 3], [100, 7, 102])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_hole(bad):
    rows = rows_of(range(5))
    rows[2]["train/loss"] = bad
    axes = curves.training(rows).axes[0]
    y = drawn(axes, "loss", "train")[1]
    assert math.isnan(y[2])
    assert [y[i] for i in (0, 1, 3, 4)] == [100, 101, 103, 104]
    assert axes.get_ylim()[1] < 200


def test_a_point_between_holes_is_seen():
    rows = rows_of(range(5))
    rows[1]["train/loss"] = rows[3]["train/loss"] = math.nan
    assert curves.training(rows).axes[0].get_lines()[0].get_markevery() == [0, 2, 4]


def test_a_bad_start_leaves_the_panel_and_is_told():
    rows = rows_of(range(40), parts=("train",))
    rows[0]["train/loss"] = 54321.0
    axes = curves.training(rows).axes[0]
    assert axes.get_ylim()[0] < 101
    assert 139 < axes.get_ylim()[1] < 200
    assert [text.get_text() for text in axes.texts] == ["starts at 54,321"]
    rows[0]["train/loss"], rows[20]["train/loss"] = 100.0, 54321.0  # later it is what happened
    axes = curves.training(rows).axes[0]
    assert axes.get_ylim()[1] > 54321
    assert not axes.texts


@pytest.mark.parametrize("rows", [[], [{"step": 1.0, "epoch": 0.0, "train/loss": math.nan}]])
def test_nothing_to_draw_is_said(rows):
    (axes,) = curves.training(rows).axes
    assert "no finite metrics" in axes.texts[0].get_text()


# --- schedules --------------------------------------------------------------------------------


def with_schedule(name, values, steps=10):
    """Rows of as many half-epochs as there are values."""
    made = []
    for i, value in enumerate(values):
        row = {"step": (i + 1.0) * steps / 2, "epoch": float(i // 2), f"step/{name}": value, "step/kl": 1.5 + i}
        if i % 2:
            row |= {f"train/{name}": value, "train/kl": 2.0 + i, "val/kl": 1.0 + i}
        made.append(row)
    return made


def test_beta_has_its_own_axis_and_lies_between_epochs():
    left, right = curves.scheduled(with_schedule("beta", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])).axes
    assert drawn(right, "beta", "train") == ([0.5, 1, 1.5, 2, 2.5, 3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert drawn(left, "kl", "train") == ([0.5, 1, 1.5, 2, 2.5, 3], [1.5, 2.5, 3.5, 4.5, 5.5, 6.5])  # no epoch's mean
    assert drawn(left, "kl", "val") == ([1, 2, 3], [2, 4, 6])
    assert left.get_ylabel() == "KL, nats per image"
    assert right.get_ylim()[0] == 0


def test_an_epoch_that_did_not_end_goes_on_at_the_same_rate():
    (_, right) = curves.scheduled(with_schedule("beta", [0.1, 0.2, 0.3, 0.4, 0.5])).axes
    assert drawn(right, "beta", "train")[0] == [0.5, 1, 1.5, 2, 2.5]


def test_capacity_shares_the_axis_of_the_kl_even_if_constant():
    for values in ([1.0, 2.0, 3.0, 4.0], [5.0] * 4):
        (axes,) = curves.scheduled(with_schedule("capacity", values)).axes
        assert drawn(axes, "capacity", "train")[1] == values
        assert drawn(axes, "kl", "train")[1] == [1.5, 2.5, 3.5, 4.5]
        assert axes.get_ylabel() == "KL and C, nats per image"


def test_beta_is_drawn_beside_the_capacity_where_it_moves():
    rows = [row | other for row, other in zip(
        with_schedule("capacity", [5.0] * 4), with_schedule("beta", [0.1, 0.2, 0.3, 0.4]), strict=True
    )]  # fmt: skip
    left, right = curves.scheduled(rows).axes
    assert drawn(left, "capacity", "train")[1] == [5.0] * 4
    assert drawn(right, "beta", "train")[1] == [0.1, 0.2, 0.3, 0.4]
    still = [{key: 1.0 if key.endswith("beta") else value for key, value in row.items()} for row in rows]
    (only,) = curves.scheduled(still).axes
    assert drawn(only, "capacity", "train")[1] == [5.0] * 4


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_constant_beta_is_no_schedule(value):
    assert curves.scheduled(with_schedule("beta", [value] * 6)) is None


def test_no_schedule_without_a_scalar():
    assert curves.scheduled(rows_of(range(5))) is None
    assert curves.scheduled([]) is None


# --- KL per dimension -------------------------------------------------------------------------


def heat(figure):
    (image,) = figure.axes[0].get_images()
    return np.ma.filled(image.get_array().astype(float), np.nan), image.get_extent()


def sides(figure):
    """Sides of cells that are part of the line, as sets of two points."""
    (line,) = figure.axes[0].collections
    return {frozenset(map(tuple, segment.tolist())) for segment in line.get_segments()}


def test_rows_are_sorted_by_final_kl_and_named():
    kl = torch.tensor([[9.0, 0.0, 0.0], [0.1, 3.0, 1.5]])
    figure = latents.kl_per_dimension(torch.arange(2), kl)
    cells, extent = heat(figure)
    assert cells == pytest.approx(kl.T[[1, 2, 0]].numpy())
    assert extent == [0.5, 2.5, 2.5, -0.5]  # epochs 1 and 2, the first row on top
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "0"]
    assert axes.get_yticks().tolist() == [0, 1, 2]
    assert "2 of 3 above 1 nat" in axes.get_title(loc="left")
    assert "training" in axes.get_title(loc="left")
    assert "last epoch" in axes.get_title(loc="left")


def test_the_line_runs_where_the_kl_crosses_one_nat():
    kl = torch.tensor([[0.5, 0.2], [0.999, 0.2], [1.0, 0.2], [4.0, 0.2]])
    figure = latents.kl_per_dimension(torch.arange(4), kl)
    upright = frozenset([(2.5, -0.5), (2.5, 0.5)])
    below = [frozenset([(x - 0.5, 0.5), (x + 0.5, 0.5)]) for x in (3.0, 4.0)]
    assert sides(figure) == {upright, *below}
    assert to_hex(figure.axes[0].collections[0].get_color()[0]) == style.VERMILION.lower()


def test_the_line_separates_every_pair_of_cells_on_both_sides_of_one_nat():
    kl = 2 * torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
    figure = latents.kl_per_dimension(torch.arange(30), kl)
    inside = heat(figure)[0] >= 1
    crossings = (inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum()
    assert len(sides(figure)) == crossings


def test_the_colour_bar_is_marked_at_one_nat_even_in_a_collapse():
    for top in (0.01, 5.0):
        figure = latents.kl_per_dimension(torch.arange(3), torch.full((3, 2), top))
        bar = figure.axes[1]
        assert any(list(line.get_ydata()) == [1, 1] for line in bar.get_lines())
        assert bar.get_ylim()[1] > 1
        assert bar.get_ylabel() == "nats per image"


def test_lost_epochs_and_nan_are_blank_and_bound_no_line():
    kl = torch.full((3, 2), 2.0)
    kl[1, 1] = math.nan
    figure = latents.kl_per_dimension(torch.tensor([0, 1, 4]), kl)
    cells, extent = heat(figure)
    assert np.isnan(cells).tolist() == [[False, False, True, True, False], [False, True, True, True, False]]
    assert extent[:2] == [0.5, 5.5]
    assert not sides(figure)


def test_of_two_rows_of_an_epoch_the_last_is_drawn():
    cells, _ = heat(latents.kl_per_dimension(torch.tensor([0, 1, 1]), torch.tensor([[1.0], [2.0], [3.0]])))
    assert cells.tolist() == [[1, 3]]


@pytest.mark.parametrize(("epochs", "dims"), [(1, 1), (1, 20), (40, 1), (40, 200), (500, 128)])
def test_any_number_of_dimensions_and_epochs(epochs, dims):
    kl = 3 * torch.rand(epochs, dims, generator=torch.Generator().manual_seed(1))
    figure = latents.kl_per_dimension(torch.arange(epochs), kl)
    assert heat(figure)[0].shape == (dims, epochs)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    order = kl[-1].argsort(descending=True).tolist()
    places = figure.axes[0].get_yticks().tolist()
    assert labels == [str(order[place]) for place in places]
    assert len(labels) <= latents.MAP_LABELS
    assert (style.rendered(figure) < 255).any()


def test_no_kl_is_said():
    for kl in (torch.zeros(0, 3), torch.full((2, 3), math.nan)):
        figure = latents.kl_per_dimension(torch.arange(len(kl)), kl)
        assert "no finite metrics" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("count", "named"), [(4, 4), (16, 8)])
def test_every_level_of_a_code_has_a_line_in_the_panel_of_its_metric(count, named):
    of_levels = [f"{whole}_stage{n}" for whole in ("perplexity", "codebook_usage") for n in range(1, count + 1)]
    rows = rows_of(range(3), ("loss", "perplexity", "codebook_usage", *of_levels))
    figure = curves.training(rows)
    panel = figure.axes[titles(figure).index("Codes in use, by level")]
    levels = [list(line.get_ydata()) for line in panel.get_lines() if not line.is_dashed()]
    assert levels == [[row[f"train/codebook_usage_stage{n}"] for row in rows] for n in range(1, count + 1)]
    assert len({to_hex(line.get_color()) for line in panel.get_lines()}) == count
    words = [text.get_text() for text in panel.get_legend().get_texts()]
    assert words == [f"stage{n}" for n in range(1, count + 1, count // named)]
