"""Figures of what a model takes for unlike its training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaelab.figures import style
from vaelab.figures.sheets import LINE, Sheet, fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.styled
def roc(curves: Mapping[str, Sequence[float]], areas: Mapping[str, tuple[float, float]], title: str) -> Figure:
    """Draws ROC curves: which share of the anomalies a threshold finds that takes a share of normal images for some.

    curves: by the name of the score, the shares found where 0 to 1 of the normal images are taken for anomalies, in
    even steps. areas: the area under each, and its standard error.
    """
    figure, axes = style.new(5, 5)
    axes.plot([0, 1], [0, 1], ":", color=style.GREY, linewidth=1)
    for colour, (name, found) in zip(style.CYCLE, curves.items(), strict=False):
        area, error = areas[name]
        axes.plot(np.linspace(0, 1, len(found)), found, color=colour, label=f"{name}: {area:.3f} ± {error:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set(xlabel="share of own images taken for anomalies", ylabel="share of anomalies found")
    axes.set_title(title)
    axes.legend(loc="lower right", title="area under the curve", fontsize=8)
    return figure


@style.styled
def extremes(most: tuple[Tensor, Tensor, Sequence[str]], least: tuple[Tensor, Tensor, Sequence[str]]) -> Figure:
    """Draws the most and the least typical images above their reconstructions, with a word on each.

    most, least: images and reconstructions, [n, C, H, W] in [0, 1], and the words, [n].
    """
    rows = torch.stack([most[0], most[1], least[0], least[1]])
    sheet = Sheet(fitted(rows, rows.shape[1]), above=[LINE, 4, 2 * LINE, 4])
    sheet.name_rows(["most typical", "reconstruction", "least typical", "reconstruction"])
    for row, words in ((0, most[2]), (2, least[2])):
        for column, word in enumerate(words):
            sheet.say(sheet.centre(column), sheet.tops[row] - 4, word, va="bottom")
    return sheet.figure("By their scores, nats")
