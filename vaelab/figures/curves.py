"""Figures of training: the terms of the loss, scheduled values, and the KL of each latent dimension over time.

Epochs count from 0 where they are given, as in metrics.csv, and from 1 on the axes: values drawn at 1
are those of the first epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vaelab.core.metrics import NATS, PER_LEVEL, metric
from vaelab.figures import series, style
from vaelab.figures.series import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (4.2, 2.7)
"""Width and height of a panel, inches."""
START, HEADROOM = 0.1, 3.0
"""First part of a run, START of it, whose points may leave a panel: they do if they would take more than HEADROOM
times the height that all others need."""
NAMED = 8
"""Most levels that a legend names; of more, every second, third, ... is named."""


@style.styled
def training(rows: Rows) -> Figure:
    """Draws the terms of the loss over time, training and validation.

    rows: of metrics.csv. Time is epochs, or optimiser steps if fewer than two epochs ended. A panel for
    each of loss, reconstruction, KL and KL / reconstruction, or for what a VQ-VAE or an autoencoder has
    in their place, and one for the ELBO, at β = 1, where the loss is not its negative. The ratio is left out
    where reconstruction is not above 0, as a density's may be.
    """
    time = series.time_of(rows)
    new = series.unknown(rows, time)
    levels = [(whole, *(name for name in new if name.startswith(f"{whole}_"))) for whole in PER_LEVEL]
    levels = [names for names in levels if len(names) > 2]
    others = [name for name in new if not any(name in names for names in levels)]
    possible = [*PANELS, *((_levels, names) for names in levels), *((_terms, (name,)) for name in others[:MOST])]
    shown = [(draw, names) for draw, names in possible if any(series.known(rows, time, name) for name in names)]
    if series.same(rows, time, "loss", "reconstruction"):
        shown = [(draw, names) for draw, names in shown if names != ("loss",)]
    if series.opposite(rows, time, "loss", "elbo"):
        shown = [(draw, names) for draw, names in shown if names != ("elbo",)]
    if not shown:
        return style.empty("Training curves", "no finite metrics yet")
    columns = len(shown) if len(shown) < 4 else 2
    lines = -(-len(shown) // columns)
    figure, grid = style.new(PANEL[0] * columns, PANEL[1] * lines, lines, columns, squeeze=False, sharex=True)
    panels = list(grid.flat)
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, (draw, names) in zip(panels, shown, strict=False):
        draw(axes, rows, time, names)
        axes.yaxis.set_major_locator(style.ticks())
    for axes in panels[len(shown) - columns : len(shown)]:
        axes.set_xlabel(TIMES[time])
        axes.tick_params(labelbottom=True)
    _parts_legend(panels[0], rows, time)
    panels[0].xaxis.set_major_locator(style.ticks(integer=True))
    return figure


@style.styled
def scheduled(rows: Rows) -> Figure | None:
    """Draws C and β with the KL that they steer; None if there is no C, and β stays as it is.

    The capacity C shares the axis of the KL, both in nats; it is drawn where it is constant too, as the KL is held at
    it. β, which a schedule or a controller moves, has an axis of its own on the right.
    """
    time = series.time_of(rows)
    capacity, betas = series.finite(rows, "capacity"), series.finite(rows, "beta")
    moves = bool(betas) and max(betas) - min(betas) > 1e-6 * max(map(abs, betas))
    if not capacity and not moves:
        return None
    figure, axes = style.new(7, 3.2)
    for part in series.parts(time):
        within = part == "train" and bool(series.finite(rows, "kl"))  # an epoch's mean lags behind what it follows
        places = series.schedule(rows, "kl", time) if within else series.series(rows, f"{part}/kl", time)
        _line(axes, *places, "kl", part, label=f"KL, {PARTS[part]}")
    axes.set_xlabel(TIMES[time])
    axes.set_ylabel(f"KL and C, {NATS}" if capacity else f"KL, {NATS}", color=style.COLOURS["kl"])
    axes.set_title("β and the KL under it" if not capacity else f"Capacity C and the KL held at it{', by β' * moves}")
    if capacity:
        _line(axes, *series.schedule(rows, "capacity", time), "capacity", "train", label="C")
    handles = axes.get_lines()
    if moves:
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.spines["right"].set_visible(True)
        right.set_ylabel("β, weight of the KL", color=style.COLOURS["beta"], fontsize=9)
        right.tick_params(labelsize=9)
        _line(right, *series.schedule(rows, "beta", time), "beta", "train", label="β")
        right.set_ylim(0, 1.08 * max(betas))
        handles = [*handles, *right.get_lines()]
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(style.ticks(integer=True))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


# --- panels -----------------------------------------------------------------------------------

PARTS = {"train": "training", "step": "training", "val": "validation"}
TIMES = {"epoch": "epoch", "step": "optimiser step"}


def _terms(axes: Any, rows: Rows, time: str, names: tuple[str, ...]) -> None:
    """Draws metrics of one unit in one panel."""
    lines = [
        _line(axes, *series.series(rows, f"{part}/{name}", time), name, part, label=metric(name).label)
        for name in names
        for part in series.parts(time)
    ]
    title, unit = metric(names[0]).label, metric(names[0]).unit
    if names[0] == "reconstruction" and series.same(rows, time, "loss", "reconstruction"):
        title = f"Loss: reconstruction{title.removeprefix('Reconstruction')}"
    axes.set_title(title)
    axes.set_ylabel(unit)
    if len(names) > 1:
        axes.legend(handles=lines[:: len(series.parts(time))], fontsize=8)
    _leave_out_start(axes)


def _ratio(axes: Any, rows: Rows, time: str, names: tuple[str, ...]) -> None:
    """Draws KL / reconstruction, the ratio of rate and distortion."""
    for part in series.parts(time):
        x, y = series.series(rows, names[0], time, lambda row, part=part: series.quotient(row, part))
        _line(axes, x, y, "kl", part, label="KL / reconstruction")
    axes.set_title("KL / reconstruction")
    axes.set_ylabel("ratio")


def _usage(axes: Any, rows: Rows, time: str, names: tuple[str, ...]) -> None:
    """Draws the perplexity, on the left axis, and the share of codes in use, on the right."""
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.spines["right"].set_visible(True)
    for part in series.parts(time):
        _line(axes, *series.series(rows, f"{part}/perplexity", time), "perplexity", part, label="perplexity")
        x, y = series.series(rows, f"{part}/codebook_usage", time)
        _line(right, x, 100 * y, "codebook_usage", part, label="codes in use")
    axes.set_title(metric("perplexity").label + " and share in use")
    axes.set_ylabel("perplexity, codes", color=style.COLOURS["perplexity"])
    right.set_ylabel("codes in use, %", color=style.COLOURS["codebook_usage"], fontsize=9)
    right.tick_params(labelsize=9)
    axes.set_ylim(bottom=0)
    right.set_ylim(bottom=0)


def _levels(axes: Any, rows: Rows, time: str, names: tuple[str, ...]) -> None:
    """Draws a metric of each level of a code in one panel, a colour for each level. names: of the metric, of each."""
    whole, *levels = names
    parts, lines = series.parts(time), []
    for place, name in enumerate(levels):
        for part in parts:
            at = series.series(rows, f"{part}/{name}", time)
            lines.append(_line(axes, *at, name, part, label=name.removeprefix(f"{whole}_")))
            lines[-1].set_color(style.colour_of(place, len(levels)))
    axes.set_title(f"{metric(levels[0]).label.rpartition(', ')[0]}, by level")
    axes.set_ylabel(metric(whole).unit)
    axes.set_ylim(bottom=0)
    named = lines[:: len(parts) * -(-len(levels) // NAMED)]
    axes.legend(handles=named, fontsize=8, ncols=-(-len(named) // 4))


Panel = Callable[[Any, Rows, str, tuple[str, ...]], None]
PANELS: list[tuple[Panel, tuple[str, ...]]] = [
    (_terms, ("loss",)),
    (_terms, ("elbo",)),
    (_terms, ("reconstruction",)),
    (_terms, ("kl",)),
    (_ratio, ("kl/reconstruction",)),
    *((_terms, (name,)) for name in ("bound", "accuracy", "mmd", "kl_total_correlation", "total_correlation")),
    (_terms, ("discriminator_accuracy",)),
    (_terms, ("vq", "commitment")),
    (_usage, ("perplexity", "codebook_usage")),
]
"""Functions that draw the panels, each with its metrics; panels that a run has no metrics for are left out."""
MOST = 6
"""Most further panels, of metrics that the vocabulary does not know."""


# --- drawing ----------------------------------------------------------------------------------


def _line(axes: Any, x: np.ndarray, y: np.ndarray, name: str, part: str, label: str) -> Any:
    """Draws a line in the metric's colour and the part's style; points without neighbours get a dot."""
    known = np.pad(np.isfinite(y), 1)
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    line_style = style.LINES["train" if part == "step" else part]
    (line,) = axes.plot(
        *(x, y),
        color=style.COLOURS.get(name, style.GREY),
        linestyle=line_style,
        linewidth=1.4,
        marker=MARKER_OF[part] if len(alone) else "",
        markersize=4,
        markevery=alone.tolist(),
        label=label,
    )
    return line


def _leave_out_start(axes: Any) -> None:
    """Narrows a panel's height to what a run needs after a bad start, and writes where it starts."""
    lines = [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]
    x, y = (np.concatenate(columns) for columns in zip(*lines, strict=True))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    later = y[x > x.min() + START * (x.max() - x.min())] if len(y) else y
    if len(later) < 10:
        return
    low, high = later.min(), later.max()
    if y.max() - high > HEADROOM * (high - low) and high > low:
        axes.set_ylim(min(low, y.min()) - 0.05 * (high - low), high + 0.6 * (high - low))
        text = f"starts at {y.max():,.{0 if y.max() >= 100 else 1}f}"
        axes.text(0.16, 0.98, text, transform=axes.transAxes, va="top", fontsize=8, color=style.GREY)


def _parts_legend(axes: Any, rows: Rows, time: str) -> None:
    """Adds a legend that tells training from validation, once in a figure."""
    from matplotlib.lines import Line2D

    parts = [part for part in series.parts(time) if any(name.startswith(f"{part}/") for row in rows for name in row)]
    drawn = {line.get_marker() for line in axes.get_lines()}  # of a single epoch there are points alone
    marks = [MARKER_OF[part] if MARKER_OF[part] in drawn else "" for part in parts]
    look: dict[str, Any] = {"color": "black", "linewidth": 1.4, "markersize": 4}
    handles = [
        Line2D([], [], **look, linestyle=style.LINES[LINE_OF[part]], marker=mark, label=PARTS[part])
        for part, mark in zip(parts, marks, strict=True)
    ]
    axes.legend(handles=handles, fontsize=8, loc="best", handlelength=2.6)


LINE_OF = {"train": "train", "step": "train", "val": "val"}
MARKER_OF = {"train": "o", "step": "o", "val": "D"}
"""How a point without neighbours is drawn, which no line goes through."""
