"""Figures of columns and of sequences, and which figures a table and a sequence have."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.test_conf import composed
from vaelab.core.config import build
from vaelab.datasets import TensorSplit
from vaelab.figures import style, tables
from vaelab.nn.likelihoods.columns import Column
from vaelab.report import gallery, pictures

FIELDS = [Column("age", "gaussian", 40, 10), Column("colour", "categorical", values=("blue", "red"))]


def test_marginals_are_shares_of_what_is_there():
    real = [np.array([1.0, 2.0, 2.0, np.nan]), np.array(["red", "red", "", "blue"])]
    made = [np.array([1.0, 1.0]), np.array(["blue", "blue"])]
    figure = tables.marginals(FIELDS, real, made)
    ages, colours = figure.axes
    for patch, values in zip(ages.patches, ([1, 2, 2], [1, 1]), strict=True):
        shares, edges, _ = patch.get_data()
        assert shares.sum() == pytest.approx(1)
        assert shares[np.searchsorted(edges, 1.0) - 1] == pytest.approx(values.count(1) / len(values))
    heights = [bar.get_height() for bar in colours.patches]
    assert heights == pytest.approx([1 / 3, 2 / 3, 1, 0])


def test_many_columns_and_odd_names_are_drawn():
    fields = [Column(f"${i}_{'long' * 20}", "gaussian") for i in range(50)]
    values = [np.arange(9.0)] * 50
    figure = tables.marginals(fields, values, values)
    assert len(figure.axes) == tables.MOST_COLUMNS
    assert "the first 40 of 50" in figure.get_suptitle()
    assert style.rendered(figure).shape[2] == 3


def test_correlations_are_those_of_numpy_over_the_rows_that_have_both():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[:, 1] += x[:, 0]
    np.testing.assert_allclose(tables.correlation(x), np.corrcoef(x.T))
    x[:10, 2] = np.nan
    assert tables.correlation(x)[0, 2] == pytest.approx(np.corrcoef(x[10:, 0], x[10:, 2])[0, 1])
    x[:, 2] = 4.0
    assert tables.correlation(x)[0, 2] == 0
    real, generated = (panel.images[0].get_array() for panel in tables.correlations("abc", x, -x).axes[:2])
    np.testing.assert_allclose(real, tables.correlation(x))
    np.testing.assert_allclose(generated, tables.correlation(-x))


def test_lines_lie_where_the_values_are():
    x = np.random.default_rng(0).random((3, 2, 9))
    x[0, 0, 4] = np.nan
    figure = tables.lines(x, x + 1, x + 2)
    for place in range(3):
        drawn = [line.get_ydata() for line in figure.axes[place].lines]
        np.testing.assert_array_equal(drawn, [x[place, 0], x[place, 0] + 1, x[place, 1], x[place, 1] + 1])
    np.testing.assert_array_equal([line.get_ydata() for line in figure.axes[3].lines], x[0] + 2)
    assert len(tables.lines(x, x, None).axes) == 3


def drawn(fields, shape, columns=None):
    """Names of the figures of an untrained model of such data."""
    words = ["likelihood=table"] if fields else ["likelihood=gaussian"]
    node = composed("model=vae", "network.hidden_dims=[4]", "model.latent_dim=2", *words)["model"]
    if fields:
        node["likelihood"]["columns"] = columns
    model = build(node, shape=shape, num_classes=None).eval()
    x = torch.rand(40, *shape)
    data = SimpleNamespace(
        fields=fields, shape=shape, pixel_range=(0.0, 1.0), class_names=None, factor_sizes=None, binary=False,
        sample_batch=lambda count, device: SimpleNamespace(images=x[:count], labels=None, classes=None, factors=None),
        as_model_sees=lambda given: given, train=TensorSplit(x),
    )  # fmt: skip
    return {name for name, _ in gallery.draw(model, data)}


def test_a_table_has_columns_a_sequence_lines_and_an_image_pictures():
    columns = [{"name": "age", "kind": "gaussian"}, {"name": "b", "kind": "gaussian"}]
    columns += [{"name": "colour", "kind": "categorical", "values": ["blue", "red"]}]
    fields = [Column(**column) for column in columns]
    table, sequence, image = drawn(fields, (1, 1, 4), columns), drawn(None, (2, 1, 9)), drawn(None, (2, 8, 8))
    assert {"marginals", "correlations", "latents", "dimensions"} == table
    assert {"lines", "latents", "dimensions"} == sequence
    assert {"reconstructions", "samples", "traversals", "data"} < image
    assert not image & {"lines", "marginals"}


def test_every_figure_of_pictures_is_one_that_there_is():
    assert gallery.FIGURES.keys() > gallery.OF_PICTURES
    captioned = {name for texts in pictures.CAPTIONS.values() for name in texts}
    assert gallery.FIGURES.keys() <= captioned


@pytest.mark.parametrize("name", ["x", "a column of many letters"])
@pytest.mark.parametrize("columns", [2, 12, 60])
def test_correlations_stand_below_their_title(columns, name):
    rows = np.random.default_rng(0).normal(size=(50, columns))
    figure = tables.correlations([f"{name}{i}" for i in range(columns)], rows, rows)
    figure.draw_without_rendering()
    (title,) = figure.texts
    top = max(axes.get_tightbbox().y1 for axes in figure.axes)
    assert 0 < title.get_window_extent().y0 - top < 0.25 * figure.dpi
