"""Turns the rows of metrics.csv into series over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vaelab.core.metrics import TRAINING

if TYPE_CHECKING:
    from torch import Tensor

Rows = Sequence[Mapping[str, float]]
"""Rows of metrics.csv: the filled cells of each, by name."""
GAP = 2.0
"""A line breaks where more than this many usual intervals lie between two points."""


def time_of(rows: Rows) -> str:
    """Returns the column that is time: `epoch` once two epochs have ended, `step` before."""
    ended = {row["epoch"] for row in rows if "epoch" in row and any(name.startswith("train/") for name in row)}
    return "epoch" if len(ended) >= 2 else "step"


def parts(time: str) -> tuple[str, str]:
    """Returns the prefixes of training and of validation metrics."""
    return ("train" if time == "epoch" else "step", "val")


def series(
    rows: Rows, key: str, time: str, value: Callable[[Mapping[str, float]], float | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns times and values of a metric, [n] each, with NaN between points that are far apart.

    value: function of a row, None if it has none; the metric `key` if not given. Of two rows of one time
    the last counts: a resumed run went on from there.
    """
    value = value or (lambda row: row.get(key))
    by_time = {}
    for row in rows:
        if time in row and (y := value(row)) is not None:
            by_time[row[time] + (time == "epoch")] = y if math.isfinite(y) else math.nan
    x = np.array(sorted(by_time), dtype=float)
    y = np.array([by_time[place] for place in x], dtype=float)
    if len(x) < 3:
        return x, y
    steps = np.diff(x)
    holes = np.flatnonzero(steps > GAP * np.median(steps)) + 1
    return np.insert(x, holes, (x[holes - 1] + x[holes]) / 2), np.insert(y, holes, np.nan)


def calendar(epochs: Tensor, vectors: Tensor) -> tuple[int, np.ndarray]:
    """Lays out a vector of each epoch, [E, d]; of an epoch that is there twice the last counts.

    Returns the first epoch, and a row for every epoch from it to the last, [E', d]; NaN where one is missing.
    """
    days = epochs.detach().cpu().long().numpy()
    values = vectors.detach().cpu().double().numpy()
    if not len(days):
        return 0, values
    cells = np.full((days.max() - days.min() + 1, values.shape[1]), np.nan)
    cells[days - days.min()] = np.where(np.isfinite(values), values, np.nan)
    return int(days.min()), cells


def quotient(row: Mapping[str, float], part: str) -> float | None:
    kl, reconstruction = row.get(f"{part}/kl"), row.get(f"{part}/reconstruction")
    return None if kl is None or not reconstruction else kl / reconstruction


def known(rows: Rows, time: str, name: str) -> bool:
    """Whether a metric has a finite value to draw. A ratio needs a reconstruction that is always above 0."""
    if name == "kl/reconstruction":
        below = [row.get(f"{part}/reconstruction", math.nan) for row in rows for part in parts(time)]
        return known(rows, time, "kl") and not any(value <= 0 for value in below) and any(map(math.isfinite, below))
    keys = [f"{part}/{name}" for part in parts(time)]
    return any(math.isfinite(row.get(key, math.nan)) for row in rows for key in keys)


def unknown(rows: Rows, time: str) -> list[str]:
    """Returns names of metrics that were logged and are not in the vocabulary, such as a new variant's."""
    starts = tuple(f"{part}/" for part in parts(time))
    names = dict.fromkeys(key.rpartition("/")[2] for row in rows for key in row if key.startswith(starts))
    known_ones = {metric.name for metric in TRAINING}
    return [name for name in names if name not in known_ones]


def same(rows: Rows, time: str, a: str, b: str) -> bool:
    """Whether two metrics are equal in all rows that have one of them, as an autoencoder's loss and reconstruction."""
    pairs = [(row.get(f"{part}/{a}"), row.get(f"{part}/{b}")) for row in rows for part in parts(time)]
    return all(x == y or (x is not None and y is not None and math.isnan(x) and math.isnan(y)) for x, y in pairs)


def opposite(rows: Rows, time: str, a: str, b: str) -> bool:
    """Whether two metrics are each other's negative, but for rounding, in all rows that have both."""
    pairs = [(row.get(f"{part}/{a}"), row.get(f"{part}/{b}")) for row in rows for part in parts(time)]
    return all(math.isclose(x, -y, rel_tol=1e-5) for x, y in pairs if x is not None and y is not None)


def finite(rows: Rows, name: str) -> list[float]:
    values = [row.get(f"{part}/{name}", math.nan) for row in rows for part in ("step", "train")]
    return [value for value in values if math.isfinite(value)]


def schedule(rows: Rows, name: str, time: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns times and values of a scheduled scalar, from `step/...` rows put at their place between epochs."""
    x, y = series(rows, f"step/{name}", "step")
    if not len(x):
        return series(rows, f"train/{name}", time)
    if time == "step":
        return x, y
    ends = {row["step"]: row["epoch"] + 1 for row in rows if f"train/{name}" in row}
    steps, epochs = np.array([0, *ends]), np.array([0, *ends.values()])
    rate = (epochs[-1] - epochs[-2]) / max(1, steps[-1] - steps[-2])
    beyond = np.maximum(0, x - steps[-1]) * rate  # steps of an epoch that did not end
    return np.interp(x, steps, epochs) + beyond, y
